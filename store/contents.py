"""What chunks hold: decoded, and held against the plan, the corpus and each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..schemas import CorruptError, RunPlan, Text
from .bits import fill_value, from_bits, stored_dtype
from .blocks import ChunkPlace, chunk_shape, place_of_key
from .chunks import chunk_fault, unpack_chunk
from .coordinates import LABELS
from .documents import Documents, chunk_limits, static_chunk_keys
from .faults import Fault
from .layout import RunKeys, text_limit
from .stored_coordinates import decode_static
from .tokens import PADDING, token_places

if TYPE_CHECKING:
    from .store import Store

__all__ = ["Contents", "object_limit"]

_OF_TEXT = ("arm", "pair", "scenario", "category", "generator", "split", "subset", "variant")
_OF_TOKEN = {"token_id", "token_text", "token_position"}
_CODEC_BYTES = 4096  # what a codec may add to values that do not shrink


def object_limit(plan: RunPlan, key: str) -> int:
    """Return the most bytes that an object of a run can honestly have."""
    spec = next((spec for spec in plan.arrays if spec.name == key.partition("/")[0]), None)
    if spec is None or key.endswith(".json"):
        return 2 * text_limit(plan.n_texts) + 16 * 2**20
    return 4 * math.prod(chunk_shape(plan, spec)) + _CODEC_BYTES


class Contents:
    """The decoded side of a verification."""

    def __init__(self, store: Store, plan: RunPlan, documents: Documents) -> None:
        self._store, self._plan, self._documents = store, plan, documents
        self._nan_rows = np.empty(0, dtype=np.int64)

    def allow_nan(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Let vectors of these rows be NaN throughout: see :mod:`.notes`."""
        self._nan_rows = rows

    # -- activations

    def chunk_fault(self, key: str, data: bytes) -> str | None:
        """Return what is wrong with the values of a chunk that a block wrote.

        Every value of a row must be finite, or all of them NaN where that is noted, a norm not
        negative, and rows past the last text must hold the fill value.
        """
        plan = self._plan
        place = place_of_key(plan, key)
        if place is None:
            return "no block of the plan writes such a key"
        spec, n_rows = place.spec, place.n_rows
        dtype = np.dtype(stored_dtype(spec.dtype)).newbyteorder("<")
        n_stored, *inner = chunk_shape(plan, spec)
        shape = (n_stored, math.prod(inner))
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
        fill, past = fill_value(spec.dtype), stored[n_rows:]
        as_filled = np.isnan(past) if dtype.kind == "f" else past == fill
        if not as_filled.all():
            return "values past the last row are not the fill value"
        rows = (
            stored[:n_rows] if spec.dtype == "float32" else from_bits(stored[:n_rows], spec.dtype)
        )
        bad = ~np.isfinite(rows).all(axis=1)
        if bad.any() and self._nan_rows.size:
            # One vector per row, but for norms: there each layer stands for itself.
            blank = np.isnan(rows) if len(spec.shape) == 2 else np.isnan(rows).all(axis=1)[:, None]
            noted = np.isin(self._texts_of(place), self._nan_rows)[:, None]
            bad = ~(np.isfinite(rows) | (blank & noted)).all(axis=1)
        if bad.any():
            row = self._first_row(place) + int(np.argmax(bad))
            return f"{int(bad.sum())} rows with values that are not finite, the first is {row}"
        if len(spec.shape) == 2 and "_norm" in spec.name and (rows < 0).any():
            row = self._first_row(place) + int(np.argmax((rows < 0).any(axis=1)))
            return f"a negative norm in row {row}"
        return None

    def _first_row(self, place: ChunkPlace) -> int:
        """Return the first row of a chunk: a text, or a token counted without padding."""
        axis = self._plan.token_axis
        if place.spec.is_tokens and axis is not None:
            return axis.token_edges[place.block] + place.start
        return place.block * self._plan.rows_per_block

    def _texts_of(self, place: ChunkPlace) -> np.ndarray[Any, Any]:
        """Return the text of each row of a chunk, (row,)."""
        rows = self._first_row(place) + np.arange(place.n_rows)
        if not place.spec.is_tokens:
            return rows
        edges = self._read().get("token_offset")
        return (
            np.full(len(rows), PADDING)
            if edges is None
            else np.searchsorted(edges, rows, side="right") - 1
        )

    # -- coordinates

    def coordinate_faults(self, texts: Sequence[Text] | None) -> list[Fault]:
        """Return what in the coordinates contradicts the plan, the corpus or each other."""
        plan, faults, values = self._plan, [], self._read()
        text = values.get("text")
        if "layer" in values and values["layer"].tolist() != list(plan.layers):
            faults.append(_fault("layer", "it is not the plan's layers"))
        axis = plan.token_axis
        if axis and "token_layer" in values and values["token_layer"].tolist() != list(axis.layers):
            faults.append(_fault("token_layer", "it is not the plan's token layers"))
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
        elif self._plan.token_axis is not None:
            yield from self._padding_faults(edges)

    def _padding_faults(self, edges: np.ndarray[Any, Any]) -> Iterator[Fault]:
        """Yield where the coordinates of the token axis do not follow from the token offsets."""
        axis = self._plan.token_axis
        firsts = [self._plan.block_rows(block).start for block in range(self._plan.n_blocks)]
        if axis is None or edges[[*firsts, self._plan.n_texts]].tolist() != list(axis.token_edges):
            yield _fault("token_offset", "it does not fit the token edges of the plan")
            return
        for name, key in static_chunk_keys(self._plan, self._documents):
            if self._documents[name]["dimension_names"] != ["token"]:
                continue
            found = self._read_chunk(name, key)
            if found is None:
                continue  # found by its hash
            start = int(key.rpartition("/")[2]) * len(found)
            found = found[: axis.n_rows - start]
            expected = np.full(len(found), PADDING, dtype=np.int64)
            for span, text, position in token_places(
                self._plan, edges, start=start, stop=start + len(found)
            ):
                ids = np.maximum(found[span], 0)  # any token's id is right that is one
                by_name = {"token_text": text, "token_position": position}
                expected[span] = by_name.get(name, ids)
            if name in _OF_TOKEN and (found != expected).any():
                row = start + int(np.argmax(found != expected))
                reason = f"the value of stored row {row}: it does not fit the token offsets"
                yield Fault(key, reason, kind="static")

    def _read(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the coordinates that can be read; damaged ones were found by their hashes."""
        parts: dict[str, list[np.ndarray[Any, Any]]] = {}
        damaged = set()
        for name, key in static_chunk_keys(self._plan, self._documents):
            if self._documents[name]["dimension_names"] == ["token"]:
                continue
            found = self._read_chunk(name, key)
            if found is None:
                damaged.add(name)
            else:
                parts.setdefault(name, []).append(found)
        return {
            name: np.concatenate(arrays)[: self._documents[name]["shape"][0]]
            for name, arrays in parts.items()
            if name not in damaged
        }

    def _read_chunk(self, name: str, key: str) -> np.ndarray[Any, Any] | None:
        """Return one decoded chunk of a coordinate, None where it is missing or damaged."""
        limit = 2 * chunk_limits({name: self._documents[name]})[name] + _CODEC_BYTES
        full = RunKeys(self._plan.run).object(key)
        try:
            data = self._store.backend.get(full, max_bytes=limit)
            return None if data is None else decode_static(self._documents, name, data)
        except CorruptError:
            return None


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
    if "n_chars" in values:
        row = next((i for i, t in enumerate(texts) if t.n_chars != values["n_chars"][i]), None)
        if row is not None:
            yield _fault("n_chars", "the corpus says something else", row)


def _fault(name: str, reason: str, row: int | None = None) -> Fault:
    where = "" if row is None else f" of row {row}"
    rows = None if row is None else (row, row + 1)
    return Fault(f"{name}/c/0", f"the value{where}: {reason}", rows, kind="static")
