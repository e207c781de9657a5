"""The bootstrap that resamples pairs within scenarios, for statistics of paired scores."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .auroc import Floats, Interval

__all__ = [
    "PairWeights",
    "bootstrap_accuracy",
    "bootstrap_auroc",
    "bootstrap_d_prime",
    "draw_pair_weights",
    "percentile_interval",
    "wins",
    "within_fold_auroc",
]

PairWeights: TypeAlias = NDArray[np.float32]
METHOD = "bootstrap of pairs within scenarios"


def draw_pair_weights(scenario: NDArray[np.str_], *, n_draws: int, seed: int) -> PairWeights:
    """Return how often each pair is drawn, dims (draw, pair).

    Pairs are drawn with replacement inside their scenario, so that every draw keeps the number
    of pairs of each scenario.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((n_draws, scenario.size), dtype=np.float32)
    for name in np.unique(scenario):
        members = np.flatnonzero(scenario == name)
        share = np.full(members.size, 1 / members.size)
        weights[:, members] = rng.multinomial(members.size, share, size=n_draws)
    return weights


def wins(scores: Floats) -> NDArray[np.float32]:
    """Return 1, ½ or 0 for every positive text against every negative one; dims (pair, pair)."""
    positive, negative = scores[0][:, None], scores[1][None, :]
    won = np.greater(positive, negative).astype(np.float32)
    tied = np.equal(positive, negative).astype(np.float32)
    result: NDArray[np.float32] = won + np.float32(0.5) * tied
    return result


def _same_fold(fold: NDArray[np.int64]) -> Floats:
    """Return weights (pair, pair) that average AUROC inside folds, each fold counted once."""
    _, codes, sizes = np.unique(fold, return_inverse=True, return_counts=True)
    same = np.equal.outer(codes, codes)
    result: Floats = same / (sizes.size * sizes[codes].astype(np.float64)[:, None] ** 2)
    return result


def within_fold_auroc(scores: Floats, fold: NDArray[np.int64]) -> float:
    """Return the mean over folds of the AUROC among the pairs of that fold.

    ``scores`` has dims (arm, pair). Unlike the AUROC of pooled out-of-fold scores it compares
    no two folds with each other.
    """
    won = wins(scores)
    inside = [
        won[np.ix_(members, members)].mean(dtype=np.float64)
        for members in (np.flatnonzero(fold == name) for name in np.unique(fold))
    ]
    return float(np.mean(inside))


def bootstrap_auroc(
    scores: Floats, weights: PairWeights, *, fold: NDArray[np.int64] | None = None
) -> Floats:
    """Return the AUROC of every draw, dims (draw,): two GEMMs for all draws.

    With ``fold``, the mean of the AUROCs inside the folds.
    """
    n_pairs = scores.shape[1]
    share = 1 / n_pairs**2 if fold is None else _same_fold(fold)
    kernel = (wins(scores) * share).astype(np.float32)
    result: Floats = np.einsum("bp,bp->b", weights @ kernel, weights).astype(np.float64)
    return result


def bootstrap_d_prime(scores: Floats, weights: PairWeights) -> Floats:
    """Return d′ of every draw, dims (draw,); NaN where a draw has no spread."""
    n_pairs = scores.shape[1]
    centred = scores - scores.mean()
    means = weights @ centred.T / n_pairs
    squares = weights @ (centred**2).T / n_pairs
    variance = (squares - means**2).clip(min=0) * (n_pairs / max(n_pairs - 1, 1))
    spread = np.sqrt(variance.mean(axis=1))
    result: Floats = np.divide(
        means[:, 0] - means[:, 1], spread, out=np.full(spread.size, np.nan), where=spread > 0
    )
    return result


def bootstrap_accuracy(scores: Floats, weights: PairWeights) -> Floats:
    """Return the accuracy at threshold 0 of every draw, dims (draw,)."""
    right = ((scores[0] > 0).astype(np.float32) + (scores[1] < 0)) / 2
    result: Floats = (weights @ right / scores.shape[1]).astype(np.float64)
    return result


def percentile_interval(draws: Floats, *, level: float = 0.95) -> Interval:
    """Return the percentile interval of ``draws``, NaN draws left out."""
    finite = draws[np.isfinite(draws)]
    if finite.size < 2:
        return Interval(None, None, METHOD, reason="too few bootstrap draws")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), METHOD)
