"""Which rows enter a probe, and how pairs are divided into folds by scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ..schemas import InvalidInputError, digest_json

__all__ = [
    "Fold",
    "Folds",
    "PairTable",
    "generator_folds",
    "group_folds",
    "pair_table",
    "read_labels",
    "scenario_folds",
    "split_fold",
]

Ints: TypeAlias = NDArray[np.int64]
Strings: TypeAlias = NDArray[np.str_]

N_INNER = 3  # inner folds that tune the logistic probe's C
MIXED = "mixed"  # the generator of a pair whose arms have unlike ones


@dataclass(frozen=True)
class PairTable:
    """The complete pairs of a dataset, with where their texts stand in it.

    ``rows`` has dims (arm, pair): row 0 the positive texts, row 1 the negative ones. All other
    arrays have dims (pair,), but ``texts`` (arm, pair) and ``neutral`` (text,), the rows of the
    original neutral texts.
    """

    rows: Ints
    texts: Strings
    pair: Strings
    scenario: Strings
    subset: Strings
    split: Strings
    generator: Strings
    counts: dict[str, int]
    neutral: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def n_pairs(self) -> int:
        """Complete pairs."""
        return int(self.pair.size)

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Labels of the texts in the order (arm, pair), flattened."""
        return np.repeat([True, False], self.n_pairs)

    def subsets(self) -> list[str]:
        """Return the designed subsets that have at least one whole pair."""
        return sorted(set(self.subset.tolist()) - {"", "none"})

    def members(self, subset: str) -> Ints:
        """Return the indices of the pairs of ``subset``, or of all pairs for ``all``."""
        if subset == "all":
            return np.arange(self.n_pairs)
        return np.flatnonzero(self.subset == subset)


@dataclass(frozen=True)
class Fold:
    """One outer fold: which pairs train, which are held out, and the inner folds.

    Pairs in neither take no part. ``inner_scenario`` and ``inner_tune`` number the inner fold of
    each training pair: by leave-one-scenario-out, and in three groups of scenarios. Where the
    training pairs come from one scenario the pair itself is the group (``inner_unit``).
    """

    name: str
    train: Ints
    test: Ints
    inner_scenario: Ints
    inner_tune: Ints
    inner_unit: str


@dataclass(frozen=True)
class Folds:
    """The outer folds of a cross-validation; every pair is held out once.

    ``fold_of_pair`` is −1 for a pair that no fold holds out (one of mixed generators).
    """

    folds: tuple[Fold, ...]
    fold_of_pair: Ints
    scheme: str
    digest: str
    groups: str = "scenario"

    @property
    def held_out(self) -> Ints:
        """Return the pairs that a fold holds out."""
        return np.flatnonzero(self.fold_of_pair >= 0)


def _strings(ds: xr.Dataset, name: str) -> Strings:
    values: Strings = np.asarray(ds[name].values).astype(str)
    return values


def read_labels(ds: xr.Dataset) -> NDArray[np.int8]:
    """Return the labels of all texts, dims (text,): 1, 0 or −1; InvalidInputError for others."""
    label: NDArray[np.int8] = np.asarray(ds["label"].values)
    strange = sorted(set(label.tolist()) - {-1, 0, 1})
    if strange:
        msg = f"labels must be 1 (positive), 0 (negative) or -1 (neutral), got {strange[:5]}"
        raise InvalidInputError(msg)
    return label


