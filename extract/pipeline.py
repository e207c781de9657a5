"""The three stages of extraction: forward, copy off the device, encode and commit.

They overlap over bounded queues. A failure in any stage stops all of them and is raised with
its cause; blocks that were committed stay, so that running again resumes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..store import BlockClaimedError, RunWriter
from .assembly import Assembly, Batch, WholeBlock
from .engine import Engine, LocatesNonfinite
from .host_copies import HostCopies
from .parity import ParitySample
from .pipe import Pipe, Stopped
from .planning import PreparedRun
from .rendering import TokenRow

__all__ = ["TOKEN_BATCHES", "Progress", "stream_blocks"]

_BATCHES = 4  # pooled batches off the device and not yet in their block: kilobytes each
TOKEN_BATCHES = 2  # with token arrays, gigabytes each: one is copied while one is stored
_QUEUE_BLOCKS = 1  # whole blocks waiting for the encoder


@dataclass(frozen=True)
class Progress:
    """What was done since the last report."""

    texts: int = 0
    tokens: int = 0
    committed_texts: int = 0
    committed_bytes: int = 0


def stream_blocks(
    prepared: PreparedRun,
    engine: Engine,
    writer: RunWriter,
    *,
    blocks: Sequence[int],
    skips_claimed: bool = False,
    records_nonfinite: bool = False,
    notes: Mapping[str, Any] | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> int:
    """Run ``blocks`` through the engine and commit each as soon as it is whole.

    Each is claimed before its first forward pass; what somebody else committed meanwhile is
    left out. With ``records_nonfinite`` vectors with NaN or infinity are stored as NaN, and their
    rows are noted in the commit record; so are batches that ran in halves for want of memory,
    ``notes`` about the engine, and how far a few texts are off that were run once more alone.
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
    n_batches = TOKEN_BATCHES if prepared.plan.token_axis else _BATCHES
    copies = HostCopies(n_batches, stop)
    batches: Pipe[Batch | None] = Pipe(n_batches, stop)  # None: there are no more
    whole: Pipe[WholeBlock | None] = Pipe(_QUEUE_BLOCKS, stop)
    parity = ParitySample(prepared.plan)

    def guarded(stage: Callable[[], None]) -> None:
        try:
            stage()
        except Stopped:
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
        assembly = Assembly(prepared, writer, locate=locate, records=records_nonfinite)
        while (batch := batches.get()) is not None:
            block = assembly.add(batch)
            if block is not None:
                whole.put(block)
        whole.put(None)

    def commit() -> None:
        while (item := whole.get()) is not None:
            block, arrays, noted = item
            done = writer.write_block(block, arrays, notes={**(notes or {}), **noted})
            n_bytes = sum(o.n_bytes for o in done.objects)
            texts = done.row_stop - done.row_start
            on_progress(Progress(committed_texts=texts, committed_bytes=n_bytes))

    def run_batch(block: int, rows: list[int], *, samples: bool) -> Batch:
        chosen = [prepared.rows[i] for i in rows]
        with at_work:
            before = getattr(engine, "n_halved", 0)
            arrays = engine.forward(chosen)
            n_halved = getattr(engine, "n_halved", 0) - before
            if samples and not parity.is_whole:
                parity.add(engine, chosen, arrays)
        batch = Batch(block, rows, copies.start(arrays), n_halved)
        if samples:
            batch.notes = parity.notes()
        return batch

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
                batches.put(run_batch(block, rows, samples=n_run == 1))
                n_tokens = sum(prepared.rows[i].n_tokens for i in rows)
                on_progress(Progress(texts=len(rows), tokens=n_tokens))
        batches.put(None)
    except Stopped:
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
