"""How far a run is, over all its workers: from commit records and claims, read by anybody."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from ..schemas import BlockClaim, BlockCommit, CorruptError
from .block_claims import LEASE_SECONDS
from .parts import part_names

if TYPE_CHECKING:
    from .store import Store

__all__ = ["RunProgress", "WorkerProgress", "run_progress"]

_CLAIM = re.compile(r"(\d{1,12})\.(\d{1,5})\.json")


@dataclass(frozen=True)
class WorkerProgress:
    """One process: what it committed, what it has claimed, seconds since its last sign of life."""

    writer: str
    blocks: int
    texts: int
    claimed: tuple[int, ...]
    seconds_ago: float


@dataclass(frozen=True)
class RunProgress:
    """A whole run, with what is appended to it: what is committed, what is known of the rest.

    ``sealed`` says that the run and all that is appended to it are. ``texts_per_second`` is over
    the time between the first commit and the last of the newest part (the run itself, where
    nothing was appended), all workers together; None before two moments of it are known.
    ``seconds_left`` follows from it.
    """

    run: str
    sealed: bool
    blocks: int
    blocks_committed: int
    texts: int
    texts_committed: int
    bytes_committed: int
    texts_per_second: float | None
    seconds_left: float | None
    workers: tuple[WorkerProgress, ...]


def run_progress(store: Store, run_id: str) -> RunProgress:
    """Return how far a run is; raise NotFoundError, or CorruptError."""
    commits: list[BlockCommit] = []
    claims: list[BlockClaim] = []
    plans = []
    names = part_names(store, run_id)
    newest: list[BlockCommit] = []
    for name in names:
        plan, newest = store.read_plan(name), store.read_commits(name)
        plans.append(plan)
        commits += newest
        claims += _living_claims(store, name, committed={commit.block for commit in newest})
    n_texts = sum(plan.n_texts for plan in plans)
    done = sum(commit.row_stop - commit.row_start for commit in commits)
    speed = _speed(newest)  # days may lie between a run and what is appended to it
    return RunProgress(
        run=run_id,
        sealed=all(store.read_seal(name) is not None for name in names),
        blocks=sum(plan.n_blocks for plan in plans),
        blocks_committed=len(commits),
        texts=n_texts,
        texts_committed=done,
        bytes_committed=sum(info.n_bytes for commit in commits for info in commit.objects),
        texts_per_second=speed,
        seconds_left=(n_texts - done) / speed if speed else None,
        workers=_workers(commits, claims),
    )


def _living_claims(store: Store, run_id: str, *, committed: set[int]) -> list[BlockClaim]:
    """Return the newest claim of each block that is not committed, unless it was given up."""
    keys = store.keys(run_id)
    newest: dict[int, int] = {}
    for name in store.backend.children(keys.claims):
        match = _CLAIM.fullmatch(name)
        if match and int(match[1]) not in committed:
            newest[int(match[1])] = max(int(match[2]), newest.get(int(match[1]), 0))
    claims = []
    for block, generation in sorted(newest.items()):
        try:
            claim = store.read_record(BlockClaim, keys.claim(block, generation))
        except CorruptError:
            continue  # a claim protects nothing, and says nothing that data depends on
        if claim is not None and not claim.released:
            claims.append(claim)
    return claims


def _workers(
    commits: Sequence[BlockCommit], claims: Sequence[BlockClaim]
) -> tuple[WorkerProgress, ...]:
    """Return the processes at work, and those that committed, by their names."""
    moment, found = time.time(), []
    for writer in sorted({c.writer for c in commits} | {c.writer for c in claims}):
        mine = [commit for commit in commits if commit.writer == writer]
        held = [c for c in claims if c.writer == writer and moment - c.renewed_at < LEASE_SECONDS]
        signs = [_seconds(c.committed_at) for c in mine]
        signs += [c.renewed_at for c in claims if c.writer == writer]
        found.append(
            WorkerProgress(
                writer=writer,
                blocks=len(mine),
                texts=sum(commit.row_stop - commit.row_start for commit in mine),
                claimed=tuple(claim.block for claim in held),
                seconds_ago=max(0.0, moment - max(signs)),
            )
        )
    return tuple(found)


def _speed(commits: Sequence[BlockCommit]) -> float | None:
    """Return texts per second between the first commit and the last.

    What was committed in the first second took time that nobody noted, so it does not count.
    """
    moments = [_seconds(commit.committed_at) for commit in commits]
    if len(moments) < 2 or max(moments) == min(moments):
        return None
    counted = sum(
        commit.row_stop - commit.row_start
        for commit, moment in zip(commits, moments, strict=True)
        if moment > min(moments)
    )
    return counted / (max(moments) - min(moments))


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0  # a store may come from anybody
