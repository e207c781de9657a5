"""What of a run is copied: the run as its source has it, and the parts that were asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..schemas import (
    BlockCommit,
    CorruptError,
    InvalidInputError,
    NotPulledError,
    ObjectInfo,
    RunPlan,
    Seal,
    near_names,
)
from .blocks import block_keys
from .commits import check_commit
from .documents import Documents, read_documents, static_chunk_keys
from .input_checks import check_plan
from .layout import METADATA_NAME, RunKeys
from .partial import (
    Coverage,
    LeftOut,
    coverage_of,
    no_coverage,
    pool_of,
    read_pulled,
    sealed_root_key,
)
from .reader import open_run
from .sealing import tree_digest
from .store import Store

__all__ = ["SourceRun", "check_splits", "choose", "read_source"]


@dataclass(frozen=True)
class SourceRun:
    """A checked run of a source.

    ``objects`` are those of its seal, or of its commit records; ``blocks`` the committed ones;
    ``static_keys`` its metadata and coordinates.
    """

    store: Store
    plan: RunPlan
    plan_id: str
    seal: Seal | None
    commits: dict[int, BlockCommit] = field(repr=False)
    documents: Documents = field(repr=False)
    objects: dict[str, ObjectInfo] = field(repr=False)
    static_keys: list[str] = field(repr=False)
    left_out: LeftOut | None

    @property
    def blocks(self) -> list[int]:
        """The committed blocks."""
        return list(range(self.plan.n_blocks)) if self.seal else sorted(self.commits)

    @property
    def root_key(self) -> str:
        """Where the group's document lies, as it was sealed."""
        if self.left_out is not None and self.seal is not None:
            return sealed_root_key(self.plan.run)
        return RunKeys(self.plan.run).object(METADATA_NAME)


def read_source(store: Store, run_id: str) -> SourceRun:
    """Return a run of ``store`` with everything that decides which objects it has.

    Raises
    ------
    NotFoundError
        If there is no such run.
    CorruptError
        If its records contradict each other, or name objects that the plan does not have.
    """
    plan, plan_id = store.read_plan_and_id(run_id)
    try:
        check_plan(plan)
    except InvalidInputError as err:
        msg = f"the plan of run {run_id!r} in {store.url} cannot be: {err}"
        raise CorruptError(msg) from err
    manifest = store.read_manifest(run_id)
    seal = store.read_seal(run_id)
    commits: dict[int, BlockCommit] = {}
    if seal is None:
        for commit in store.read_commits(run_id):
            check_commit(plan, commit, plan_id=plan_id, where=store.url)
            commits[commit.block] = commit
    record = read_pulled(store, plan, plan_id)
    if manifest.plan_id != plan_id or (seal is not None and seal.plan_id != plan_id):
        msg = f"run.json or seal.json of run {run_id!r} in {store.url} is not of its plan"
        raise CorruptError(msg)
    documents = read_documents(store, plan, seal, partial=record is not None)
    left_out = None
    if record is not None:
        held = coverage_of(plan, record, where=store.url)
        left_out = LeftOut(plan, held, where=store.url, source=record.source)
    static = [METADATA_NAME, *(f"{name}/{METADATA_NAME}" for name in documents if name)]
    static += [key for _, key in static_chunk_keys(plan, documents)]
    if seal is not None:
        _check_seal(plan, seal, plan_id, static=static, where=store.url)
        objects = {info.key: info for info in seal.objects}
    else:
        objects = {info.key: info for commit in commits.values() for info in commit.objects}
    return SourceRun(store, plan, plan_id, seal, commits, documents, objects, static, left_out)


def _check_seal(plan: RunPlan, seal: Seal, plan_id: str, *, static: list[str], where: str) -> None:
    """Raise CorruptError where a seal lists other objects than the run has."""
    run = f"the seal of run {plan.run!r} in {where}"
    n_expected = plan.n_objects + len(static)
    odd: list[str] = []
    if len(seal.objects) == n_expected:  # before so many keys are made
        expected = {key for block in range(plan.n_blocks) for key in block_keys(plan, block)}
        odd = sorted((expected | set(static)) ^ {info.key for info in seal.objects})
    if odd or len(seal.objects) != n_expected:
        shown = f", such as {odd[0][:80]!r}" if odd else ""
        msg = (
            f"{run} lists {len(seal.objects)} objects, but not the {n_expected} of its plan"
            f"{shown}; nothing was copied"
        )
        raise CorruptError(msg)
    if seal.tree_digest != tree_digest(plan_id, seal.objects):
        msg = f"{run} does not hash to its tree digest; verify that store"
        raise CorruptError(msg)


