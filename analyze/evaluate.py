"""Held-out scores become estimates with intervals, each beside the bag of words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .auroc import (
    Floats,
    Interval,
    auroc,
    auroc_difference,
    auroc_interval,
    boundary_interval,
    clopper_pearson,
    mover_interval,
)
from .bootstrap import (
    PairWeights,
    bootstrap_accuracy,
    bootstrap_auroc,
    bootstrap_d_prime,
    draw_pair_weights,
    percentile_interval,
    within_fold_auroc,
)
from .probes import d_prime
from .splits import PairTable
from .words import CEILING

__all__ = [
    "Estimate",
    "HeldOut",
    "compare_with_words",
    "held_out_sets",
    "measure",
    "recall_at_fpr",
    "verdict",
]

Estimate: TypeAlias = dict[str, Any]  # fields of a ResultRow

DELONG = frozenset(("auroc", "auroc_nested", "auroc_raw", "auroc_residualised"))


@dataclass(frozen=True)
class HeldOut:
    """A set of held-out pairs that scores are judged on.

    ``pairs`` index the pair table; ``fold`` numbers the fold that held each out; ``weights``
    are the bootstrap draws, the same for every layer, method and the bag of words; ``words``
    are the bag-of-words scores of these pairs, dims (arm, pair), and ``surface`` those of
    length, markdown, first person and readability, None where they were not asked for.
    """

    subset: str
    cv: str
    pairs: NDArray[np.int64]
    fold: NDArray[np.int64]
    weights: PairWeights
    words: Floats
    counts: dict[str, int] = field(default_factory=dict)
    surface: Floats | None = None

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Labels of the texts, positives first."""
        return np.repeat([True, False], self.pairs.size)

    @property
    def several_folds(self) -> bool:
        """Whether pooling mixes folds."""
        return bool(np.unique(self.fold).size > 1)


def held_out_sets(
    table: PairTable,
    pairs: NDArray[np.int64],
    *,
    cv: str,
    fold: NDArray[np.int64],
    words: Floats,
    surface: Floats | None,
    n_bootstrap: int,
    seed: int,
) -> tuple[HeldOut, ...]:
    """Return the held-out sets of ``pairs``: all of them, then every designed subset.

    ``fold``, ``words`` and ``surface`` are of all pairs of the table.
    """
    sets = []
    for subset in ("all", *table.subsets()):
        members = np.intersect1d(table.members(subset), pairs)
        if members.size == 0:
            continue
        sets.append(
            HeldOut(
                subset=subset,
                cv=cv,
                pairs=members,
                fold=fold[members],
                weights=draw_pair_weights(table.scenario[members], n_draws=n_bootstrap, seed=seed),
                words=words[:, members],
                surface=None if surface is None else surface[:, members],
                counts={
                    "n_texts": 2 * int(members.size),
                    "n_pairs": int(members.size),
                    "n_scenarios": int(np.unique(table.scenario[members]).size),
                    "n_generators": int(np.unique(table.generator[members]).size),
                },
            )
        )
    return tuple(sets)


def verdict(estimate: float, words: float, *, low: float | None, high: float | None) -> str:
    """Return one sentence on what the probe shows beyond the bag of words.

    ``low`` and ``high`` bound the difference of the two AUROCs on the same texts.
    """
    if words >= CEILING:
        return "ceiling: this dataset cannot separate semantic from lexical evidence"
    if low is None or high is None:
        return f"no interval of the difference from the bag of words ({words:.2f})"
    delta = f"{abs(estimate - words):.2f}"
    if low > 0:
        text = f"above the bag of words by {delta} [{low:.2f}, {high:.2f}]"
    elif high < 0:
        text = f"below the bag of words by {delta} [{-high:.2f}, {-low:.2f}]"
    else:
        text = f"not distinguishable from the bag of words [{low:.2f}, {high:.2f}]"
    # Held-out words that point the wrong way are no lower a bar than chance.
    return text + (f"; the bag of words is below chance ({words:.2f})" if words < 0.5 else "")


def measure(scores: Floats, held: HeldOut) -> list[Estimate]:
    """Return the metrics of held-out ``scores`` (arm, pair), without the bag of words.

    ``auroc`` pools the held-out scores of all folds (DeLong); ``auroc_bootstrap`` is the same
    estimate with the bootstrap of pairs within scenarios; ``auroc_within`` averages the AUROCs
    inside folds; ``paired_accuracy`` is P(s₊ > s₋) inside pairs (ties ½); ``accuracy`` uses the
    threshold of the training folds.
    """
    flat, labels, n_pairs = scores.ravel(), held.labels, held.pairs.size
    area = auroc(flat, labels)
    estimates = [_row("auroc", area, auroc_interval(flat, labels))]
    if held.weights.shape[0]:
        interval = _bootstrap(scores, held, bootstrap_auroc)
        if area in {0.0, 1.0}:
            interval = boundary_interval(area, n_pairs, n_pairs)
        estimates.append(_row("auroc_bootstrap", area, interval))
    if held.several_folds:
        within = within_fold_auroc(scores, held.fold)
        estimates.append(_row("auroc_within", within, _within_interval(scores, held, within)))
    spread = d_prime(scores[0], scores[1])
    estimates.append(
        _row("d_prime", spread, _bootstrap(scores, held, bootstrap_d_prime))
        if spread is not None
        else _row("d_prime", None, Interval(None, None, "", reason="the scores have no spread"))
    )
    agreeing = float((scores[0] > scores[1]).sum() + 0.5 * (scores[0] == scores[1]).sum())
    estimates.append(
        _row("paired_accuracy", agreeing / n_pairs, clopper_pearson(agreeing, n_pairs))
    )
    accuracy = float(((scores[0] > 0).mean() + (scores[1] < 0).mean()) / 2)
    interval = _bootstrap(scores, held, bootstrap_accuracy)
    if accuracy in {0.0, 1.0}:
        interval = clopper_pearson(accuracy * n_pairs, n_pairs)
    estimates.append(_row("accuracy", accuracy, interval))
    return estimates


