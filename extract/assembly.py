"""Batches put together to blocks: pools whole, tokens piece by piece into the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from ..schemas import ArraySpec
from ..store import RunWriter
from .host_copies import HostArrays
from .nonfinite import Locate, NonfiniteRows, Place, describe, nonfinite_layers
from .planning import PreparedRun

__all__ = ["Assembly", "Batch", "WholeBlock"]

_PIECE_BYTES = 4 << 20  # of tokens, as float32: a piece that stays in a core's cache


@dataclass
class Batch:
    """The arrays of some rows of one block; ``notes`` are for the block's commit record."""

    block: int
    rows: list[int]
    copies: HostArrays
    n_halved: int = 0
    notes: dict[str, Any] = field(default_factory=dict)


WholeBlock: TypeAlias = tuple[int, dict[str, np.ndarray], dict[str, Any]]


@dataclass
class _Block:
    """A block that is being filled by batches."""

    missing: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    n_halved: int = 0
    nonfinite: NonfiniteRows = field(default_factory=NonfiniteRows)
    noted: dict[str, Any] = field(default_factory=dict)

    def notes(self) -> dict[str, Any]:
        """Return what the commit record keeps of how the block came about."""
        halved = {"halved_batches": self.n_halved} if self.n_halved else {}
        return {**halved, **self.noted, **self.nonfinite.notes()}


@dataclass(frozen=True)
class _Rows:
    """Where the values of a batch belong in their block: of ``n_rows`` these spans, in order."""

    n_rows: int
    spans: list[tuple[int, int]]
    texts: list[int]  # the row number of the text of each span

    def joined(self) -> Iterator[tuple[int, int, int]]:
        """Yield (first, stop, where it begins in the batch) of spans that follow one another."""
        begin = done = 0
        for i, (start, stop) in enumerate(self.spans):
            if i == 0 or start != self.spans[i - 1][1]:
                first, begin = start, done
            done += stop - start
            if i + 1 == len(self.spans) or self.spans[i + 1][0] != stop:
                yield first, stop, begin


class Assembly:
    """Collects batches of a run into its blocks.

    Parameters
    ----------
    prepared
        The run.
    writer
        Takes the tokens: of a block whole they could be more than there is memory.
    locate
        Finds the token of a text that is not finite.
    records
        Whether what is not finite is stored as NaN and noted, rather than an error.
    """

    def __init__(
        self, prepared: PreparedRun, writer: RunWriter, *, locate: Locate, records: bool
    ) -> None:
        self._prepared = prepared
        self._writer = writer
        self._locate = locate
        self._records = records
        self._specs = {spec.name: spec for spec in prepared.plan.arrays}
        self._open: dict[int, _Block] = {}

    def add(self, batch: Batch) -> WholeBlock | None:
        """Add a batch; return its block when that was the last one it waited for.

        Raises
        ------
        NumericalError
            If a value is not finite, unless they are recorded.
        InvalidInputError, StorageError
            As ``RunWriter.add_tokens``.
        """
        span = self._prepared.plan.block_rows(batch.block)
        state = self._open.setdefault(batch.block, _Block(span.stop - span.start))
        state.n_halved += batch.n_halved
        state.noted |= batch.notes
        arrays = batch.copies.wait()
        tokens = {}
        for name, array in arrays.items():
            spec = self._specs[name]
            rows = self._rows(batch, of_tokens=spec.is_tokens)
            checked = self._check(array, spec, rows, state)
            if spec.is_tokens:
                tokens[name] = checked
            else:
                _fill(state.arrays, name, checked.float().numpy(), rows)
        if tokens:
            self._add_tokens(batch, tokens)
        del arrays
        batch.copies.release()
        state.missing -= len(batch.rows)
        if state.missing:
            return None
        filled = self._open.pop(batch.block)
        return batch.block, filled.arrays, filled.notes()

    def _rows(self, batch: Batch, *, of_tokens: bool) -> _Rows:
        """Return where a batch's texts, or their tokens, stand among those of the block."""
        span = self._prepared.plan.block_rows(batch.block)
        if not of_tokens:
            rows = [(row - span.start, row - span.start + 1) for row in batch.rows]
            return _Rows(span.stop - span.start, rows, batch.rows)
        offsets = self._prepared.token_data["token_offset"]
        first = int(offsets[span.start])
        tokens = [(int(offsets[r]) - first, int(offsets[r + 1]) - first) for r in batch.rows]
        return _Rows(int(offsets[span.stop]) - first, tokens, batch.rows)

    def _check(
        self, array: torch.Tensor, spec: ArraySpec, rows: _Rows, state: _Block
    ) -> torch.Tensor:
        """Return values as they are stored, in float32 where some are not finite."""
        if _is_finite(array):
            return array
        values = array.float().numpy()
        place = Place(spec, self._prepared.plan.layers_of(spec), self._locate)
        numbers = [t for t, (a, b) in zip(rows.texts, rows.spans, strict=True) for _ in range(a, b)]
        texts = [self._prepared.rows[number] for number in numbers]
        bad = nonfinite_layers(values)
        if not self._records:
            raise describe(bad, rows=texts, place=place)
        numbered = list(zip(numbers, texts, strict=True))
        return torch.from_numpy(state.nonfinite.blank(values, bad, rows=numbered, place=place))

    def _add_tokens(self, batch: Batch, tokens: Mapping[str, torch.Tensor]) -> None:
        """Give a batch's tokens to the writer, in pieces of some megabytes."""
        per_token = sum(4 * array[0].numel() for array in tokens.values())
        step = max(1, _PIECE_BYTES // per_token)
        for first, stop, begin in self._rows(batch, of_tokens=True).joined():
            for start in range(first, stop, step):
                low = begin + start - first
                high = low + min(step, stop - start)
                piece = {name: array[low:high].float().numpy() for name, array in tokens.items()}
                self._writer.add_tokens(batch.block, start, piece)


def _fill(arrays: dict[str, np.ndarray], name: str, values: np.ndarray, rows: _Rows) -> None:
    """Copy a batch's values to their rows of the block's array, which is made where it is not."""
    if name not in arrays:
        arrays[name] = np.empty((rows.n_rows, *values.shape[1:]), dtype=np.float32)
    for first, stop, begin in rows.joined():
        arrays[name][first:stop] = values[begin : begin + stop - first]


def _is_finite(array: torch.Tensor) -> bool:
    """Return whether every value is finite: NaN and infinity show in the extremes."""
    order = sorted(range(array.ndim), key=array.stride, reverse=True)  # as it lies: no copy
    return bool(torch.isfinite(torch.stack(torch.aminmax(array.permute(order)))).all())
