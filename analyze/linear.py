"""Linear probes with closed forms: what they are, and their weights from a fold's scatter.

All of them are functions of one eigendecomposition. With total scatter T of the training texts
about their mean, m pairs and δ = μ₊ − μ₋, the difference of means is δ, ridge regression on the
labels is m(T + κI)⁻¹δ, and LDA, whose within-class scatter is T − (m/2)δδᵀ, is (T + κI)⁻¹δ up to
a positive factor (Sherman & Morrison 1950), with κ from its shrinkage. T does not change when
both labels of a pair are exchanged: many relabellings share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

__all__ = [
    "LinearProbe",
    "Scatter",
    "Shrinkage",
    "pair_component",
    "press_errors",
    "ridge_penalties",
    "shrinkage_intensity",
    "spectral_weights",
    "train_scatter",
    "within_scale",
]

Floats: TypeAlias = NDArray[np.float64]
Shrinkage = Literal["ledoit_wolf", "oas"]

RANK_TOLERANCE = 1e-11
EQUAL = 1e-24  # of the total scatter: two class means nearer than this are equal


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
class Scatter:
    """Training pairs of one fold about their mean, in the eigenbasis of their total scatter.

    ``points`` has dims (row, rank), positives first; ``power`` (rank,) are the eigenvalues;
    ``basis`` (feature, rank) has orthonormal columns; ``hidden`` is the width of the
    activations, which may be more than there are features here.
    """

    centre: Floats
    points: Floats
    power: Floats
    basis: Floats
    hidden: int

    @property
    def n_pairs(self) -> int:
        """Training pairs."""
        return int(self.points.shape[0]) // 2

    @property
    def signs(self) -> Floats:
        """The labels of the rows, +1 and -1, dims (row,)."""
        return np.repeat([1.0, -1.0], self.n_pairs)

    @property
    def delta(self) -> Floats:
        """The difference μ₊ − μ₋ in the eigenbasis, dims (rank,)."""
        return self.points.T @ self.signs / self.n_pairs

    @property
    def left(self) -> Floats:
        """The rows with orthonormal columns, dims (row, rank)."""
        return self.points / np.sqrt(self.power)

    def probe(self, weight: Floats) -> LinearProbe:
        """Return the probe with ``weight`` (rank,), its bias midway between the means."""
        scale = float(weight @ self.delta)
        # Means that differ by rounding alone: no weight, rather than a direction of noise.
        floor = EQUAL * float(self.power.sum())
        if scale <= 0 or float(self.delta @ self.delta) <= floor:
            return LinearProbe(np.zeros_like(self.centre), 0.0)
        raw = self.basis @ weight
        return LinearProbe(raw, -float(raw @ self.centre), scale=scale)


def train_scatter(train: Floats, *, hidden: int | None = None) -> Scatter:
    """Return the scatter of the training pairs ``train`` (arm, pair, feature), float64.

    ``hidden`` is the width of the activations that the features are coordinates of.
    """
    n_features = train.shape[-1]
    rows = train.reshape(-1, n_features)
    centre = rows.mean(axis=0)
    centred = rows - centre
    wide = n_features > rows.shape[0]
    power, vectors = eigh(centred @ centred.T if wide else centred.T @ centred, driver="evd")
    kept = power > RANK_TOLERANCE * max(float(power[-1]), 1e-300)
    power, vectors = power[kept], vectors[:, kept]
    if wide:
        return Scatter(
            centre,
            points=vectors * np.sqrt(power),
            power=power,
            basis=centred.T @ (vectors / np.sqrt(power)),
            hidden=hidden or n_features,
        )
    return Scatter(
        centre, points=centred @ vectors, power=power, basis=vectors, hidden=hidden or n_features
    )


def _moments(scatter: Scatter, delta: Floats, signs: Floats) -> tuple[Floats, Floats, Floats]:
    """Return tr S, tr S² and Σᵢ‖zᵢ‖⁴ of the within-class covariance S, dims (draw,).

    ``delta`` has dims (rank, draw) and ``signs`` (row, draw). A row zᵢ is xᵢ − g − yᵢδ/2, and
    N·S = T − (m/2)δδᵀ: nothing but products with the shared eigenbasis.
    """
    n, m = scatter.points.shape[0], scatter.n_pairs
    squared = np.einsum("rb,rb->b", delta, delta)
    quadratic = scatter.power @ delta**2
    trace = (scatter.power.sum() - m / 2 * squared).clip(min=0) / n
    trace_squared = ((scatter.power**2).sum() - m * quadratic + (m / 2) ** 2 * squared**2).clip(
        min=0
    ) / n**2
    lengths = np.einsum("ir,ir->i", scatter.points, scatter.points)[:, None]
    lengths = lengths - signs * (scatter.points @ delta) + squared / 4
    return trace, trace_squared, np.einsum("ib,ib->b", lengths, lengths)


def shrinkage_intensity(
    scatter: Scatter, delta: Floats, signs: Floats, *, method: Shrinkage
) -> tuple[Floats, Floats]:
    """Return the shrinkage of the within-class covariance and its mean variance, dims (draw,).

    Ledoit & Wolf (2004, J. Multivar. Anal. 88, eq. 14 ff.) or OAS (Chen, Wiesel, Eldar & Hero
    2010, eq. 23), of the pooled within-class residuals, computed in the row space. The
    covariance is (1 − s)S + s·μ·I with μ the mean variance over all hidden features.
    """
    n, p = scatter.points.shape[0], scatter.hidden
    trace, trace_squared, fourth = _moments(scatter, delta, signs)
    mean = trace / p
    spread = ((trace_squared - trace**2 / p) / p).clip(min=0)
    if method == "oas":
        numerator = trace_squared / p**2 + mean**2
        denominator = (n + 1) * (trace_squared / p**2 - mean**2 / p)
    else:
        numerator = ((fourth / n - trace_squared) / (p * n)).clip(min=0)
        denominator = spread
    intensity = np.divide(
        numerator, denominator, out=np.ones_like(numerator), where=denominator > 0
    )
    return intensity.clip(0, 1), mean


def spectral_weights(scatter: Scatter, delta: Floats, *, intensity: Floats, mean: Floats) -> Floats:
    """Return A⁻¹δ with A = (1 − s)T/N + s·μ·I, dims (rank, draw): LDA up to a positive factor."""
    n = scatter.points.shape[0]
    inside = (1 - intensity) * scatter.power[:, None] / n + intensity * mean
    weights: Floats = np.divide(delta, inside, out=np.zeros_like(delta), where=inside > 0)
    return weights


def within_scale(weights: Floats, delta: Floats, *, intensity: Floats) -> Floats:
    """Return the factor from :func:`spectral_weights` to (Σ_w + λI)⁻¹δ, dims (draw,)."""
    gain = (1 - intensity) / 4 * np.einsum("rb,rb->b", weights, delta)
    # Classes that no within-class variance separates: the inverse has no bound, so stop short.
    result: Floats = 1 / (1 - gain).clip(min=1e-12)
    return result


def ridge_penalties(scatter: Scatter, grid: Sequence[float]) -> Floats:
    """Return the penalties κ of ``grid``, largest first, in units of the mean scatter per row."""
    unit = float(scatter.power.sum()) / scatter.points.shape[0]
    return np.array(sorted(grid, reverse=True)) * (unit or 1.0)


def press_errors(
    scatter: Scatter,
    groups: NDArray[np.int64],
    signs: Floats,
    *,
    penalty: float,
) -> Floats:
    """Return label minus prediction of ridge regressions that left the row's group out.

    Exact, without a refit: e₋g = (I − H_gg)⁻¹ e_g for the hat matrix H of the fit on all groups
    (Allen 1974 for one row; the same identity holds for blocks).

    Parameters
    ----------
    scatter
        The training pairs.
    groups
        dims (row,), the inner fold of each row; both texts of a pair share it.
    signs
        dims (row, draw), the labels as +1 and -1.
    penalty
        κ, on the scatter.

    Returns
    -------
    dims (row, draw).
    """
    n = scatter.points.shape[0]
    left = scatter.left
    kept = scatter.power / (scatter.power + penalty)
    residual = signs - left @ (kept[:, None] * (left.T @ signs))
    residual = residual - signs.mean(axis=0)
    errors: Floats = np.empty_like(residual)
    for name in np.unique(groups):
        mine = np.flatnonzero(groups == name)
        hat = (left[mine] * kept) @ left[mine].T + 1 / n
        errors[mine] = np.linalg.solve(np.eye(mine.size) - hat, residual[mine])
    return errors


def pair_component(differences: Floats) -> Floats:
    """Return the first principal axis of pair differences (pair, feature), any sign.

    Each difference enters in both orders, so that recentring, which RepE (arXiv 2310.01405,
    §3.1) does over pairs in random order, leaves the concept in: centring differences that all
    point from one arm to the other would remove it.
    """
    m, n_features = differences.shape
    wide = n_features > m
    gram = differences @ differences.T if wide else differences.T @ differences
    top = gram.shape[0] - 1
    _, vectors = eigh(gram, subset_by_index=[top, top])
    axis = differences.T @ vectors[:, 0] if wide else vectors[:, 0]
    length = float(np.linalg.norm(axis))
    return axis / length if length > 0 else np.zeros(n_features)
