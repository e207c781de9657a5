"""The five linear probes of a fold, with what its inner folds say about the layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..schemas import ProbeMethod
from .auroc import auroc, auroc_columns
from .linear import (
    LinearProbe,
    Scatter,
    Shrinkage,
    pair_component,
    press_errors,
    ridge_penalties,
    shrinkage_intensity,
    spectral_weights,
    train_scatter,
    within_scale,
)
from .logistic import RowSpace, row_space, solve_logistic
from .splits import Fold

__all__ = [
    "INNER_TUNED",
    "FoldFit",
    "LinearProbe",
    "Tuning",
    "d_prime",
    "fit_diff_means",
    "fit_fold",
    "fit_lda",
    "fit_logistic",
    "fit_pca_diff",
    "fit_ridge",
    "lda_weight",
]

Floats: TypeAlias = NDArray[np.float64]

TUNE_TOLERANCE = 3e-3
FIT_TOLERANCE = 5e-5
INNER_TUNED = ("logistic", "pca_diff")  # judged by three inner folds, the others by scenario


@dataclass(frozen=True)
class Tuning:
    """What a fold tunes, and over which values."""

    c_grid: Sequence[float] = (1e-4, 1e-2, 1.0, 1e2)
    lambda_grid: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
    shrinkage: Shrinkage = "ledoit_wolf"


@dataclass(frozen=True)
class FoldFit:
    """A probe fitted on one outer fold, with what its inner folds say about this layer.

    ``c`` is the inverse penalty of a logistic probe, ``penalty`` the ridge penalty in units of
    the mean scatter per text, or LDA's shrinkage intensity.
    """

    probe: LinearProbe
    inner_auroc: float
    inner_d_prime: float
    c: float | None = None
    penalty: float | None = None


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


def fit_lda(
    x: Floats, *, shrinkage: Shrinkage = "ledoit_wolf", hidden: int | None = None
) -> LinearProbe:
    """Return w = (Σ_w + λI)⁻¹(μ₊ − μ₋) with Σ_w and λ by shrinkage (SCIENCE §1).

    ``x`` has dims (arm, pair, hidden); ``hidden`` is the width of the activations where ``x``
    are coordinates of theirs.
    """
    return _lda(train_scatter(x, hidden=hidden), shrinkage)[0]


def fit_ridge(x: Floats, *, penalty: float) -> LinearProbe:
    """Return ridge regression on the labels ±1, in the dual, with a free intercept.

    ``x`` has dims (arm, pair, hidden); ``penalty`` is in units of the mean scatter per text, so
    that one grid serves every layer.
    """
    scatter = train_scatter(x)
    return _ridge(scatter, float(ridge_penalties(scatter, [penalty])[0]))


def fit_pca_diff(x: Floats) -> LinearProbe:
    """Return the first principal axis of the pair differences, signed by the class means.

    ``x`` has dims (arm, pair, hidden). The weight is the projection of μ₊ − μ₋ on that axis, so
    that its length says how much of the difference of means lies on it.
    """
    axis = pair_component(x[0] - x[1])
    means = x.mean(axis=1)
    separation = float((means[0] - means[1]) @ axis)
    weight = separation * axis
    return LinearProbe(weight, -float(weight @ means.mean(axis=0)), scale=separation**2 or 1.0)


def fit_fold(
    x: Floats,
    fold: Fold,
    *,
    method: ProbeMethod,
    tuning: Tuning,
    hidden: int | None = None,
    scatter_of: Callable[[Fold], Scatter] | None = None,
) -> FoldFit:
    """Return the probe of ``method`` fitted on the training pairs of ``fold``.

    ``x`` has dims (arm, pair, feature) over all pairs; only ``fold.train`` is read. The inner
    AUROC and d′ come from pooled inner out-of-fold scores: of leave-one-scenario-out for the
    difference of means, ridge and LDA, and of the three folds that tune C for the logistic
    probe and judge the principal axis.

    Parameters
    ----------
    x
        Activations, or coordinates of them in an orthonormal basis (not for ``logistic``, which
        standardises features).
    fold
        Which pairs train, and the inner folds.
    method
        One of the five probes.
    tuning
        Grids of the penalties, and LDA's shrinkage.
    hidden
        Width of the activations where ``x`` are coordinates; None: the features of ``x``.
    scatter_of
        Where the scatter of a fold's training pairs in these coordinates is known already.
    """
    train = x[:, fold.train]
    if method == "diff_means":
        return _diff_means_fold(train, fold.inner_scenario)
    if method == "logistic":
        return _logistic_fold(train, fold.inner_tune, c_grid=tuning.c_grid)
    if method == "pca_diff":
        return _pca_fold(train, fold.inner_tune)
    scatter = scatter_of(fold) if scatter_of else train_scatter(train, hidden=hidden)
    if method == "lda":
        return _lda_fold(scatter, fold.inner_scenario, shrinkage=tuning.shrinkage)
    return _ridge_fold(scatter, fold.inner_scenario, grid=tuning.lambda_grid)


def lda_weight(scatter: Scatter, shrinkage: Shrinkage) -> Floats:
    """Return the LDA weight of a scatter in the features that it was made from."""
    return _lda(scatter, shrinkage)[0].weight


def _lda(scatter: Scatter, shrinkage: Shrinkage) -> tuple[LinearProbe, float, float]:
    """Return the LDA probe, its shrinkage intensity and the penalty κ that it stands for."""
    delta, signs = scatter.delta[:, None], scatter.signs[:, None]
    intensity, mean = shrinkage_intensity(scatter, delta, signs, method=shrinkage)
    weights = spectral_weights(scatter, delta, intensity=intensity, mean=mean)
    weights = weights * within_scale(weights, delta, intensity=intensity)
    kept = max(1 - float(intensity[0]), 1e-12)
    kappa = float(intensity[0] * mean[0]) * scatter.points.shape[0] / kept
    return scatter.probe(weights[:, 0]), float(intensity[0]), kappa


def _ridge(scatter: Scatter, kappa: float) -> LinearProbe:
    return scatter.probe(scatter.n_pairs * scatter.delta / (scatter.power + kappa))


def _judge_inner(scores: Floats) -> tuple[float, float]:
    """Return AUROC and d′ of inner out-of-fold scores, dims (arm, pair)."""
    spread = d_prime(scores[0], scores[1])
    labels = np.repeat([True, False], scores.shape[1])
    return auroc(scores.ravel(), labels), 0.0 if spread is None else spread


def _lda_fold(scatter: Scatter, inner: NDArray[np.int64], *, shrinkage: Shrinkage) -> FoldFit:
    """Fit LDA; its inner scores keep the shrinkage of the whole training fold.

    With that penalty its scores are those of ridge regression up to a factor, whose
    leave-group-out predictions cost no refit.
    """
    probe, intensity, kappa = _lda(scatter, shrinkage)
    if int(inner.max()) < 1:
        return FoldFit(probe, float("nan"), float("nan"), penalty=intensity)
    if scatter.power.size == 0:
        return FoldFit(probe, 0.5, 0.0, penalty=intensity)
    signs = scatter.signs[:, None]
    errors = press_errors(scatter, np.tile(inner, 2), signs, penalty=max(kappa, 1e-12))
    area, spread = _judge_inner((signs - errors).reshape(2, -1))
    return FoldFit(probe, area, spread, penalty=intensity)


def _ridge_fold(scatter: Scatter, inner: NDArray[np.int64], *, grid: Sequence[float]) -> FoldFit:
    """Tune the penalty by the squared error over inner folds (ties: the stronger), fit on all."""
    penalties, names = ridge_penalties(scatter, grid), sorted(grid, reverse=True)
    if int(inner.max()) < 1 or scatter.power.size == 0:
        nothing = float("nan") if int(inner.max()) < 1 else 0.5
        probe = _ridge(scatter, float(penalties[0]))
        return FoldFit(probe, nothing, 0.0 * nothing, penalty=names[0])
    signs, groups = scatter.signs[:, None], np.tile(inner, 2)
    errors = [press_errors(scatter, groups, signs, penalty=float(kappa)) for kappa in penalties]
    best = int(np.argmin([float((e**2).sum()) for e in errors]))
    area, spread = _judge_inner((signs - errors[best]).reshape(2, -1))
    return FoldFit(_ridge(scatter, float(penalties[best])), area, spread, penalty=names[best])


def _pca_fold(train: Floats, inner: NDArray[np.int64]) -> FoldFit:
    """Fit the principal axis of differences, and score every inner fold by the others'."""
    probe = fit_pca_diff(train)
    if int(inner.max()) < 1:
        return FoldFit(probe, float("nan"), float("nan"))
    scores = np.zeros(train.shape[:2])
    for number in range(int(inner.max()) + 1):
        held = inner == number
        scores[:, held] = fit_pca_diff(train[:, ~held]).score(train[:, held])
    return FoldFit(probe, *_judge_inner(scores))


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
