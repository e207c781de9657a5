"""The tokens of a block on their way into its chunks: a chunk is stored as soon as it is full."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ..schemas import InvalidInputError, ObjectInfo, RunPlan, TokenAxis

__all__ = ["TokenStream"]

CHUNKS_IN_FLIGHT = 2  # full ones, of all arrays and layers, that are encoded and stored

_StoreChunk = Callable[[str, np.ndarray[Any, Any]], ObjectInfo]


class TokenStream:
    """Collects the tokens of one block. Of memory it takes the chunks that are begun.

    Parameters
    ----------
    plan, axis, block
        Which tokens.
    store_chunk
        Encodes and stores one object.
    n_threads
        How many objects are encoded and stored at the same time.
    """

    def __init__(
        self,
        plan: RunPlan,
        axis: TokenAxis,
        block: int,
        *,
        store_chunk: _StoreChunk,
        n_threads: int,
    ) -> None:
        self._plan, self._axis, self._block = plan, axis, block
        self._specs = {spec.name: spec for spec in plan.arrays if spec.is_tokens}
        self._store_chunk = store_chunk
        tokens = axis.tokens(block)
        self._there = np.zeros(tokens.stop - tokens.start, dtype=bool)
        self._begun: dict[int, dict[str, np.ndarray[Any, Any]]] = {}
        self._left = {
            chunk: min(axis.rows_per_chunk, len(self._there) - chunk * axis.rows_per_chunk)
            for chunk in range(axis.chunk_edges[block + 1] - axis.chunk_edges[block])
        }
        self._pool = ThreadPoolExecutor(n_threads)
        self._running: deque[list[Future[ObjectInfo]]] = deque()
        self._stored: dict[str, ObjectInfo] = {}

    @property
    def n_missing(self) -> int:
        """Tokens of the block that were not added."""
        return int((~self._there).sum())

    def add(self, start: int, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Add tokens of the block from number ``start`` on; wait where storing cannot keep up.

        Raises
        ------
        InvalidInputError
            If an array is missing, unknown or of another shape or type, or a token is no token
            of the block or was added before. Nothing was added.
        """
        stop = self._check(start, arrays)
        if stop == start:
            return  # or a chunk that is stored would be begun anew
        self._there[start:stop] = True
        size = self._axis.rows_per_chunk
        for chunk in range(start // size, -(-stop // size)):
            first = chunk * size
            low, high = max(start, first), min(stop, first + size)
            begun = self._begun.setdefault(chunk, {})
            for name, values in arrays.items():
                if name not in begun:
                    begun[name] = self._new_chunk(chunk, values.shape[1:])
                part = values[low - start : high - start]
                begun[name][:, low - first : high - first] = part.transpose(1, 0, 2)
            self._left[chunk] -= high - low
            if not self._left[chunk]:
                self._submit(chunk)

    def _new_chunk(self, chunk: int, of_token: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Return room for a chunk, dims (token_layer, token, hidden): a layer is an object."""
        n_layers, hidden = of_token
        size = self._axis.rows_per_chunk
        values = np.empty((n_layers, size, hidden), dtype=np.float32)
        values[:, self._left[chunk] :] = np.nan  # rows of the last chunk that no token has
        return values

    def _check(self, start: int, arrays: Mapping[str, np.ndarray[Any, Any]]) -> int:
        """Return the end of the span that is added; raise where it does not fit."""
        where = f"run {self._plan.run!r}, block {self._block}"
        if set(arrays) != set(self._specs):
            expected = sorted(self._specs)
            msg = f"{where}: expected token arrays {expected}, got {sorted(arrays)}"
            raise InvalidInputError(msg)
        n_rows = len(next(iter(arrays.values())))
        for name, values in arrays.items():
            shape = (n_rows, *self._specs[name].shape[1:])
            if values.shape != shape or values.dtype != np.float32:
                got = f"{values.dtype} {values.shape}"
                msg = f"{where}: array {name!r} is {got}, expected float32 {shape}"
                raise InvalidInputError(msg)
        n_tokens = len(self._there)
        if not 0 <= start <= start + n_rows <= n_tokens:
            span = f"{start} to {start + n_rows}"
            msg = f"{where} has tokens 0 to {n_tokens}, got {span}"
            raise InvalidInputError(msg)
        twice = np.flatnonzero(self._there[start : start + n_rows])
        if twice.size:
            msg = f"{where}: token {start + int(twice[0])} was added before"
            raise InvalidInputError(msg)
        return start + n_rows

    def _submit(self, chunk: int) -> None:
        """Have a full chunk stored, all arrays and layers of it."""
        begun = self._begun.pop(chunk)
        number = self._axis.chunk_edges[self._block] + chunk
        running = []
        for name, values in begun.items():
            for layer, part in enumerate(values):
                key = f"{name}/c/{number}/{layer}/0"
                running.append(self._pool.submit(self._store_chunk, key, part[:, None]))
        self._running.append(running)
        while len(self._running) > CHUNKS_IN_FLIGHT:
            self._collect()

    def _collect(self) -> None:
        for future in self._running.popleft():
            info = future.result()
            self._stored[info.key] = info

    def finish(self) -> dict[str, ObjectInfo]:
        """Return every object of the block's token arrays by key, when all are stored.

        Raises
        ------
        InvalidInputError
            If tokens of the block were not added.
        """
        if self.n_missing:
            first = int(np.argmin(self._there))
            msg = (
                f"run {self._plan.run!r}, block {self._block}: {self.n_missing} of "
                f"{len(self._there)} tokens were not added, the first is {first}"
            )
            raise InvalidInputError(msg)
        while self._running:
            self._collect()
        self._pool.shutdown()
        return self._stored

    def abandon(self) -> None:
        """Drop what was not stored; what is being stored ends first."""
        self._begun.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
