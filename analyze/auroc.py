"""AUROC: the estimate by ranks, DeLong's variance, and what can be said at 0 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtr, ndtri
from scipy.stats import beta, rankdata

from ..schemas import InvalidInputError

__all__ = [
    "Difference",
    "Interval",
    "auroc",
    "auroc_columns",
    "auroc_difference",
    "auroc_interval",
    "binormal_bound",
    "boundary_interval",
    "clopper_pearson",
    "delong_covariance",
    "mover_interval",
    "paired_bound",
]

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """A confidence interval; ``low`` and ``high`` are None where ``reason`` says why."""

    low: float | None
    high: float | None
    method: str
    boundary: bool = False
    reason: str | None = None


@dataclass(frozen=True)
class Difference:
    """AUROC of the first scores minus AUROC of the second on the same texts."""

    estimate: float
    low: float | None
    high: float | None
    method: str


def _classes(labels: ArrayLike, n: int) -> Flags:
    """Return ``labels`` as flags of the positive class, both classes present."""
    flags = np.asarray(labels).astype(bool)
    if flags.shape != (n,):
        msg = f"expected {n} labels, one per score, got shape {flags.shape}"
        raise InvalidInputError(msg)
    if flags.all() or not flags.any():
        msg = f"AUROC needs both classes, got {int(flags.sum())} positive of {n} texts"
        raise InvalidInputError(msg)
    return flags


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return P(score of a positive > score of a negative) + P(equal)/2.

    Parameters
    ----------
    scores
        dims (text,), finite.
    labels
        dims (text,), true or 1 for the positive class.

    Raises
    ------
    InvalidInputError
        If a score is not finite, lengths differ, or a class is missing.
    """
    values = np.asarray(scores, dtype=np.float64)
    return float(auroc_columns(values[:, None], labels)[0])


def auroc_columns(scores: ArrayLike, labels: ArrayLike) -> Floats:
    """Return the AUROC of each column of ``scores`` by one rank sum over all columns.

    ``scores`` has dims (text, column), the result (column,). Columns without ties cost one sort
    of integers; columns with ties get midranks.
    """
    values = np.asarray(scores)
    if values.ndim != 2:
        msg = f"expected scores with dims (text, column), got shape {values.shape}"
        raise InvalidInputError(msg)
    positive = _classes(labels, values.shape[0])
    if not np.isfinite(values).all():
        msg = "scores hold NaN or infinite values; drop those texts or mend their activations"
        raise InvalidInputError(msg)
    n = values.shape[0]
    n_pos = int(positive.sum())
    rows = np.ascontiguousarray(values.T)
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float64)
    rank_sum, tied = _packed_rank_sums(rows, positive)
    if tied.any():
        rank_sum[tied] = rankdata(rows[tied], axis=1)[:, positive].sum(axis=1)
    result: Floats = (rank_sum - n_pos * (n_pos + 1) / 2) / (n_pos * (n - n_pos))
    return result


def _packed_rank_sums(rows: NDArray[Any], positive: Flags) -> tuple[Floats, Flags]:
    """Return the rank sum of the positives of every row, and which rows may have ties.

    The bits of a float order as integers once those of negative numbers are turned over. The
    label takes the place of the last bit, so that one plain sort (which is vectorised, unlike
    a gather by argsort) brings values and labels into order; two values that differ in that
    bit alone count as tied, and are ranked exactly by the caller.
    """
    integer = np.int32 if rows.dtype == np.float32 else np.int64
    turn = np.iinfo(integer).max
    keys = (rows + rows.dtype.type(0)).view(integer)  # +0: minus zero equals zero
    keys ^= (keys >> (keys.dtype.itemsize * 8 - 1)) & turn
    keys &= ~integer(1)
    keys |= positive.astype(integer)
    keys.sort(axis=1)
    rank_sum: Floats = (keys & 1).astype(np.float64) @ np.arange(1.0, rows.shape[1] + 1)
    keys >>= 1
    tied: Flags = (keys[:, 1:] == keys[:, :-1]).any(axis=1)
    return rank_sum, tied


