"""The three stages of extraction: forward, copy off the device, encode and commit.

They overlap over bounded queues. A failure in any stage stops all of them and is raised with
its cause; blocks that were committed stay, so that running again resumes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import numpy as np
import torch

from ..schemas import NumericalError
from ..store import BlockClaimedError, RunWriter
from .engine import Engine
from .planning import PreparedRun
from .rendering import TokenRow

__all__ = ["Progress", "stream_blocks"]

_QUEUE_BATCHES = 4  # pooled batches in flight: kilobytes each
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


@dataclass
class _Block:
    """A block that is being filled by batches."""

    missing: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


_WholeBlock: TypeAlias = tuple[int, dict[str, np.ndarray]]
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
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> int:
    """Run ``blocks`` through the engine and commit each as soon as it is whole.

    Each is claimed before its first forward pass; what somebody else committed meanwhile is
    left out. Returns how many blocks were run.

    Raises
    ------
    BlockClaimedError
        If another living worker is at work on a block, unless ``skips_claimed``.
    NumericalError
        If an activation is NaN or infinite: the text and the layers are named.
    StorageError
        If the store fails; committed blocks stay.
    """
    n_run = 0
    stop = threading.Event()
    failures: list[BaseException] = []
    batches = _Pipe(_QUEUE_BATCHES, stop)
    whole = _Pipe(_QUEUE_BLOCKS, stop)

    def guarded(stage: Callable[[], None]) -> None:
        try:
            stage()
        except _Stopped:
            pass
        except BaseException as err:  # carried to the caller below  # noqa: BLE001
            failures.append(err)
            stop.set()

    def assemble() -> None:
        _assemble_blocks(prepared, batches, whole)

    def commit() -> None:
        while (item := whole.get()) is not _DONE:
            done = writer.write_block(*cast("_WholeBlock", item))
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
                batches.put(_start_copy(block, rows, engine.forward(chosen)))
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
    """Start copying pooled arrays off the device, into pinned memory where there is a GPU."""
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


def _assemble_blocks(prepared: PreparedRun, batches: _Pipe, whole: _Pipe) -> None:
    """Collect batches into blocks; send each block on when its last row has come."""
    plan = prepared.plan
    open_blocks: dict[int, _Block] = {}
    while (item := batches.get()) is not _DONE:
        batch = cast("_Batch", item)
        if batch.copied is not None:
            batch.copied.synchronize()
        span = plan.block_rows(batch.block)
        n_rows = span.stop - span.start
        state = open_blocks.setdefault(batch.block, _Block(n_rows))
        local = np.asarray(batch.rows) - span.start
        for name, tensor in batch.arrays.items():
            values = tensor.numpy()
            _check_finite(values, [prepared.rows[i] for i in batch.rows], name, plan.layers)
            if name not in state.arrays:
                state.arrays[name] = np.empty((n_rows, *values.shape[1:]), dtype=np.float32)
            state.arrays[name][local] = values
        state.missing -= len(batch.rows)
        if state.missing == 0:
            whole.put((batch.block, open_blocks.pop(batch.block).arrays))
    whole.put(_DONE)


def _check_finite(
    values: np.ndarray, rows: Sequence[TokenRow], name: str, layers: Sequence[int]
) -> None:
    """Raise NumericalError naming the first text and layer with NaN or infinity."""
    if np.isfinite(values).all():
        return
    bad = ~np.isfinite(values).reshape(values.shape[0], values.shape[1], -1).all(axis=-1)
    row, position = (int(i) for i in np.argwhere(bad)[0])
    msg = (
        f"{name} of text {rows[row].text.id!r} is not finite at layer {layers[position]} "
        f"(first of {int(bad.sum())} text-layers of its batch); use dtype bfloat16 or float32, or "
        "leave the text out"
    )
    raise NumericalError(msg)