def pair_table(ds: xr.Dataset) -> PairTable:
    """Return the complete pairs of the original texts of ``ds``.

    Neutral texts, lexical variants and texts whose partner is missing are left out and counted
    in ``counts``.

    Raises
    ------
    InvalidInputError
        If a coordinate is missing, a label is not 1, 0 or -1, a pair holds two texts of one
        arm or two scenarios or splits, one arm has no text, or no pair is complete.
    """
    needed = ("text", "label", "pair", "scenario", "split", "subset", "variant")
    missing = [name for name in needed if name not in ds.variables]
    if missing:
        msg = f"the dataset lacks the coordinates {missing}; open it with actlake.open_run"
        raise InvalidInputError(msg)
    label = read_labels(ds)
    text, pair, scenario = (_strings(ds, name) for name in ("text", "pair", "scenario"))
    split, subset, variant = (_strings(ds, name) for name in ("split", "subset", "variant"))
    blank = np.full(text.shape, "unknown")
    generator = _strings(ds, "generator") if "generator" in ds.variables else blank

    labelled = (label >= 0) & (variant == "original")
    arms: dict[str, dict[int, int]] = {}
    for row in np.flatnonzero(labelled & (pair != "")):
        members = arms.setdefault(str(pair[row]), {})
        arm = int(label[row])
        if arm in members:
            msg = (
                f"pair {pair[row]!r} has two texts with label {arm}: {text[members[arm]]!r} and "
                f"{text[row]!r}; a pair is one positive and one negative text"
            )
            raise InvalidInputError(msg)
        members[arm] = int(row)
    for value, arm_name in ((1, "positive"), (0, "negative")):
        if labelled.any() and not (labelled & (label == value)).any():
            msg = f"one class: no original text is {arm_name}; a probe needs both arms"
            raise InvalidInputError(msg)
    complete = sorted(name for name, members in arms.items() if len(members) == 2)
    if not complete:
        msg = (
            f"no complete pair among {int(labelled.sum())} labelled original texts; each pair "
            "needs one positive and one negative text with the same pair id"
        )
        raise InvalidInputError(msg)
    rows = np.array([[arms[name][arm] for name in complete] for arm in (1, 0)], dtype=np.int64)
    for name, values in (("scenario", scenario), ("split", split)):
        unlike = np.flatnonzero(values[rows[0]] != values[rows[1]])
        if unlike.size:
            msg = (
                f"the arms of pair {complete[unlike[0]]!r} lie in unlike {name}s "
                f"({values[rows[0]][unlike[0]]!r}, {values[rows[1]][unlike[0]]!r})"
            )
            raise InvalidInputError(msg)
    shared = subset[rows[0]] == subset[rows[1]]
    counts = {
        "n_texts": int(text.size),
        "n_neutral_ignored": int(((label < 0) & (variant == "original")).sum()),
        "n_variants_ignored": int((variant != "original").sum()),
        "n_unpaired_ignored": int(labelled.sum()) - rows.size,
    }
    return PairTable(
        rows=rows,
        texts=text[rows],
        pair=np.array(complete),
        scenario=scenario[rows[0]],
        subset=np.where(shared, subset[rows[0]], "none"),
        split=split[rows[0]],
        generator=np.where(generator[rows[0]] == generator[rows[1]], generator[rows[0]], MIXED),
        counts=counts,
        neutral=np.flatnonzero((label < 0) & (variant == "original")),
    )


def group_folds(groups: Sequence[Any] | NDArray[Any], n_folds: int, *, seed: int) -> Ints:
    """Return a fold number per item such that no group lies in two folds.

    Groups go, largest first, to the fold with the fewest items; equal sizes are shuffled by
    ``seed``. As every group is made of whole pairs, the folds are stratified by class. With
    ``n_folds`` at least the number of groups this is leave-one-group-out in sorted order.
    """
    names, codes, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if n_folds >= names.size:
        return codes.astype(np.int64)
    shuffled = np.random.default_rng(seed).permutation(names.size)
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    load = np.zeros(n_folds)
    fold_of_group = np.zeros(names.size, dtype=np.int64)
    for group in order:
        fold_of_group[group] = int(np.argmin(load))
        load[fold_of_group[group]] += sizes[group]
    result: Ints = fold_of_group[codes]
    return result


