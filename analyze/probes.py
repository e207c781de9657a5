"""Linear probes: difference of means and logistic regression, with their inner folds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .auroc import auroc, auroc_columns
from .logistic import RowSpace, row_space, solve_logistic
from .splits import Fold

__all__ = [
    "FoldFit",
    "LinearProbe",
    "d_prime",
    "fit_diff_means",
    "fit_fold",
    "fit_logistic",
]

Floats: TypeAlias = NDArray[np.float64]

TUNE_TOLERANCE = 3e-3
FIT_TOLERANCE = 5e-5


@dataclass(frozen=True)
class LinearProbe:
    """A probe in raw activation space: decision value w·x + b, positive for the positive arm.

    ``scale`` is w·(μ₊ − μ₋) of the training pairs. Scores are decision values over it, so that
    they are in class separations and folds (or layers) of unlike scale, such as logistic fits
    with unlike C, can be pooled.
    """

    weight: Floats
    bias: float
    scale: float = 1.0

    @property
    def norm(self) -> float:
        """Length of the weight vector."""
        return float(np.linalg.norm(self.weight))

    @property
    def unit(self) -> Floats:
        """The unit vector along the weight, or zeros where the weight is zero."""
        norm = self.norm
        return self.weight / norm if norm > 0 else np.zeros_like(self.weight)

    def score(self, x: Floats) -> Floats:
        """Return scores of ``x`` (..., hidden); 0 is the training fold's threshold."""
        result: Floats = (x @ self.weight + self.bias) / self.scale
        return result


@dataclass(frozen=True)
class FoldFit:
    """A probe fitted on one outer fold, with what its inner folds say about this layer."""

    probe: LinearProbe
    inner_auroc: float
    inner_d_prime: float
    c: float | None = None


def d_prime(positive: Floats, negative: Floats) -> float | None:
    """Return (mean₊ − mean₋)/sqrt((var₊ + var₋)/2), or None without spread.

    Each argument has dims (text,) with two texts or more for a variance.
    """
    if min(positive.size, negative.size) < 2:
        return None
    variance = (positive.var(ddof=1) + negative.var(ddof=1)) / 2
    if variance <= 0:
        return None
    return float((positive.mean() - negative.mean()) / np.sqrt(variance))


def fit_diff_means(x: Floats) -> LinearProbe:
    """Return w = μ₊ − μ₋, b = −w·(μ₊ + μ₋)/2 (Marks & Tegmark, arXiv 2310.06824).

    ``x`` has dims (arm, pair, hidden), the positive arm first.
    """
    means = x.mean(axis=1)
    weight = means[0] - means[1]
    squared = float(weight @ weight)
    return LinearProbe(weight, -float(weight @ means.mean(axis=0)), scale=squared or 1.0)


def fit_logistic(x: Floats, *, c: float) -> LinearProbe:
    """Return an L2 logistic probe on standardised features, in raw activation space.

    ``x`` has dims (arm, pair, hidden); ``c`` is the inverse penalty of the summed loss.
    """
    rows, labels = _stacked(x)
    return _final_logistic(row_space(rows), labels, c=c)


def fit_fold(x: Floats, fold: Fold, *, method: str, c_grid: Sequence[float]) -> FoldFit:
    """Return the probe of ``method`` fitted on the training pairs of ``fold``.

    ``x`` has dims (arm, pair, hidden) over all pairs; only ``fold.train`` is read. The inner
    AUROC and d′ come from pooled inner out-of-fold scores: of leave-one-scenario-out for the
    difference of means, and of the three folds that tune C for the logistic probe.
    """
    train = x[:, fold.train]
    if method == "diff_means":
        return _diff_means_fold(train, fold.inner_scenario)
    return _logistic_fold(train, fold.inner_tune, c_grid=c_grid)


def _stacked(x: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Return (arm, pair, hidden) as rows, positives first, with their labels."""
    return x.reshape(-1, x.shape[-1]), np.repeat([True, False], x.shape[1])


def _diff_means_fold(train: Floats, inner: NDArray[np.int64]) -> FoldFit:
    """Fit on all training pairs and score every inner fold by the means of the others."""
    probe = fit_diff_means(train)
    n_folds = int(inner.max()) + 1
    if n_folds < 2:
        return FoldFit(probe, float("nan"), float("nan"))
    member = np.equal.outer(np.arange(n_folds), inner).astype(np.float64)
    others = train.shape[1] - member.sum(axis=1)
    sums = np.stack([member @ arm for arm in train])
    means = (train.sum(axis=1)[:, None] - sums) / others[:, None]
    weight = means[0] - means[1]
    bias = -np.einsum("fh,fh->f", weight, means.mean(axis=0))
    scale = np.einsum("fh,fh->f", weight, weight)
    scale = np.where(scale > 0, scale, 1.0)
    every = (train @ weight.T + bias) / scale  # (arm, pair, inner fold)
    scores = np.take_along_axis(every, inner[None, :, None], axis=2)[..., 0]
    labels = np.repeat([True, False], train.shape[1])
    spread = d_prime(scores[0], scores[1])
    return FoldFit(probe, auroc(scores.ravel(), labels), 0.0 if spread is None else spread)


def _final_logistic(
    space: RowSpace, labels: NDArray[np.bool_], *, c: float, start: Floats | None = None
) -> LinearProbe:
    """Fit one logistic probe on all rows of ``space``, from coefficients near the solution."""
    solved = solve_logistic(
        space,
        labels,
        weights=np.ones((labels.size, 1)),
        c=np.array([c]),
        tolerance=FIT_TOLERANCE,
        start=start,
    )
    values = space.points @ solved[:-1, 0]
    separation = float(values[labels].mean() - values[~labels].mean())
    weight, bias = space.raw_weight(solved[:-1, 0], float(solved[-1, 0]))
    return LinearProbe(weight, bias, scale=separation if separation > 0 else 1.0)


def _logistic_fold(train: Floats, inner: NDArray[np.int64], *, c_grid: Sequence[float]) -> FoldFit:
    """Tune C by the AUROC over the inner folds (ties: the stronger penalty), then fit on all.

    Features are standardised once, on all training pairs of the outer fold.
    """
    rows, labels = _stacked(train)
    space = row_space(rows)
    grid = np.array(sorted(c_grid))
    n_folds = int(inner.max()) + 1
    if n_folds < 2:
        return FoldFit(
            _final_logistic(space, labels, c=float(grid[0])), float("nan"), float("nan"), grid[0]
        )
    fold_of_row = np.tile(inner, 2)
    inside = fold_of_row[:, None] != np.arange(n_folds)
    solved = solve_logistic(
        space,
        labels,
        weights=np.repeat(inside, grid.size, axis=1).astype(np.float64),
        c=np.tile(grid, n_folds),
        tolerance=TUNE_TOLERANCE,
    )
    every = (space.points @ solved[:-1] + solved[-1]).reshape(-1, n_folds, grid.size)
    scores = np.take_along_axis(every, fold_of_row[:, None, None], axis=1)[:, 0]
    area = auroc_columns(scores, labels)
    best = int(np.argmax(area))
    spread = d_prime(scores[labels, best], scores[~labels, best])
    near = solved[:, best :: grid.size].mean(axis=1, keepdims=True)
    return FoldFit(
        _final_logistic(space, labels, c=float(grid[best]), start=near),
        float(area[best]),
        0.0 if spread is None else spread,
        float(grid[best]),
    )
