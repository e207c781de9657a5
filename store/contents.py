"""What chunks hold: decoded, and held against the plan, the corpus and each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..schemas import CorruptError, RunPlan, Text
from .bits import fill_value, from_bits, stored_dtype
from .chunks import chunk_fault, unpack_chunk
from .coordinates import CONFLICTS, LABELS
from .documents import Documents, chunk_limits, static_chunk_keys
from .faults import Fault
from .layout import RunKeys, chunk_rows, text_limit
from .statics import decode_static

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Contents", "object_limit"]

_OF_TEXT = ("arm", "pair", "scenario", "category", "generator", "split", "subset", "variant")
_CODEC_BYTES = 4096  # what a codec may add to values that do not shrink


def object_limit(plan: RunPlan, key: str) -> int:
    """Return the most bytes that an object of a run can honestly have."""
    shapes = {spec.name: spec.shape for spec in plan.arrays}
    shape = shapes.get(key.partition("/")[0])
    if shape is None or key.endswith(".json"):
        return 2 * text_limit(plan.n_texts) + 16 * 2**20
    n_values = chunk_rows(plan) * (shape[2] if len(shape) == 3 else shape[1])
    return 4 * n_values + _CODEC_BYTES


class Contents:
    """The decoded side of a verification."""

    def __init__(self, store: Store, plan: RunPlan, documents: Documents) -> None:
        self._store, self._plan, self._documents = store, plan, documents
        self._specs = {spec.name: spec for spec in plan.arrays}

    # -- activations

    def chunk_fault(self, key: str, data: bytes) -> str | None:
        """Return what is wrong with the values of a chunk that a block wrote.

        Every value of a row must be finite, a norm not negative, and rows past the last text
        must hold the fill value.
        """
        plan = self._plan
        name, _, place = key.partition("/c/")
        spec = self._specs[name]
        dtype = np.dtype(stored_dtype(spec.dtype)).newbyteorder("<")
        inner = spec.shape[2] if len(spec.shape) == 3 else spec.shape[1]
        shape = (chunk_rows(plan), inner)
        n_bytes = math.prod(shape) * dtype.itemsize
        wrong = chunk_fault(
            data, codec=plan.codec, item_size=dtype.itemsize, n_bytes=n_bytes, exactly=True
        )
        if wrong is not None:
            return wrong
        try:
            stored = np.frombuffer(unpack_chunk(data, codec=plan.codec), dtype).reshape(shape)
        except CorruptError as err:
            return str(err)
        first = int(place.split("/")[0]) * plan.rows_per_block
        n_rows = min(shape[0], plan.n_texts - first)
        fill, past = fill_value(spec.dtype), stored[n_rows:]
        as_filled = np.isnan(past) if dtype.kind == "f" else past == fill
        if not as_filled.all():
            return "values past the last row are not the fill value"
        rows = (
            stored[:n_rows] if spec.dtype == "float32" else from_bits(stored[:n_rows], spec.dtype)
        )
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any():
            row = first + int(np.argmax(bad))
            return f"{int(bad.sum())} rows with values that are not finite, the first is {row}"
        if len(spec.shape) == 2 and "_norm" in name and (rows < 0).any():
            return f"a negative norm in row {first + int(np.argmax((rows < 0).any(axis=1)))}"
        return None

    # -- coordinates

    def coordinate_faults(self, texts: Sequence[Text] | None) -> list[Fault]:
        """Return what in the coordinates contradicts the plan, the corpus or each other."""
        plan, faults, values = self._plan, [], self._read()
        text = values.get("text")
        if "layer" in values and values["layer"].tolist() != list(plan.layers):
            faults.append(_fault("layer", "it is not the plan's layers"))
        if text is not None and len(set(text.tolist())) != len(text):
            faults.append(_fault("text", "a text id stands twice in it"))
        if "arm" in values and "label" in values:
            labels = [LABELS.get(arm) for arm in values["arm"].tolist()]
            given = values["label"].tolist()
            row = next((i for i, known in enumerate(labels) if known not in {None, given[i]}), None)
            if row is not None:
                faults.append(_fault("label", "it is not that of the arm", row))
        faults += self._token_faults(values)
        if texts is not None and text is not None:
            faults += _corpus_faults(values, {item.id: item for item in texts})
        return faults

    def _token_faults(self, values: dict[str, np.ndarray[Any, Any]]) -> Iterator[Fault]:
        edges, counts = values.get("token_offset"), values.get("n_tokens")
        if edges is None:
            return
        lengths = np.diff(edges)
        if edges[0] != 0 or edges[-1] != self._plan.n_tokens or (lengths < 0).any():
            yield _fault("token_offset", f"it does not rise from 0 to {self._plan.n_tokens}")
        elif counts is not None and (lengths != counts).any():
            row = int(np.argmax(lengths != counts))
            yield _fault("n_tokens", "it is not the distance of the token offsets", row)

    def _read(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the coordinates that can be read; damaged ones were found by their hashes."""
        limits = chunk_limits(self._documents)
        parts: dict[str, list[np.ndarray[Any, Any]]] = {}
        damaged = set()
        for name, key in static_chunk_keys(self._plan, self._documents):
            if self._documents[name]["dimension_names"] == ["token"]:
                continue
            full = RunKeys(self._plan.run).object(key)
            try:
                data = self._store.backend.get(full, max_bytes=2 * limits[name] + _CODEC_BYTES)
                if data is None:
                    damaged.add(name)
                else:
                    parts.setdefault(name, []).append(decode_static(self._documents, name, data))
            except CorruptError:
                damaged.add(name)
        return {
            name: np.concatenate(arrays)[: self._documents[name]["shape"][0]]
            for name, arrays in parts.items()
            if name not in damaged
        }


def _corpus_faults(
    values: dict[str, np.ndarray[Any, Any]], known: dict[str, Text]
) -> Iterator[Fault]:
    found = [known.get(name) for name in values["text"].tolist()]
    if None in found:
        yield _fault("text", "the corpus has no such text", found.index(None))
        return
    texts = [text for text in found if text is not None]
    for name in _OF_TEXT:
        if name in values:
            given = values[name].tolist()
            row = next(
                (i for i, t in enumerate(texts) if (getattr(t, name) or "") != given[i]), None
            )
            if row is not None:
                yield _fault(name, "the corpus says something else", row)
    if "task_conflict" in values:
        given = [CONFLICTS[t.task_conflict] for t in texts]
        rows = np.flatnonzero(values["task_conflict"] != given)
        if rows.size:
            yield _fault("task_conflict", "the corpus says something else", int(rows[0]))
    if "n_chars" in values:
        row = next((i for i, t in enumerate(texts) if t.n_chars != values["n_chars"][i]), None)
        if row is not None:
            yield _fault("n_chars", "the corpus says something else", row)


def _fault(name: str, reason: str, row: int | None = None) -> Fault:
    where = "" if row is None else f" of row {row}"
    rows = None if row is None else (row, row + 1)
    return Fault(f"{name}/c/0", f"the value{where}: {reason}", rows, kind="static")
