"""Whether the records of a sealed run agree, and the means to check many objects at once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..schemas import BlockCommit, CorruptError, NotFoundError, ObjectInfo, RunPlan, Seal
from .appending import text_ids_of
from .blocks import block_keys
from .documents import Documents
from .faults import Fault
from .layout import METADATA_NAME
from .parts import check_part, part_names, run_of
from .sealing import commits_digest, objects_digest, tree_digest
from .stored_coordinates import read_text_ids

if TYPE_CHECKING:
    from .store import Store

__all__ = ["continuation_faults", "draw", "each", "repeated_texts", "seal_faults"]

_ItemT = TypeVar("_ItemT")
_FoundT = TypeVar("_FoundT")


def seal_faults(
    plan: RunPlan, plan_id: str, *, seal: Seal, commits: list[BlockCommit]
) -> list[Fault]:
    """Return what in the seal contradicts the plan, the commits or itself."""
    faults = []
    there = {commit.block for commit in commits}
    for block in sorted(set(range(plan.n_blocks)) - there):
        rows = plan.block_rows(block)
        held = (rows.start, rows.stop)
        key = f"commits/{block}.json"
        faults.append(Fault(key, "no valid commit record", held, kind="commit"))
    keys = {key for block in range(plan.n_blocks) for key in block_keys(plan, block)}
    blocks = [info for info in seal.objects if info.key in keys]
    sealed = {info.key: info for info in seal.objects}
    for commit in commits:
        for info in commit.objects:
            if sealed.get(info.key) != info:
                held = (commit.row_start, commit.row_stop)
                faults.append(Fault(info.key, "the seal and its commit record differ", held))
    checks = (
        (seal.plan_id == plan_id, "it is of another plan"),
        (seal.n_blocks == plan.n_blocks, "its number of blocks is not the plan's"),
        (len(blocks) == len(keys), "objects of the plan are not in it"),
        (METADATA_NAME in sealed, "the metadata of the group is not in it"),
        (seal.n_objects == len(seal.objects), "its number of objects is wrong"),
        (len(sealed) == len(seal.objects), "it lists an object twice"),
        (seal.n_bytes == sum(info.n_bytes for info in seal.objects), "its size is wrong"),
        (seal.data_digest == objects_digest(blocks), "its data digest is wrong"),
        (seal.tree_digest == tree_digest(seal.plan_id, seal.objects), "its tree digest is wrong"),
        (
            len(there) < plan.n_blocks or seal.commits_digest == commits_digest(commits),
            "the commit records have changed",
        ),
    )
    return faults + [
        Fault("seal.json", reason, kind="seal") for holds, reason in checks if not holds
    ]


def continuation_faults(store: Store, plan: RunPlan) -> list[Fault]:
    """Return why a part does not continue the one before it."""
    try:
        check_part(store, plan)
    except (CorruptError, NotFoundError) as err:
        return [Fault("plan.json", str(err), kind="plan")]
    return []


def repeated_texts(store: Store, plan: RunPlan, documents: Documents) -> list[Fault]:
    """Return the texts of a part that an earlier part of the run has too."""
    names = part_names(store, run_of(plan.run))
    if plan.run not in names or "text" not in documents:
        return []
    faults = []
    try:
        mine = set(read_text_ids(store, plan, documents))
        for name in names[: names.index(plan.run)]:
            twice = sorted(mine & set(text_ids_of(store, name)))
            if twice:
                reason = f"text {twice[0]!r} stands in {name!r} already"
                faults.append(Fault("text/c/0", reason, kind="static"))
    except (CorruptError, NotFoundError):
        return faults  # found where it is damaged
    return faults


def each(
    function: Callable[[_ItemT], _FoundT], items: Iterable[_ItemT], *, n_threads: int
) -> Iterator[_FoundT]:
    """Yield ``function`` of each item in order; as many at once as there are threads."""
    with ThreadPoolExecutor(n_threads) as pool:
        running: deque[Future[_FoundT]] = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) >= n_threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def draw(objects: list[ObjectInfo], sample: float | None, *, seed: int) -> list[ObjectInfo]:
    """Return a share of the objects in their order, at least one of them."""
    if sample is None or not objects:
        return objects
    size = max(1, math.ceil(sample * len(objects)))
    drawn = np.random.default_rng(seed).choice(len(objects), size=size, replace=False)
    return [objects[i] for i in sorted(drawn)]
