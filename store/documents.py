"""The Zarr documents of a run, read with bounds and checked against its plan and its seal."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..schemas import CorruptError, RunPlan, Seal
from .layout import METADATA_NAME, RunKeys, text_limit
from .metadata import METADATA_BYTES, check_array, check_group, coordinate_names, parse_document
from .partial import sealed_root_key

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Documents", "chunk_limits", "read_documents", "static_chunk_keys"]

# The group's document under "", every array's under its name.
Documents: TypeAlias = dict[str, dict[str, Any]]


def read_documents(
    store: Store, plan: RunPlan, seal: Seal | None, *, partial: bool = False
) -> Documents:
    """Return the checked documents of a run.

    A sealed run costs one GET, checked against the seal; of an unsealed one every array's own
    document is read.

    Parameters
    ----------
    partial
        The run is a partial copy: the sealed document lies beside ``data.zarr``.

    Raises
    ------
    CorruptError
        If a document is missing, is not what was sealed, or contradicts the plan.
    """
    keys = RunKeys(plan.run)
    root_key = keys.object(METADATA_NAME)
    if partial and seal is not None:
        root_key = sealed_root_key(plan.run)
    data = store.backend.get(root_key, max_bytes=METADATA_BYTES)
    where = f"{root_key} in {store.url}"
    if data is None:
        msg = f"{where} is missing; run the extraction again to resume, or verify the store"
        raise CorruptError(msg)
    group = parse_document(data, where=where, node_type="group")
    coordinates = coordinate_names(group)
    names = [*(spec.name for spec in plan.arrays), *coordinates]
    if seal is not None:
        expected = next((o.sha256 for o in seal.objects if o.key == METADATA_NAME), None)
        if hashlib.sha256(data).hexdigest() != expected:
            msg = f"{where} is not what was sealed; verify the run and fetch it again"
            raise CorruptError(msg)
        inline = group.get("consolidated_metadata")
        listed = inline.get("metadata") if isinstance(inline, dict) else None
        listed = listed if isinstance(listed, dict) else {}
        found = [json.dumps(listed.get(name)).encode() for name in names]
    else:

        def read(name: str) -> bytes:
            key = keys.object(f"{name}/{METADATA_NAME}")
            return store.backend.get(key, max_bytes=METADATA_BYTES) or b"null"

        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(read, names))
    documents = {"": check_group(group, plan=plan, where=where)}
    for name, part in zip(names, found, strict=True):
        place = f"{keys.object(name)} in {store.url}"
        found_document = parse_document(part, where=place, node_type="array")
        documents[name] = check_array(found_document, name=name, plan=plan, where=place)
    return documents


def chunk_limits(documents: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return the most bytes that a chunk of each array may decode to, by array name."""
    limits = {}
    for name, document in documents.items():
        if not name:
            continue
        chunk = document["chunk_grid"]["configuration"]["chunk_shape"]
        if document["data_type"] == "string":
            limits[name] = text_limit(chunk[0]) + 4 * (chunk[0] + 1)  # with vlen-utf8's lengths
        else:
            limits[name] = math.prod(chunk) * np.dtype(document["data_type"]).itemsize
    return limits


def static_chunk_keys(
    plan: RunPlan, documents: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Yield (array name, key below ``data.zarr``) of every chunk that no block wrote."""
    planned = {spec.name for spec in plan.arrays}
    for name, document in documents.items():
        if name and name not in planned:
            (chunk,) = document["chunk_grid"]["configuration"]["chunk_shape"]
            for index in range(-(-document["shape"][0] // chunk)):
                yield name, f"{name}/c/{index}"