def compare_with_words(estimates: list[Estimate], scores: Floats, held: HeldOut) -> list[Estimate]:
    """Return ``estimates`` whose AUROC rows carry the bag of words on the same texts.

    The difference has the paired DeLong interval for the pooled AUROC and the paired bootstrap
    otherwise; where either AUROC is at 0 or 1 both widths collapse, and the boundary intervals
    are combined instead.
    """
    result = []
    for row in estimates:
        metric = row["metric"]
        if metric in DELONG:
            difference = auroc_difference(scores.ravel(), held.words.ravel(), held.labels)
            words = row["estimate"] - difference.estimate
            low, high = difference.low, difference.high
        elif metric in {"auroc_bootstrap", "auroc_within"}:
            words, low, high = _bootstrap_difference(scores, held, metric=metric)
        else:
            result.append(row)
            continue
        result.append(
            row
            | {
                "bow_estimate": words,
                "bow_delta": row["estimate"] - words,
                "bow_delta_ci_low": low,
                "bow_delta_ci_high": high,
                "verdict": verdict(row["estimate"], words, low=low, high=high),
            }
            | (_beside_surface(scores, held) if metric in DELONG else {})
        )
    return result


def recall_at_fpr(
    scores: Floats, neutral: Floats, held: HeldOut, *, rate: float = 0.01
) -> Estimate:
    """Return the share of positives above the neutral texts' threshold at ``rate`` (SCIENCE §1).

    Every fold's probe has its own threshold: the lowest that at most ``rate`` of the neutral
    texts pass, which no probe was trained on. Fewer than 1/rate of them bound the rate less
    tightly, and ``ci_method`` says by how much.

    Parameters
    ----------
    scores
        dims (arm, pair), of the pairs of ``held``.
    neutral
        dims (fold, neutral text): scores by the probe of each fold.
    held
        What was held out.
    """
    n_neutral = neutral.shape[1]
    allowed = int(rate * n_neutral)
    thresholds = -np.sort(-neutral, axis=1)[:, allowed]
    above = int((scores[0] > thresholds[held.fold]).sum())
    n_pairs = held.pairs.size
    interval = clopper_pearson(above, n_pairs)
    bound = max(rate, 1 / n_neutral)
    method = f"{interval.method}; threshold passed by {allowed} of {n_neutral} neutral texts"
    if n_neutral * rate < 1:
        method += f", so the false positive rate is known to {bound:.2g} only"
    return _row("recall_at_1pct_fpr", above / n_pairs, replace(interval, method=method))


def _beside_surface(scores: Floats, held: HeldOut) -> Estimate:
    """Return the surface features' AUROC on the same texts with the paired difference."""
    if held.surface is None:
        return {}
    difference = auroc_difference(scores.ravel(), held.surface.ravel(), held.labels)
    return {
        "surface_estimate": auroc(held.surface.ravel(), held.labels),
        "surface_delta": difference.estimate,
        "surface_delta_ci_low": difference.low,
        "surface_delta_ci_high": difference.high,
    }


def _row(metric: str, estimate: float | None, interval: Interval) -> Estimate:
    """Return the fields of a ResultRow that one estimate fills."""
    return {
        "metric": metric,
        "estimate": estimate,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "ci_method": interval.method or None,
        "boundary": interval.boundary,
        "reason": interval.reason,
    }


def _bootstrap(
    scores: Floats, held: HeldOut, statistic: Callable[[Floats, PairWeights], Floats]
) -> Interval:
    """Return the percentile interval of ``statistic``, or none where no draws were asked for."""
    if held.weights.shape[0] == 0:
        return Interval(None, None, "", reason="n_bootstrap is 0")
    return percentile_interval(statistic(scores, held.weights))


def _within_interval(scores: Floats, held: HeldOut, estimate: float) -> Interval:
    """Return the interval of the AUROC inside folds.

    At 0 and 1 every pair agrees, which bounds it by Clopper-Pearson over the pairs.
    """
    n_pairs = held.pairs.size
    if estimate in {0.0, 1.0}:
        return clopper_pearson(estimate * n_pairs, n_pairs)
    return _bootstrap(scores, held, lambda s, w: bootstrap_auroc(s, w, fold=held.fold))


def _bootstrap_difference(
    scores: Floats, held: HeldOut, *, metric: str
) -> tuple[float, float | None, float | None]:
    """Return the bag of words' estimate of ``metric`` and the interval of the difference."""
    n_pairs = held.pairs.size
    if metric == "auroc_within":
        mine, words = (within_fold_auroc(s, held.fold) for s in (scores, held.words))
    else:
        mine, words = (auroc(s.ravel(), held.labels) for s in (scores, held.words))
    fold = held.fold if metric == "auroc_within" else None
    if {mine, words} & {0.0, 1.0}:
        sides = []
        for value, of in ((mine, scores), (words, held.words)):
            if fold is not None:
                sides.append((value, _within_interval(of, held, value)))
            elif value in {0.0, 1.0}:
                sides.append((value, boundary_interval(value, n_pairs, n_pairs)))
            else:
                sides.append((value, _bootstrap(of, held, bootstrap_auroc)))
        return words, *mover_interval(sides[0], sides[1])
    if held.weights.shape[0] == 0:
        return words, None, None
    draws = bootstrap_auroc(scores, held.weights, fold=fold) - bootstrap_auroc(
        held.words, held.weights, fold=fold
    )
    interval = percentile_interval(draws)
    return words, interval.low, interval.high
