"""Many L2 logistic regressions on one matrix at once, in its row space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.special import expit

__all__ = ["RowSpace", "row_space", "solve_logistic"]

Floats: TypeAlias = NDArray[np.float64]

RANK_TOLERANCE = 1e-10  # of the largest squared singular value
MAX_ITERATIONS = 5000
NO_SIGNAL = 1e-6


@dataclass(frozen=True)
class RowSpace:
    """A standardised matrix in the basis of its singular vectors.

    ``points`` has dims (text, rank) and orthogonal columns whose squared lengths are ``power``.
    The basis that takes weights back to standardised features is ``right``, or, where there are
    more features than texts, ``rows.T @ right``: a matrix that is never made.
    """

    mean: Floats
    scale: Floats
    points: Floats
    power: Floats
    right: Floats
    rows: Floats | None

    def raw_weights(self, coefficients: Floats) -> Floats:
        """Return weights (hidden, ...) on unstandardised activations of (rank, ...)."""
        inside = self.right @ coefficients
        standardised = inside if self.rows is None else self.rows.T @ inside
        result: Floats = (standardised.T / self.scale).T
        return result

    def raw_weight(self, coefficients: Floats, intercept: float) -> tuple[Floats, float]:
        """Return weight and bias that act on unstandardised activations."""
        weight = self.raw_weights(coefficients)
        return weight, intercept - float(weight @ self.mean)


def row_space(x: Floats) -> RowSpace:
    """Return the standardised rows of ``x`` (text, hidden) in their singular basis.

    One eigendecomposition of the smaller Gram matrix. A constant feature has no power and gets
    no weight.
    """
    mean = x.mean(axis=0)
    centred = x - mean
    scale = np.sqrt(np.einsum("th,th->h", centred, centred) / x.shape[0])
    # A constant feature in floating point: its spread is rounding of its own mean.
    constant = scale <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
    centred[:, constant] = 0.0
    scale = np.where(constant, 1.0, scale)
    centred /= scale
    wide = x.shape[1] > x.shape[0]
    gram = centred @ centred.T if wide else centred.T @ centred
    power, vectors = eigh(gram, driver="evd")
    kept = power > RANK_TOLERANCE * max(float(power[-1]), 1e-300)
    power, vectors = power[kept], vectors[:, kept]
    if wide:
        root = np.sqrt(power)
        return RowSpace(mean, scale, vectors * root, power, vectors / root, centred)
    return RowSpace(mean, scale, centred @ vectors, power, vectors, None)


def solve_logistic(
    space: RowSpace,
    labels: NDArray[np.bool_],
    *,
    weights: Floats,
    c: Floats,
    tolerance: float,
    start: Floats | None = None,
) -> Floats:
    """Return the coefficients of P L2-penalised logistic regressions on the same rows.

    Each minimises C Σᵢ weightᵢ log(1 + exp(−tᵢ zᵢ)) + ½‖w‖², with a free intercept, as
    scikit-learn's ``LogisticRegression(C=C)`` does. Accelerated gradient with adaptive restart
    (O'Donoghue & Candès 2015) in the metric of the curvature bound ¼XᵀX + I/C (Böhning &
    Lindsay 1988), which is diagonal in this basis: the unit step needs no line search.

    Parameters
    ----------
    space
        Rows in the singular basis.
    labels
        dims (text,), or (text, problem) where each problem has labels of its own.
    weights
        dims (text, problem): 1 where a text belongs to the problem, else 0.
    c
        dims (problem,), inverse penalty.
    tolerance
        Of the gradient in that metric, relative to its value at zero coefficients.
    start
        dims (rank + 1, problem), near the solution; None starts at zero. The problem is convex:
        it saves time and changes nothing else.

    Returns
    -------
    Coefficients with dims (rank + 1, problem); the last row is the intercept.
    """
    n, rank = space.points.shape
    design = np.concatenate([space.points, np.ones((n, 1))], axis=1)
    transposed = np.ascontiguousarray(design.T)
    own = labels.ndim > 1
    target = labels.astype(np.float64) if own else labels.astype(np.float64)[:, None]
    penalty = np.concatenate([np.tile(1.0 / c, (rank, 1)), np.zeros((1, c.size))])
    bound = 0.25 * np.append(space.power, n)[:, None] + penalty
    result = np.zeros((rank + 1, c.size))
    at_zero = transposed @ (weights * (0.5 - target))
    # Where the classes have the same points the gradient at zero is rounding, which no
    # tolerance can be relative to: the floor is a millionth of what separable classes have.
    scale = np.einsum("ij,ij->j", at_zero, at_zero / bound)
    limit = np.maximum(scale, NO_SIGNAL * weights.sum(axis=0)) * tolerance**2

    active = np.arange(c.size)
    current = result.copy() if start is None else start.copy()
    ahead = current
    momentum = np.ones(c.size)
    for iteration in range(MAX_ITERATIONS):
        gradient = transposed @ (weights * (expit(design @ ahead) - target)) + penalty * ahead
        step = gradient / bound
        size = np.einsum("ij,ij->j", gradient, step)
        following = ahead - step
        move = following - current
        grown = 0.5 * (1 + np.sqrt(1 + 4 * momentum**2))
        uphill = np.einsum("ij,ij->j", gradient, move) > 0
        grown[uphill] = 1.0
        ahead = following + np.where(uphill, 0.0, (momentum - 1) / grown) * move
        current, momentum = following, grown
        done = size <= limit
        if done.any() or iteration == MAX_ITERATIONS - 1:
            result[:, active] = current
            left = ~done
            if not left.any():
                break
            active, limit, momentum = active[left], limit[left], momentum[left]
            current, ahead = current[:, left], ahead[:, left]
            penalty, bound, weights = penalty[:, left], bound[:, left], weights[:, left]
            target = target[:, left] if own else target
    return result