def _fold(
    name: str,
    table: PairTable,
    *,
    test: Ints,
    max_folds: int,
    seed: int,
    train: Ints | None = None,
) -> Fold:
    """Return the outer fold that holds out the pairs ``test``, with its inner folds."""
    train = np.setdiff1d(np.arange(table.n_pairs), test) if train is None else train
    several = np.unique(table.scenario[train]).size > 1
    groups = table.scenario[train] if several else table.pair[train]
    return Fold(
        name=name,
        train=train,
        test=test,
        inner_scenario=group_folds(groups, max_folds, seed=seed),
        inner_tune=group_folds(groups, N_INNER, seed=seed),
        inner_unit="scenario" if several else "pair",
    )


def scenario_folds(table: PairTable, *, max_folds: int, seed: int) -> Folds:
    """Return leave-one-scenario-out folds, or ``max_folds`` grouped folds for more scenarios.

    Raises
    ------
    InvalidInputError
        If the pairs come from fewer than two scenarios.
    """
    scenarios = np.unique(table.scenario)
    if scenarios.size < 2:
        msg = (
            f"leave-one-scenario-out needs two scenarios or more, got {scenarios.tolist()} over "
            f"{table.n_pairs} pairs; give the texts a scenario"
        )
        raise InvalidInputError(msg)
    fold_of_pair = group_folds(table.scenario, max_folds, seed=seed)
    n_folds = int(fold_of_pair.max()) + 1
    whole = n_folds == scenarios.size
    folds = tuple(
        _fold(
            str(scenarios[number]) if whole else f"fold {number}",
            table,
            test=np.flatnonzero(fold_of_pair == number),
            max_folds=max_folds,
            seed=seed,
        )
        for number in range(n_folds)
    )
    kind = "leave-one-scenario-out" if whole else "stratified group k-fold on scenario"
    digest = digest_json(dict(zip(table.pair.tolist(), fold_of_pair.tolist(), strict=True)))
    return Folds(folds, fold_of_pair, f"{kind} ({n_folds} folds)", digest)


def generator_folds(table: PairTable, *, max_folds: int, seed: int) -> Folds:
    """Return leave-one-generator-out folds: the texts of one generator are held out at a time.

    Scenarios may stand on both sides. A pair whose arms come from unlike generators takes no
    part, since it would be on both.

    Raises
    ------
    InvalidInputError
        If fewer than two generators have a pair of their own.
    """
    names = sorted(set(table.generator.tolist()) - {MIXED})
    if len(names) < 2:
        msg = (
            f"leave-one-generator-out needs pairs of two generators or more, got {names} over "
            f"{table.n_pairs} pairs; give the texts a generator, or group by scenario"
        )
        raise InvalidInputError(msg)
    own = np.flatnonzero(table.generator != MIXED)
    fold_of_pair = np.full(table.n_pairs, -1, dtype=np.int64)
    fold_of_pair[own] = group_folds(table.generator[own], max_folds, seed=seed)
    n_folds = int(fold_of_pair.max()) + 1
    whole = n_folds == len(names)
    folds = tuple(
        _fold(
            names[number] if whole else f"fold {number}",
            table,
            test=np.flatnonzero(fold_of_pair == number),
            train=np.flatnonzero((fold_of_pair >= 0) & (fold_of_pair != number)),
            max_folds=max_folds,
            seed=seed,
        )
        for number in range(n_folds)
    )
    kind = "leave-one-generator-out" if whole else "stratified group k-fold on generator"
    digest = digest_json(dict(zip(table.pair.tolist(), fold_of_pair.tolist(), strict=True)))
    return Folds(folds, fold_of_pair, f"{kind} ({n_folds} folds)", digest, "generator")


def split_fold(table: PairTable, *, max_folds: int, seed: int) -> Fold:
    """Return the fold that trains on split=train and holds out split=test.

    Where no pair is marked train, all pairs train and nothing is held out.
    """
    test = np.flatnonzero(table.split == "test")
    if test.size == table.n_pairs:
        return _fold("all", table, test=test[:0], max_folds=max_folds, seed=seed)
    return _fold("split=train", table, test=test, max_folds=max_folds, seed=seed)
