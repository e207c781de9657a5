"""Lexical variants that went through the model: their held-out scores, by the original's pair."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from ..schemas import LEXICAL_ARMS, AblationSpec, InvalidInputError, NotFoundError, Text, array_name
from .ablation_rows import RANDOM, Arm
from .arrays import layer_values
from .auroc import Floats
from .design import Design
from .lexical_words import word_table
from .repooling import Readings
from .schedule import one_blas_thread, run_tasks
from .splits import Fold
from .words import bag_of_words_scores

__all__ = ["VariantSet", "variant_arms", "variant_scores", "variant_sets"]

Ints: TypeAlias = NDArray[np.int64]

# The random words that an arm's words are matched by.
MATCHES = {
    "keywords_removed": RANDOM,
    "keywords_replaced": RANDOM,
    "data_driven": "random_like_data_driven",
}
_NOT_OF_DRAWS = dict.fromkeys(("tuned", "words_removed", "words_share"))
_DRAW = re.compile(r"^(.*)-\d{3,}$")


@dataclass(frozen=True)
class VariantSet:
    """The texts of one variant: ``rows`` (arm, pair) of those ``pairs`` that have both arms."""

    variant: str
    rows: Ints
    pairs: Ints
    responses: tuple[str, ...]  # positives first

    @property
    def arm(self) -> str:
        """The lexical arm, without the number of a draw; the variant's own name of any other."""
        match = _DRAW.match(self.variant)
        return match[1] if match and match[1] in LEXICAL_ARMS else self.variant


def variant_sets(ds: xr.Dataset, texts: Sequence[Text], design: Design) -> list[VariantSet]:
    """Return the variants of the pairs of ``design`` that ``ds`` has, by name.

    Raises
    ------
    InvalidInputError
        If a variant's parent is not the original text of its pair and arm.
    NotFoundError
        If a text of the dataset is not in the corpus.
    """
    table = design.table
    columns = {n: np.asarray(ds[n].values).astype(str) for n in ("text", "pair", "variant")}
    label = np.asarray(ds["label"].values)
    by_id = {text.id: text for text in texts}
    number = {name: k for k, name in enumerate(table.pair.tolist())}
    rows: dict[str, dict[tuple[int, int], int]] = {}
    for row in np.flatnonzero((columns["variant"] != "original") & (label >= 0)):
        pair = number.get(columns["pair"][row])
        if pair is None:
            continue
        name, arm = columns["text"][row], 1 - int(label[row])
        if name not in by_id:
            msg = f"text {name!r} of the run is not in the corpus that was given"
            raise NotFoundError(msg)
        parent, original = by_id[name].parent, str(table.texts[arm, pair])
        if parent != original:
            msg = (
                f"text {name!r} is a variant of {parent!r}, expected {original!r}, the original "
                "of its pair and arm; make variants with `actlake corpus variants`"
            )
            raise InvalidInputError(msg)
        rows.setdefault(columns["variant"][row], {})[arm, pair] = int(row)
    found = []
    for variant, members in sorted(rows.items()):
        pairs = sorted({p for a, p in members if a == 0} & {p for a, p in members if a == 1})
        if not pairs:
            continue
        places = np.array([[members[arm, p] for p in pairs] for arm in (0, 1)], dtype=np.int64)
        responses = tuple(by_id[n].response for n in columns["text"][places].ravel())
        found.append(VariantSet(variant, places, np.array(pairs, dtype=np.int64), responses))
    return found


def variant_scores(
    ds: xr.Dataset,
    variants: xr.Dataset,
    design: Design,
    sets: Sequence[VariantSet],
    *,
    layers: Sequence[int],
    scheduler: str | None = None,
) -> Mapping[tuple[str, int], Readings]:
    """Return the held-out scores of the originals and of every variant, by pool and layer.

    Condition 0 are the originals, then ``sets`` in their order; NaN where a variant has no such
    pair. Each (pool, layer) is a Dask task that reads that layer alone.

    Raises
    ------
    NotFoundError
        If the run of the variants lacks an array.
    InvalidInputError
        If it has other layers, or a text has NaN.
    """
    if variants["layer"].values.tolist() != ds["layer"].values.tolist():
        msg = (
            f"the run of the variants has layers {variants['layer'].values.tolist()}, the run of "
            f"the originals {ds['layer'].values.tolist()}; extract both alike"
        )
        raise InvalidInputError(msg)
    missing = [p for p in design.pools if array_name(design.site, p) not in variants.data_vars]
    if missing:
        msg = f"the run of the variants has no pool {missing} of {design.site}"
        raise NotFoundError(msg)
    rows = (design.table.rows, tuple((of.rows, of.pairs) for of in sets))
    shared = delayed((*rows, design.folds.fold_of_pair), traverse=False)
    at = {int(layer): k for k, layer in enumerate(ds["layer"].values)}
    tasks = {
        (pool, layer): delayed(_layer_scores)(
            layer_values(ds, array_name(design.site, pool), at[layer]),
            layer_values(variants, array_name(design.site, pool), at[layer]),
            shared,
            where=f"pool {pool}, layer {layer}",
        )
        for pool in design.pools
        for layer in layers
    }
    return dict(zip(tasks, run_tasks(list(tasks.values()), scheduler=scheduler), strict=True))


