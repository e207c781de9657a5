"""Whose bytes of a block count: the rules that make two writers of one block harmless.

Object keys are Zarr's, the same for every writer, and two forward passes are not bit-identical,
so that bytes of two writers must never be mixed. Where the storage honours create-only PUTs:

1. Before a block is decided, its objects are only ever created, never overwritten.
2. A writer that finds a key taken by other bytes (a killed writer's) stages its own elsewhere.
3. When all its bytes lie in the storage, it creates ``decisions/<block>.json``: the first wins.
   From then on every key of the block is taken, so no other writer can create one.
4. What overwrites, overwrites with the decided bytes: from the staged copies, by whoever comes
   first. So a request that is delivered twice, or late, or by a writer that was thought dead,
   writes what is there already.
5. Then the commit record is created, the decided one, and readers see the block.

No clock, no lease and no lock takes part in this.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from ..schemas import BlockCommit, BlockDecision, CorruptError, RunPlan, StorageError
from .backend import Data
from .commits import check_commit
from .layout import RunKeys

if TYPE_CHECKING:
    from .store import Store

__all__ = [
    "OBJECT_BYTES",
    "create_or_read",
    "finish_block",
    "is_ours",
    "read_decision",
    "sweep_run",
]

OBJECT_BYTES = 2**31  # blosc's own limit
_RECORD_BYTES = 2**26
_TRIES = 4


def create_or_read(store: Store, key: str, data: bytes) -> bytes:
    """Create a record under ``key`` and return it, or the one that was there first."""
    for _ in range(_TRIES):
        if store.create(key, data) and store.info.create_only:
            return data
        there = store.backend.get(key, max_bytes=_RECORD_BYTES)
        if there is not None:
            return there
    msg = f"{key} in {store.url} was refused as existing, but is not there; run again"
    raise StorageError(msg)


def is_ours(store: Store, key: str, data: Data) -> bool:
    """Create an object under ``key``; return whether these bytes lie there now."""
    for _ in range(_TRIES):
        if store.backend.create(key, data):
            return True
        size = store.backend.size(key)
        if size == len(data):
            return store.backend.get(key, max_bytes=OBJECT_BYTES) == data
        if size is not None:
            return False
    msg = f"{key} in {store.url} was refused as existing, but is not there; run again"
    raise StorageError(msg)


def read_decision(store: Store, plan: RunPlan, block: int, *, plan_id: str) -> BlockDecision | None:
    """Return the decision on a block, None where there is none yet."""
    key = RunKeys(plan.run).decision(block)
    decision = store.read_record(BlockDecision, key, max_bytes=_RECORD_BYTES)
    if decision is None:
        return None
    check_commit(plan, decision.commit, plan_id=plan_id, where=store.url)
    if decision.commit.block != block:
        msg = f"{key} in {store.url} is the decision on block {decision.commit.block}"
        raise CorruptError(msg)
    return decision


def finish_block(store: Store, plan: RunPlan, decision: BlockDecision) -> BlockCommit:
    """Put staged objects in their place and create the commit record; return it.

    Any worker may do so, several at once, and again after a kill at any point.
    """
    keys = RunKeys(plan.run)
    commit = decision.commit
    hashes = {info.key: info.sha256 for info in commit.objects}
    if not set(decision.staged) <= set(hashes):
        msg = f"{keys.decision(commit.block)} in {store.url} stages objects of another block"
        raise CorruptError(msg)

    def settle(key: str) -> None:
        staged = store.backend.get(
            f"{keys.staged}/{decision.staged_in}/{key}", max_bytes=OBJECT_BYTES
        )
        if staged is not None and hashlib.sha256(staged).hexdigest() == hashes[key]:
            store.backend.put(keys.object(key), staged)
            return
        # Another worker was faster and has removed the staged copy; or nobody can help.
        final = store.backend.get(keys.object(key), max_bytes=OBJECT_BYTES)
        if final is None or hashlib.sha256(final).hexdigest() != hashes[key]:
            msg = (
                f"{keys.object(key)} in {store.url} is not what was decided for block "
                f"{commit.block}, and its staged copy is gone; delete "
                f"{keys.decision(commit.block)} and the block's objects, and run again"
            )
            raise CorruptError(msg)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(settle, decision.staged))
    key = keys.commit(commit.block)
    data = create_or_read(store, key, commit.to_json(indent=None).encode())
    there = store.parse_record(BlockCommit, data, key=key)
    if there.objects != commit.objects:
        msg = f"{key} in {store.url} is not what was decided; verify the run"
        raise CorruptError(msg)
    for name in decision.staged:
        store.backend.delete(f"{keys.staged}/{decision.staged_in}/{name}")
    return there


def sweep_run(store: Store, run: str) -> None:
    """Remove the claims and staged copies of a run whose blocks are all committed."""
    keys = RunKeys(run)
    for folder in (keys.claims, keys.staged):
        for key, _ in list(store.backend.walk(folder)):
            store.backend.delete(key)
