"""Metadata and coordinates of a run as they are stored, verified: what no block wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..schemas import CorruptError, RunPlan, Seal
from .chunks import check_strings, chunk_fault, unpack_chunk
from .codec import BLOSC, PLAIN
from .documents import Documents, chunk_limits, read_documents, static_chunk_keys
from .faults import Fault
from .layout import METADATA_NAME, RunKeys, group_metadata, to_bytes
from .metadata import METADATA_BYTES, check_array, coordinate_names, parse_document

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Statics", "decode_static", "read_statics", "read_text_ids"]


@dataclass
class Statics:
    """The checked documents, and of an unsealed run what verifying them found."""

    documents: Documents = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    n_objects: int = 0
    n_bytes: int = 0
    faults: list[Fault] = field(default_factory=list)

    def add_fault(self, key: str, reason: object) -> None:
        """Add what is wrong with one object."""
        self.faults.append(Fault(key, str(reason), kind="static"))


def read_statics(
    store: Store, plan: RunPlan, plan_id: str, *, seal: Seal | None, partial: bool
) -> Statics:
    """Return the documents of a run.

    Those of a sealed run are verified by the hashes of its seal. An unsealed run has no hashes
    of them yet: they must be, to the byte, what the plan says, and coordinates must fit them.
    """
    if seal is None:
        return _read_unsealed(store, plan, plan_id)
    statics = Statics(keys={info.key for info in seal.objects})
    try:
        statics.documents = read_documents(store, plan, seal, partial=partial)
    except CorruptError as err:
        statics.add_fault(METADATA_NAME, err)
    return statics


def _read_unsealed(store: Store, plan: RunPlan, plan_id: str) -> Statics:
    statics = Statics(keys={METADATA_NAME})
    keys = RunKeys(plan.run)

    def get(key: str, limit: int) -> bytes | None:
        try:
            data = store.backend.get(keys.object(key), max_bytes=limit)
        except CorruptError as err:
            statics.add_fault(key, err)
            return None
        if data is None:
            statics.add_fault(key, "missing")
            return None
        statics.n_objects += 1
        statics.n_bytes += len(data)
        return data

    root = get(METADATA_NAME, METADATA_BYTES)
    try:
        group = parse_document(root or b"null", where=METADATA_NAME, node_type="group")
        coordinates = coordinate_names(group)
    except CorruptError as err:
        if root is not None:
            statics.add_fault(METADATA_NAME, err)
        return _guessed(statics, store, plan)
    for name in [*(spec.name for spec in plan.arrays), *coordinates]:
        key = f"{name}/{METADATA_NAME}"
        statics.keys.add(key)
        data = get(key, METADATA_BYTES)
        if data is None:
            continue
        try:
            document = parse_document(data, where=key, node_type="array")
            written = check_array(document, name=name, plan=plan, where=key)
        except CorruptError as err:
            statics.add_fault(key, err)
            continue
        statics.documents[name] = written
        if data != to_bytes(written):
            statics.add_fault(key, "it is not spelled as it was written")
    listed = sorted(set(coordinates) - {"text", "layer"})
    expected = [group_metadata(plan, plan_id=plan_id, coordinates=listed)]
    # A writer that was killed while it sealed leaves the consolidated form.
    expected.append(
        group_metadata(plan, plan_id=plan_id, coordinates=listed, consolidated=statics.documents)
    )
    if root not in [to_bytes(document) for document in expected]:
        statics.add_fault(METADATA_NAME, "it is not what the plan says")
    limits = chunk_limits(statics.documents)
    for name, key in static_chunk_keys(plan, statics.documents):
        statics.keys.add(key)
        data = get(key, 2 * limits[name] + 4096)
        if data is not None:
            try:
                decode_static(statics.documents, name, data)
            except CorruptError as err:
                statics.add_fault(key, err)
    return statics


def _guessed(statics: Statics, store: Store, plan: RunPlan) -> Statics:
    """Return the statics of a run whose group says nothing: what lies there is not strange."""
    folder = RunKeys(plan.run).data
    statics.keys |= {key.removeprefix(folder + "/") for key, _ in store.backend.walk(folder)}
    return statics


def read_text_ids(store: Store, plan: RunPlan, documents: Documents) -> list[str]:
    """Return the ids of the texts, in row order; raise CorruptError where they cannot be read."""
    found: list[str] = []
    for name, key in static_chunk_keys(plan, documents):
        if name == "text":
            full = RunKeys(plan.run).object(key)
            limit = 2 * chunk_limits({name: documents[name]})[name] + 4096
            data = store.backend.get(full, max_bytes=limit)
            if data is None:
                msg = f"{full} in {store.url} is missing; verify the run"
                raise CorruptError(msg)
            found += [str(value) for value in decode_static(documents, name, data)]
    return found[: plan.n_texts]


def decode_static(documents: Documents, name: str, data: bytes) -> np.ndarray[Any, Any]:
    """Return the values of one chunk of a coordinate; raise CorruptError."""
    document = documents[name]
    is_text = document["data_type"] == "string"
    size = 1 if is_text else np.dtype(document["data_type"]).itemsize
    codec = BLOSC if len(document["codecs"]) == 3 else PLAIN
    limit = chunk_limits({name: document})[name]
    wrong = chunk_fault(data, codec=codec, item_size=size, n_bytes=limit, exactly=not is_text)
    if wrong:
        raise CorruptError(wrong)
    plain = unpack_chunk(data, codec=codec)
    if not is_text:
        return np.frombuffer(plain, dtype=np.dtype(document["data_type"]).newbyteorder("<"))
    (n_values,) = document["chunk_grid"]["configuration"]["chunk_shape"]
    return np.array(check_strings(plain, n_values=n_values), dtype=object)