def _layer_scores(
    originals: NDArray[Any],
    variants: NDArray[Any],
    shared: Any,  # of what the tasks have in common  # noqa: ANN401
    *,
    where: str,
) -> Readings:
    rows, sets, fold_of_pair = shared
    n_pairs = rows.shape[1]
    refit = np.full((1 + len(sets), 2, n_pairs), np.nan)
    fixed = refit.copy()
    with one_blas_thread():
        points = _points(np.asarray(originals), rows, where)
        probes = _fold_probes(points, fold_of_pair)
        refit[0] = fixed[0] = _scores(points, fold_of_pair, probes)
        for number, (places, pairs) in enumerate(sets, 1):
            points, fold = _points(np.asarray(variants), places, where), fold_of_pair[pairs]
            fixed[number][:, pairs] = _scores(points, fold, probes)
            refit[number][:, pairs] = _scores(points, fold, _fold_probes(points, fold))
    return Readings(refit, fixed)


def _points(values: NDArray[Any], rows: Ints, where: str) -> Floats:
    x: Floats = values[rows].astype(np.float64)
    if not np.isfinite(x).all():
        msg = (
            f"{where}: a paired text has NaN or infinite values; resume the run if it is not "
            "sealed, verify it, or leave out the texts that store.finite_texts says are not finite"
        )
        raise InvalidInputError(msg)
    return x


def _fold_probes(points: Floats, fold: Ints) -> dict[int, tuple[Floats, float, float]]:
    """Return (weight, midpoint, squared length) of each fold's training pairs, by fold."""
    total, n = points.sum(axis=1), fold.size
    probes = {}
    for name in np.unique(fold[fold >= 0]):
        held = fold == name
        if held.sum() == n:
            continue
        means = (total - points[:, held].sum(axis=1)) / (n - held.sum())
        weight = means[0] - means[1]
        probes[int(name)] = (weight, float(weight @ means.mean(axis=0)), float(weight @ weight))
    return probes


def _scores(
    points: Floats, fold: Ints, probes: Mapping[int, tuple[Floats, float, float]]
) -> Floats:
    """Return scores that are 0 at the midpoint and 1 class separation apart, dims (arm, pair)."""
    scores = np.full(points.shape[:2], np.nan)
    for name, (weight, middle, length) in probes.items():
        held = fold == name
        values = points[:, held] @ weight - middle
        scores[:, held] = values / length if length > 0 else 0.0
    return scores


def variant_arms(design: Design, sets: Sequence[VariantSet], spec: AblationSpec) -> list[Arm]:
    """Return the arms of the variants with the random words that match them."""
    folds, every = design.folds.folds, design.responses
    before = bag_of_words_scores(every, folds, spec=spec.bow)
    n_before = np.diff(word_table(every).edges)

    def words(of: VariantSet) -> Floats:
        scores = np.full((2, design.table.n_pairs), np.nan)
        scores[:, of.pairs] = bag_of_words_scores(
            of.responses, _restrict_folds(folds, of.pairs), spec=spec.bow
        )
        return scores

    drawn = {arm: [k for k, of in enumerate(sets) if of.arm == arm] for arm in {*MATCHES.values()}}
    drawn_words = {
        arm: [words(sets[k]) for k in places[: spec.n_bow_draws]] for arm, places in drawn.items()
    }
    arms = []
    for at, of in enumerate(sets):
        if of.arm in drawn:
            continue
        control = MATCHES.get(of.arm, "")
        matched = drawn.get(control, [])
        pairs = of.pairs
        for k in matched:
            pairs = np.intersect1d(pairs, sets[k].pairs)
        n_texts = 2 * of.pairs.size
        both = np.concatenate([of.pairs, of.pairs + design.table.n_pairs])
        change = n_before[both].sum() - np.diff(word_table(of.responses).edges).sum()
        fields: dict[str, Any] = {
            "arm": of.arm,
            "words_removed": float(change / n_texts),
            "words_share": float(change / n_before[both].sum()),
        }
        if of.arm == "data_driven":
            fields["tuned"] = "words and their number on the train split"
        arms.append(
            Arm(
                fields, at + 1, np.array(matched, dtype=np.int64) + 1, pairs,
                words=(before, words(of)),
                words_random=tuple(drawn_words.get(control, ())),
                random_fields={"arm": control} | _NOT_OF_DRAWS,
            )
        )  # fmt: skip
    return arms


def _restrict_folds(folds: Sequence[Fold], pairs: Ints) -> list[Fold]:
    """Return the folds over some of the pairs, numbered as in ``pairs``."""
    place = {int(pair): k for k, pair in enumerate(pairs)}
    return [
        replace(
            fold,
            train=np.array([place[p] for p in fold.train.tolist() if p in place], dtype=np.int64),
            test=np.array([place[p] for p in fold.test.tolist() if p in place], dtype=np.int64),
        )
        for fold in folds
    ]