def delong_covariance(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    """Return the AUROCs of K score columns and their DeLong covariance.

    ``scores`` has dims (text, K); the result has dims (K,) and (K, K). O(n log n) per column by
    midranks (Sun & Xu 2014, doi 10.1109/LSP.2014.2337313). Needs two texts per class.
    """
    values = np.asarray(scores, dtype=np.float64)
    positive = _classes(labels, values.shape[0])
    pos, neg = values[positive].T, values[~positive].T
    n_pos, n_neg = pos.shape[1], neg.shape[1]
    if min(n_pos, n_neg) < 2:
        msg = f"DeLong needs two texts per class, got {n_pos} positive and {n_neg} negative"
        raise InvalidInputError(msg)
    ranks = rankdata(np.concatenate([pos, neg], axis=1), axis=1)
    # The share of the other class that each text beats: DeLong's structural components.
    placed_pos = (ranks[:, :n_pos] - rankdata(pos, axis=1)) / n_neg
    placed_neg = 1.0 - (ranks[:, n_pos:] - rankdata(neg, axis=1)) / n_pos
    covariance = np.cov(placed_pos) / n_pos + np.cov(placed_neg) / n_neg
    return placed_pos.mean(axis=1), np.atleast_2d(covariance)


def _separation_probability(d_prime: float, n_pos: int, n_neg: int) -> float:
    """Return P(every positive > every negative) for N(d_prime, 1) against N(0, 1)."""

    def density(x: float) -> float:
        below = ndtr(x) ** (n_neg - 1) * ndtr(d_prime - x) ** n_pos
        return float(n_neg * math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi) * below)

    # The largest negative lies here; quad would miss the peak on an infinite range.
    peak = float(ndtri(1 - 1 / (n_neg + 1)))
    breaks = sorted({-8.0, 8.0, peak, d_prime - peak})
    return float(quad(density, -16, 24, points=breaks, limit=400)[0])


@lru_cache(maxsize=4096)
def binormal_bound(n_pos: int, n_neg: int, *, level: float = 0.95) -> float:
    """Return the lower bound of AUROC when all positives score above all negatives.

    The smallest Φ(d/√2) of two unit Gaussians at distance d for which complete separation of
    ``n_pos`` and ``n_neg`` texts still has probability (1 − level)/2 (SCIENCE §2).
    """
    alpha = (1 - level) / 2
    root = brentq(
        lambda d: math.log(max(_separation_probability(d, n_pos, n_neg), 1e-300)) - math.log(alpha),
        -6.0,
        16.0,
        xtol=1e-9,
    )
    return float(ndtr(root / math.sqrt(2)))


def paired_bound(n_pairs: int, *, level: float = 0.95) -> float:
    """Return the Clopper-Pearson lower bound of P(s₊ > s₋) when all ``n_pairs`` pairs agree."""
    return float(((1 - level) / 2) ** (1 / n_pairs))


def clopper_pearson(successes: float, n: int, *, level: float = 0.95) -> Interval:
    """Return the exact interval of a proportion; half successes (ties) are interpolated."""
    alpha = (1 - level) / 2
    low = 0.0 if successes <= 0 else float(beta.ppf(alpha, successes, n - successes + 1))
    high = 1.0 if successes >= n else float(beta.ppf(1 - alpha, successes + 1, n - successes))
    return Interval(low, high, "Clopper-Pearson", boundary=successes in {0, n})


def boundary_interval(estimate: float, n_pos: int, n_neg: int, *, level: float = 0.95) -> Interval:
    """Return the interval of an AUROC of exactly 0 or 1, where DeLong and bootstrap have width 0.

    The binormal bound is the interval; the assumption-free paired Clopper-Pearson bound, which
    is the interval of ``paired_accuracy``, is named beside it.
    """
    low = binormal_bound(n_pos, n_neg, level=level)
    pairs = paired_bound(min(n_pos, n_neg), level=level)
    if estimate >= 1:
        method = f"binormal bound at 1 (paired Clopper-Pearson: {pairs:.3f})"
        return Interval(low, 1.0, method, boundary=True)
    method = f"binormal bound at 0 (paired Clopper-Pearson: {1 - pairs:.3f})"
    return Interval(0.0, 1 - low, method, boundary=True)


