"""Control concepts: what else the same probe reads out of the same activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..schemas import ConfoundSpec
from .auroc import Flags, Floats, auroc
from .design import Design
from .surface import SURFACE_FEATURES

__all__ = ["ControlLabels", "concept_scores", "control_labels", "mean_auroc", "pair_folds"]

Ints: TypeAlias = NDArray[np.int64]

N_RANDOM_LABELS = 20
N_PAIR_FOLDS = 5
BY_PAIR = ("scenario", "random_label")  # labels that a held-out scenario has no example of


@dataclass(frozen=True)
class ControlLabels:
    """The labels of one control concept, dims (text, label), positives of the arms first.

    Several columns are one-against-rest labels, or several random labellings; the AUROC is
    their mean. ``reason`` says why there are none. ``fold_of_pair`` numbers the folds.
    """

    concept: str
    labels: Flags
    fold_of_pair: Ints
    cv: str
    reason: str | None = None


def pair_folds(groups: NDArray[Any], *, n_folds: int, seed: int) -> Ints:
    """Return a fold per pair such that the pairs of every group are spread over the folds."""
    rng = np.random.default_rng(seed)
    fold = np.zeros(groups.size, dtype=np.int64)
    start = 0
    for name in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == name))
        fold[members] = (start + np.arange(members.size)) % n_folds
        start += members.size
    return fold


def control_labels(design: Design, features: Floats, *, spec: ConfoundSpec) -> list[ControlLabels]:
    """Return the labels of every control concept of ``spec``.

    ``generator`` and ``scenario`` are one against the rest; ``markdown`` whether there is any;
    ``length`` and ``sentiment`` (VADER's compound score) above their median; ``random_label`` one
    random label per scenario and generator, which only memory of the cell can read (Hewitt &
    Liang 1909.03368), as the mean of 20 labellings. Scenario and random labels are read across
    pairs of the same scenario, since a held-out scenario has no example of them.

    Parameters
    ----------
    design
        The pairs and folds.
    features
        Surface features with dims (text, feature).
    spec
        Which concepts.
    """
    table = design.table
    by_pair = pair_folds(table.scenario, n_folds=N_PAIR_FOLDS, seed=spec.seed)
    scheme = f"group {N_PAIR_FOLDS}-fold on pair inside scenarios"
    column = {name: features[:, k] for k, name in enumerate(SURFACE_FEATURES)}
    found = []
    for concept in spec.concepts:
        reason = None
        labels = np.zeros((2 * table.n_pairs, 0), dtype=bool)
        if concept == "generator":
            generators = _text_generators(design)
            names = np.unique(generators)
            labels = _one_against_rest(generators, names)
            reason = None if names.size > 1 else "all texts have one generator"
        elif concept == "scenario":
            labels = _one_against_rest(np.tile(table.scenario, 2), np.unique(table.scenario))
        elif concept == "random_label":
            labels = _random_labels(design, seed=spec.seed)
        elif concept == "markdown":
            labels = (column["markdown"] > 0)[:, None]
            reason = None if 0 < labels.mean() < 1 else "all texts or none have markdown"
        elif concept == "length":
            labels, reason = _median_split(column["length"], "lengths")
        else:
            compound = sentiment(tuple(design.responses))
            labels, reason = _median_split(np.array(compound), "sentiments")
        across = concept in BY_PAIR
        found.append(
            ControlLabels(
                concept,
                labels,
                by_pair if across else design.folds.fold_of_pair,
                scheme if across else design.folds.scheme,
                reason,
            )
        )
    return found


def concept_scores(points: Floats, labels: Flags, fold_of_pair: Ints) -> Floats:
    """Return held-out diff-of-means scores of other labels, dims (text, label).

    NaN where no fold holds a text out, or the training texts have one value of the label.

    Parameters
    ----------
    points
        dims (arm, pair, feature).
    labels
        dims (text, label), in the order of the flattened points.
    fold_of_pair
        dims (pair,), −1 for a pair that takes no part.
    """
    rows = points.reshape(-1, points.shape[-1])
    fold = np.tile(fold_of_pair, 2)
    scores = np.full(labels.shape, np.nan)
    for number in range(int(fold_of_pair.max()) + 1):
        test, train = np.flatnonzero(fold == number), np.flatnonzero((fold != number) & (fold >= 0))
        y = labels[train].astype(np.float64)
        n_pos, n_neg = y.sum(axis=0), (1 - y).sum(axis=0)
        usable = (n_pos > 0) & (n_neg > 0)
        if not usable.any():
            continue
        y, n_pos, n_neg = y[:, usable], n_pos[usable], n_neg[usable]
        positive = rows[train].T @ y / n_pos
        negative = rows[train].T @ (1 - y) / n_neg
        weight = positive - negative
        scale = np.einsum("fk,fk->k", weight, weight)
        middle = np.einsum("fk,fk->k", weight, (positive + negative) / 2)
        values = rows[test] @ weight - middle
        held = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
        scores[np.ix_(test, np.flatnonzero(usable))] = held
    return scores


def mean_auroc(scores: Floats, labels: Flags) -> float | None:
    """Return the mean over labels of the AUROC of the texts that have a score, or None."""
    areas = []
    for k in range(labels.shape[1]):
        known = np.isfinite(scores[:, k])
        flags = labels[known, k]
        if known.any() and flags.any() and not flags.all():
            areas.append(auroc(scores[known, k], flags))
    return float(np.mean(areas)) if areas else None


@lru_cache(maxsize=4)
def sentiment(responses: tuple[str, ...]) -> tuple[float, ...]:
    """Return VADER's compound score of every text, −1 to 1 (Hutto & Gilbert 2014)."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()
    return tuple(float(analyser.polarity_scores(text)["compound"]) for text in responses)


def _text_generators(design: Design) -> NDArray[Any]:
    """Return the generator of every text; the pair's where the run does not say."""
    if "generator" in design.ds.variables:
        return np.asarray(design.ds["generator"].values).astype(str)[design.table.rows.ravel()]
    return np.tile(design.table.generator, 2)


def _one_against_rest(values: NDArray[Any], names: Sequence[str] | NDArray[Any]) -> Flags:
    """Return a column per name; two names need only one."""
    chosen = names[:1] if len(names) == 2 else names
    return np.stack([values == name for name in chosen], axis=1)


def _random_labels(design: Design, *, seed: int) -> Flags:
    """Return random labels of cells of scenario and generator, half of the cells each."""
    cells = np.char.add(
        np.char.add(np.tile(design.table.scenario, 2), "\n"), _text_generators(design)
    )
    names, codes = np.unique(cells, return_inverse=True)
    rng = np.random.default_rng(seed)
    halves = np.arange(names.size) < names.size / 2
    return np.stack([rng.permutation(halves)[codes] for _ in range(N_RANDOM_LABELS)], axis=1)


def _median_split(values: Floats, name: str) -> tuple[Flags, str | None]:
    labels = (values > np.median(values))[:, None]
    return labels, None if labels.any() else f"half of the {name} or more are the largest there is"
