"""The three stages of extraction: forward, copy off the device, encode and commit.

They overlap over bounded queues. A failure in any stage stops all of them and is raised with
its cause; blocks that were committed stay, so that running again resumes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import numpy as np
import torch

from ..store import BlockClaimedError, RunWriter
from .engine import Engine, LocatesNonfinite
from .nonfinite import Locate, NonfiniteRows, Place, describe, nonfinite_layers
from .planning import PreparedRun
from .rendering import TokenRow

__all__ = ["TOKEN_BATCHES", "Progress", "stream_blocks"]

_QUEUE_BATCHES = 4  # pooled batches in flight: kilobytes each
TOKEN_BATCHES = 1  # with token arrays: gigabytes each
_QUEUE_BLOCKS = 1  # whole blocks waiting for the encoder: the bulk of the memory


@dataclass(frozen=True)
class Progress:
    """What was done since the last report."""

    texts: int = 0
    tokens: int = 0
    committed_texts: int = 0
    committed_bytes: int = 0


@dataclass
class _Batch:
    block: int
    rows: list[int]
    arrays: dict[str, torch.Tensor]
    copied: torch.cuda.Event | None = None
    n_halved: int = 0


@dataclass
class _Block:
    """A block that is being filled by batches."""

    missing: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    n_halved: int = 0
    nonfinite: NonfiniteRows = field(default_factory=NonfiniteRows)

    def notes(self) -> dict[str, Any]:
        """Return what the commit record keeps of how the block came about."""
        halved = {"halved_batches": self.n_halved} if self.n_halved else {}
        return {**halved, **self.nonfinite.notes()}


_WholeBlock: TypeAlias = tuple[int, dict[str, np.ndarray], dict[str, Any]]
_DONE = object()


class _Stopped(Exception):  # a signal between stages
    """Another stage failed: leave quietly, the cause is raised by the caller."""


class _Pipe:
    """A bounded queue that gives up when the pipeline stops."""

    def __init__(self, size: int, stop: threading.Event) -> None:
        self._queue: queue.Queue[object] = queue.Queue(size)
        self._stop = stop

    def put(self, item: object) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
        raise _Stopped

    def get(self) -> object:
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
        raise _Stopped


def stream_blocks(
    prepared: PreparedRun,
    engine: Engine,
    writer: RunWriter,
    *,
    blocks: Sequence[int],
    skips_claimed: bool = False,
    records_nonfinite: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> int:
    """Run ``blocks`` through the engine and commit each as soon as it is whole.

    Each is claimed before its first forward pass; what somebody else committed meanwhile is
    left out. With ``records_nonfinite`` vectors with NaN or infinity are stored as NaN, and their
    rows are noted in the commit record; so are batches that ran in halves for want of memory.
    Returns how many blocks were run.

    Raises
    ------
    BlockClaimedError
        If another living worker is at work on a block, unless ``skips_claimed``.
    NumericalError
        If an activation is NaN or infinite, unless they are recorded: the first text, layer and
        token are named.
    StorageError
        If the store fails; committed blocks stay.
    """
    n_run = 0
    stop = threading.Event()
    failures: list[BaseException] = []
    batches = _Pipe(TOKEN_BATCHES if prepared.plan.token_axis else _QUEUE_BATCHES, stop)
    whole = _Pipe(_QUEUE_BLOCKS, stop)

    def guarded(stage: Callable[[], None]) -> None:
        try:
            stage()
        except _Stopped:
            pass
        except BaseException as err:  # carried to the caller below  # noqa: BLE001
            failures.append(err)
            stop.set()

    at_work = threading.Lock()  # two stages may ask the engine something

    def locate(row: TokenRow, site: str, layer: int) -> int | None:
        if not isinstance(engine, LocatesNonfinite):
            return None
        with at_work:
            return engine.nonfinite_position(row, site=site, layer=layer)

    def assemble() -> None:
        _assemble_blocks(prepared, batches, whole, locate=locate, records=records_nonfinite)

    def commit() -> None:
        while (item := whole.get()) is not _DONE:
            block, arrays, notes = cast("_WholeBlock", item)
            done = writer.write_block(block, arrays, notes=notes)
            n_bytes = sum(o.n_bytes for o in done.objects)
            texts = done.row_stop - done.row_start
            on_progress(Progress(committed_texts=texts, committed_bytes=n_bytes))

    threads = [
        threading.Thread(target=guarded, args=(stage,), name=name, daemon=True)
        for stage, name in ((assemble, "actlake-copy"), (commit, "actlake-commit"))
    ]
    for thread in threads:
        thread.start()
    try:
        for block in blocks:
            if not _claim(writer, block, skips=skips_claimed):
                continue
            n_run += 1
            for rows in prepared.batches(block):
                chosen = [prepared.rows[i] for i in rows]
                with at_work:
                    before = getattr(engine, "n_halved", 0)
                    batch = _start_copy(block, rows, engine.forward(chosen))
                    batch.n_halved = getattr(engine, "n_halved", 0) - before
                batches.put(batch)
                on_progress(Progress(texts=len(rows), tokens=sum(r.n_tokens for r in chosen)))
        batches.put(_DONE)
    except _Stopped:
        pass
    except BaseException:
        stop.set()
        raise
    finally:
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return n_run


def _claim(writer: RunWriter, block: int, *, skips: bool) -> bool:
    try:
        return writer.claim_block(block)
    except BlockClaimedError:
        if not skips:
            raise
        return False


def _start_copy(block: int, rows: list[int], arrays: dict[str, torch.Tensor]) -> _Batch:
    """Start copying arrays off the device, into pinned memory where there is a GPU."""
    if next(iter(arrays.values())).device.type != "cuda":
        return _Batch(block, rows, {name: a.cpu() for name, a in arrays.items()})
    host = {
        name: torch.empty(a.shape, dtype=a.dtype, pin_memory=True) for name, a in arrays.items()
    }
    for name, array in arrays.items():
        host[name].copy_(array, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return _Batch(block, rows, host, event)


def _assemble_blocks(
    prepared: PreparedRun, batches: _Pipe, whole: _Pipe, *, locate: Locate, records: bool
) -> None:
    """Collect batches into blocks; send each block on when its last row has come."""
    plan = prepared.plan
    specs = {spec.name: spec for spec in plan.arrays}
    open_blocks: dict[int, _Block] = {}
    while (item := batches.get()) is not _DONE:
        batch = cast("_Batch", item)
        if batch.copied is not None:
            batch.copied.synchronize()
        span = plan.block_rows(batch.block)
        state = open_blocks.setdefault(batch.block, _Block(span.stop - span.start))
        state.n_halved += batch.n_halved
        for name, tensor in batch.arrays.items():
            spec = specs[name]
            places = _places(prepared, batch, of_tokens=spec.is_tokens)
            if bool(torch.isfinite(tensor).all()):
                values = tensor.float().numpy()
            else:
                place = Place(spec, plan.layers_of(spec), locate)
                values = _settle(
                    prepared,
                    tensor.float().numpy(),
                    places,
                    state=state,
                    place=place,
                    records=records,
                )
            if name not in state.arrays:
                n_rows = places.n_rows
                state.arrays[name] = np.empty((n_rows, *values.shape[1:]), dtype=np.float32)
            target, done = state.arrays[name], 0
            for start, stop in places.spans:
                target[start:stop] = values[done : done + stop - start]
                done += stop - start
        state.missing -= len(batch.rows)
        if state.missing == 0:
            filled = open_blocks.pop(batch.block)
            whole.put((batch.block, filled.arrays, filled.notes()))
    whole.put(_DONE)


@dataclass(frozen=True)
class _Places:
    """Where the values of a batch belong in their block: of ``n_rows`` these spans, in order."""

    n_rows: int
    spans: list[tuple[int, int]]
    texts: list[int]  # the row number of the text of each span


def _places(prepared: PreparedRun, batch: _Batch, *, of_tokens: bool) -> _Places:
    """Return where a batch's texts, or their tokens, stand among those of the block."""
    span = prepared.plan.block_rows(batch.block)
    if not of_tokens:
        rows = [(row - span.start, row - span.start + 1) for row in batch.rows]
        return _Places(span.stop - span.start, rows, batch.rows)
    offsets = prepared.token_data["token_offset"]
    first = int(offsets[span.start])
    tokens = [(int(offsets[r]) - first, int(offsets[r + 1]) - first) for r in batch.rows]
    return _Places(int(offsets[span.stop]) - first, tokens, batch.rows)


def _settle(
    prepared: PreparedRun,
    values: np.ndarray,
    places: _Places,
    *,
    state: _Block,
    place: Place,
    records: bool,
) -> np.ndarray:
    """Return values that are not finite as they are stored; raise NumericalError where none are."""
    numbers = [t for t, (a, b) in zip(places.texts, places.spans, strict=True) for _ in range(a, b)]
    rows = [prepared.rows[number] for number in numbers]
    bad = nonfinite_layers(values)
    if not records:
        raise describe(bad, rows=rows, place=place)
    numbered = list(zip(numbers, rows, strict=True))
    return state.nonfinite.blank(values, bad, rows=numbered, place=place)
