"""Verifying a run: every stored byte against what was committed and sealed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..schemas import (
    BlockCommit,
    CorruptError,
    InvalidInputError,
    ObjectInfo,
    RunPlan,
    Seal,
)
from .commits import check_commit
from .layout import METADATA_NAME, RunKeys, block_keys, rows_of_key
from .sealing import commits_digest, objects_digest, tree_digest
from .store import Store

__all__ = ["Fault", "VerifyReport", "verify_run"]


@dataclass(frozen=True)
class Fault:
    """One object that is not what was committed, and the rows it holds (first, stop)."""

    key: str
    reason: str
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class VerifyReport:
    """What was read, and what was wrong."""

    run: str
    sealed: bool
    n_objects: int
    n_bytes: int
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was wrong."""
        return not self.faults


def verify_run(
    store: Store,
    run_id: str,
    *,
    layers: Collection[int] | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> VerifyReport:
    """Fetch the objects of a run and hold their sizes and hashes against the manifest.

    Of an unsealed run the committed objects are verified.

    Parameters
    ----------
    store, run_id
        The run.
    layers
        Only objects of these layers (block indices of the model), and those of no layer.
    sample
        Only this many objects, drawn with ``seed``.
    seed
        The seed of the draw.

    Raises
    ------
    NotFoundError
        If there is no such run.
    InvalidInputError
        If a layer is not in the run or ``sample`` is not positive.
    """
    plan, plan_id = store.read_plan_and_id(run_id)
    chosen = _layer_indices(plan, layers)
    if sample is not None and sample < 1:
        msg = f"sample must be at least 1 object, got {sample}"
        raise InvalidInputError(msg)
    seal = store.read_seal(run_id)
    commits, faults = _read_commits(store, plan, plan_id)
    if seal is None:
        objects = [info for commit in commits for info in commit.objects]
    else:
        objects = list(seal.objects)
        faults += _seal_faults(plan, plan_id, seal=seal, commits=commits)
    if layers is not None:
        objects = [info for info in objects if _in_layers(plan, info.key, chosen)]
    if sample is not None and sample < len(objects):
        draw = np.random.default_rng(seed).choice(len(objects), size=sample, replace=False)
        objects = [objects[i] for i in sorted(draw)]

    def check(info: ObjectInfo) -> Fault | None:
        reason = _object_fault(store, RunKeys(run_id).object(info.key), info)
        return Fault(info.key, reason, rows_of_key(plan, info.key)) if reason else None

    with ThreadPoolExecutor(8) as pool:
        faults += [fault for fault in pool.map(check, objects) if fault is not None]
    return VerifyReport(
        run=run_id,
        sealed=seal is not None,
        n_objects=len(objects),
        n_bytes=sum(info.n_bytes for info in objects),
        faults=tuple(faults),
    )


def _object_fault(store: Store, key: str, info: ObjectInfo) -> str | None:
    """Return what is wrong with a stored object, None where it is as committed."""
    try:
        data = store.backend.get(key, max_bytes=info.n_bytes)
    except CorruptError:
        return f"larger than the {info.n_bytes} bytes that were committed"
    if data is None:
        return "missing"
    if len(data) != info.n_bytes:
        return f"{len(data)} bytes, {info.n_bytes} were committed"
    if hashlib.sha256(data).hexdigest() != info.sha256:
        return "its sha256 is not the committed one"
    return None


def _read_commits(
    store: Store, plan: RunPlan, plan_id: str
) -> tuple[list[BlockCommit], list[Fault]]:
    """Return the readable commit records of the plan, and a fault for each other one."""
    commits, faults = [], []
    for block in store.committed_blocks(plan.run):
        try:
            commit = store.read_commit(plan.run, block)
            if commit is not None:
                check_commit(plan, commit, plan_id=plan_id, where=store.url)
                commits.append(commit)
        except CorruptError as err:
            rows = plan.block_rows(block)
            faults.append(Fault(f"commits/{block}.json", str(err), (rows.start, rows.stop)))
    return commits, faults


def _seal_faults(
    plan: RunPlan, plan_id: str, *, seal: Seal, commits: list[BlockCommit]
) -> list[Fault]:
    """Return what in the seal contradicts the plan, the commits or itself."""
    faults = []
    there = {commit.block for commit in commits}
    for block in sorted(set(range(plan.n_blocks)) - there):
        rows = plan.block_rows(block)
        faults.append(
            Fault(f"commits/{block}.json", "no valid commit record", (rows.start, rows.stop))
        )
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
        (len(blocks) == len(keys), "objects of the plan are not in it"),
        (METADATA_NAME in sealed, "the metadata of the group is not in it"),
        (seal.n_objects == len(seal.objects), "its number of objects is wrong"),
        (seal.n_bytes == sum(info.n_bytes for info in seal.objects), "its size is wrong"),
        (seal.data_digest == objects_digest(blocks), "its data digest is wrong"),
        (seal.tree_digest == tree_digest(seal.plan_id, seal.objects), "its tree digest is wrong"),
        (seal.commits_digest == commits_digest(commits), "the commit records have changed"),
    )
    return faults + [Fault("seal.json", reason) for holds, reason in checks if not holds]


def _layer_indices(plan: RunPlan, layers: Collection[int] | None) -> set[int]:
    known = {layer: index for index, layer in enumerate(plan.layers)}
    unknown = sorted(set(layers or ()) - set(known))
    if unknown:
        msg = f"run {plan.run!r} has no layers {unknown}; it has {list(plan.layers)}"
        raise InvalidInputError(msg)
    return {known[layer] for layer in layers or ()}


def _in_layers(plan: RunPlan, key: str, chosen: set[int]) -> bool:
    """Return whether an object belongs to a chosen layer or to none."""
    if rows_of_key(plan, key) is None:
        return True
    place = key.partition("/c/")[2].split("/")
    return len(place) < 3 or int(place[1]) in chosen