def auroc_interval(scores: ArrayLike, labels: ArrayLike, *, level: float = 0.95) -> Interval:
    """Return the DeLong interval of the AUROC of ``scores``, on the logit scale.

    At 0 and 1 it is the boundary bound. Close to them DeLong's variance collapses, so an end
    is never nearer to the boundary than an AUROC of exactly 0 or 1 would be allowed to be.
    """
    values = np.asarray(scores, dtype=np.float64)
    positive = _classes(labels, values.size)
    n_pos = int(positive.sum())
    n_neg = values.size - n_pos
    estimate = auroc(values, positive)
    if estimate in {0.0, 1.0}:
        return boundary_interval(estimate, n_pos, n_neg, level=level)
    method = "DeLong, logit scale"
    if min(n_pos, n_neg) < 2:
        return Interval(None, None, method, reason="one text per class has no DeLong variance")
    if np.ptp(values) == 0:
        return Interval(None, None, method, reason="all scores are equal")
    variance = float(delong_covariance(values[:, None], positive)[1][0, 0])
    if variance <= 0:
        return Interval(None, None, method, reason="DeLong's variance is zero")
    z = float(ndtri(0.5 + level / 2))
    half = z * math.sqrt(variance) / (estimate * (1 - estimate))
    low, high = (float(expit(logit(estimate) + side * half)) for side in (-1, 1))
    if estimate > 0.9 or estimate < 0.1:
        bound = binormal_bound(n_pos, n_neg, level=level)
        low, high = min(low, bound), max(high, 1 - bound)
    return Interval(low, high, method)


def auroc_difference(
    first: ArrayLike, second: ArrayLike, labels: ArrayLike, *, level: float = 0.95
) -> Difference:
    """Return AUROC(first) − AUROC(second) on the same texts with its interval.

    Paired DeLong. Where one of the two AUROCs lies at 0 or 1 its variance reads zero; there the
    two intervals are combined by MOVER without a covariance, which is the wider choice.
    """
    a = np.asarray(first, dtype=np.float64)
    b = np.asarray(second, dtype=np.float64)
    positive = _classes(labels, a.size)
    estimate_a, estimate_b = auroc_columns(np.stack([a, b], axis=1), positive)
    delta = float(estimate_a - estimate_b)
    if {estimate_a, estimate_b} & {0.0, 1.0}:
        low, high = mover_interval(
            (float(estimate_a), auroc_interval(a, positive, level=level)),
            (float(estimate_b), auroc_interval(b, positive, level=level)),
        )
        return Difference(delta, low, high, "MOVER of the boundary intervals")
    if min(positive.sum(), (~positive).sum()) < 2:
        return Difference(delta, None, None, "one text per class has no DeLong variance")
    covariance = delong_covariance(np.stack([a, b], axis=1), positive)[1]
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    half = float(ndtri(0.5 + level / 2)) * math.sqrt(max(float(variance), 0.0))
    return Difference(delta, max(delta - half, -1.0), min(delta + half, 1.0), "paired DeLong")


def mover_interval(
    first: tuple[float, Interval], second: tuple[float, Interval]
) -> tuple[float | None, float | None]:
    """Return the interval of a difference of two estimates from their own intervals.

    Method of variance estimates recovery (Zou & Donner 2008) with correlation zero.
    """
    (a, of_a), (b, of_b) = first, second
    if of_a.low is None or of_a.high is None or of_b.low is None or of_b.high is None:
        return None, None
    low = a - b - math.hypot(a - of_a.low, of_b.high - b)
    high = a - b + math.hypot(of_a.high - a, b - of_b.low)
    return max(low, -1.0), min(high, 1.0)