def choose(
    run: SourceRun,
    *,
    layers: Collection[int] | None,
    pools: Collection[str] | None,
    splits: Collection[str] | None,
    known: Mapping[str, np.ndarray],
) -> Coverage:
    """Return the objects of ``run`` that belong to the layers, pools and splits (None: all).

    ``known`` is what :func:`check_splits` returned, empty where ``splits`` is None.

    Raises
    ------
    InvalidInputError
        If the run has no such layer, pool or split.
    NotPulledError
        If the source is a partial copy that lacks some of what was named.
    """
    plan = run.plan
    chosen = _chosen_layers(plan, layers)
    names = _chosen_arrays(plan, pools)
    blocks = np.zeros(plan.n_blocks, dtype=bool)
    blocks[run.blocks] = True
    if splits is not None:
        of_rows = known[plan.run]
        chosen_rows = np.isin(of_rows, list(splits))
        blocks &= [chosen_rows[plan.block_rows(b)].any() for b in range(plan.n_blocks)]
    wanted = no_coverage(plan)
    for spec in plan.arrays:
        if spec.name in names:
            mask = wanted[spec.name]
            for row, layer in enumerate(plan.layers_of(spec) if len(spec.shape) == 3 else [None]):
                if layer is None or layer in chosen:
                    mask[row] = blocks
    if run.left_out is None:
        return wanted
    held = run.left_out.held
    lacks = [name for name, mask in wanted.items() if (mask & ~held[name]).any()]
    if lacks and any(choice is not None for choice in (layers, pools, splits)):
        hint = run.left_out.hint(layers=layers or (), pools=pools or ())
        msg = (
            f"run {plan.run!r} in {run.store.url} is a partial copy without all of what was asked "
            f"for, such as parts of {lacks[0]}; {hint}"
        )
        raise NotPulledError(msg)
    return {name: mask & held[name] for name, mask in wanted.items()}


def _chosen_layers(plan: RunPlan, layers: Collection[int] | None) -> set[int]:
    if layers is None:
        return set(plan.layers)
    unknown = sorted(set(layers) - set(plan.layers))
    if unknown or not layers:
        msg = f"run {plan.run!r} has no layers {unknown}; it has {list(plan.layers)}"
        raise InvalidInputError(msg)
    return set(layers)


def _chosen_arrays(plan: RunPlan, pools: Collection[str] | None) -> set[str]:
    """Return the arrays of ``pools``, and those that are of no pool."""
    by_name = pool_of(plan)
    names = {spec.name for spec in plan.arrays}
    if pools is None:
        return names
    known = sorted(set(by_name.values()))
    for pool in pools:
        if pool not in known:
            msg = f"run {plan.run!r} has no pool {pool!r}{near_names(pool, known)}; it has {known}"
            raise InvalidInputError(msg)
    return {name for name in names if name not in by_name or by_name[name] in pools}


def check_splits(parts: Sequence[SourceRun], splits: Collection[str]) -> dict[str, np.ndarray]:
    """Return the split of every row of each part of a run, by the part's name.

    Raises
    ------
    InvalidInputError
        If none of them has such a split.
    """
    found = {}
    for part in parts:
        plan = part.plan
        dataset = open_run(part.store, plan.run, allow_partial=True)
        if "split" not in dataset.coords:
            msg = f"run {plan.run!r} has no coordinate 'split' to choose rows by"
            raise InvalidInputError(msg)
        found[plan.run] = dataset["split"].values[: plan.n_texts]
    known = sorted({name for values in found.values() for name in values.tolist()})
    for split in splits:
        if split not in known:
            near = near_names(split, known)
            msg = f"run {parts[0].plan.run!r} has no split {split!r}{near}; it has {known}"
            raise InvalidInputError(msg)
    return found
