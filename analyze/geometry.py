"""Principal components of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from ..schemas import InvalidInputError
from .auroc import Floats

__all__ = ["PrincipalAxes", "effective_rank", "principal_axes"]

SINGLE_ROWS = 128  # fewer rows are quickly done in double precision
SPARE = 16  # eigenvectors more than asked for: what those mix up lies mostly among themselves
MIXED = 1e-3  # largest error of the Gram matrix, as a share of the last eigenvalue of interest
EPSILON = float(np.finfo(np.float32).eps)
STEP_ROWS = 64  # projected at a time, so that they stay in the cache


@dataclass(frozen=True)
class PrincipalAxes:
    """The principal axes of a cloud of points.

    ``axes`` has dims (component, hidden), unit rows; ``variance`` (component,) with divisor
    n − 1. ``total_variance`` and ``effective_rank`` are of the whole covariance; both are 0 where
    nothing varies.
    """

    mean: Floats
    axes: Floats
    variance: Floats
    total_variance: float
    effective_rank: float

    @property
    def explained(self) -> Floats:
        """Share of the total variance of every component."""
        result: Floats = self.variance / self.total_variance
        return result

    def project(self, x: NDArray[Any]) -> Floats:
        """Return the coordinates of ``x`` (text, hidden), dims (text, component).

        The products of float32 rows are in float32: their differences have no more digits.
        """
        kind = np.float32 if x.dtype == np.float32 else np.float64
        mean, axes = self.mean.astype(kind), self.axes.astype(kind)
        result = np.empty((len(x), len(axes)))
        for start in range(0, len(x), STEP_ROWS):
            rows = slice(start, start + STEP_ROWS)
            result[rows] = np.subtract(x[rows], mean, dtype=kind) @ axes.T
        return result


def effective_rank(spectrum: Floats) -> float:
    """Return (tr Σ)²/tr Σ² of a covariance with eigenvalues ``spectrum`` (SCIENCE §4)."""
    return float(spectrum.sum() ** 2 / (spectrum**2).sum())


def principal_axes(x: NDArray[Any], *, n_components: int) -> PrincipalAxes:
    """Return the leading principal axes of ``x`` (text, hidden), in float64.

    One eigendecomposition of the smaller Gram matrix. An axis points where its entry of largest
    size is positive. There are as many axes as directions with variance, at most
    ``n_components``; none where all rows are equal.

    Where ``x`` is float32 and wide, the products are in its own precision: the leading
    eigenvectors of the Gram matrix, with some to spare, and then the rows that they span, whose
    Gram matrix gives the axes (Rayleigh & Ritz). That squares what the first matrix lost, so that
    singular values are as good as those of an SVD of ``x`` in float32. A spectrum too wide for it
    is done in double precision.
    """
    if x.shape[0] < 2:
        msg = f"principal components need two texts or more, got {x.shape[0]}"
        raise InvalidInputError(msg)
    n, hidden = x.shape
    mean = x.mean(axis=0, dtype=np.float64)
    found = None
    if x.dtype == np.float32 and SINGLE_ROWS <= n <= hidden and n_components + SPARE <= n // 2:
        found = _mixed_axes(x, mean, n_components=n_components)
    if found is None:
        found = _double_axes(x, mean, n_components=n_components)
    axes, power, trace, squared = found
    # Rows that differ only by the rounding of their own mean have no variance.
    floor = max(float(power[0]) * 1e-12, float((mean**2).sum()) * n * 1e-28)
    n_axes = min(n_components, int((power > floor).sum()))
    axes = axes[:n_axes]
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    largest = np.abs(axes).argmax(axis=1)
    axes *= np.sign(axes[np.arange(n_axes), largest])[:, None]
    if n_axes == 0:
        return PrincipalAxes(mean, axes, power[:0], 0.0, 0.0)
    return PrincipalAxes(mean, axes, power[:n_axes] / (n - 1), trace / (n - 1), trace**2 / squared)


def _double_axes(
    x: NDArray[Any], mean: Floats, *, n_components: int
) -> tuple[Floats, Floats, float, float]:
    """Return axes of any length, their power, and trace and squared norm of the Gram matrix."""
    centred = np.subtract(x, mean, dtype=np.float64)
    wide = x.shape[1] > x.shape[0]
    gram = centred @ centred.T if wide else centred.T @ centred
    power, vectors = _leading(gram, n_components)
    axes = vectors.T @ centred if wide else np.ascontiguousarray(vectors.T)
    return axes, power, float(np.trace(gram)), float((gram**2).sum())


def _mixed_axes(
    x: NDArray[np.float32], mean: Floats, *, n_components: int
) -> tuple[Floats, Floats, float, float] | None:
    """Return the same by way of single precision; None where that has too few digits."""
    centred = x - mean.astype(np.float32)
    gram = (centred @ centred.T).astype(np.float64)
    # About the mean as float32 has it; what is left of the true one is taken off here.
    of_row = gram.mean(axis=0)
    gram += of_row.mean() - of_row - of_row[:, None]
    trace, squared = float(np.trace(gram)), float((gram**2).sum())
    if not np.isfinite(squared):
        return None
    power, vectors = _leading(gram.astype(np.float32), n_components + SPARE)
    if EPSILON * trace > MIXED * power[n_components - 1]:
        return None
    space = (vectors.T @ centred).astype(np.float64)
    ritz, turn = eigh(space @ space.T, driver="evd")
    axes = turn[:, ::-1].T[:n_components] @ space
    return axes, ritz[::-1][:n_components].clip(min=0), trace, squared


def _leading(gram: NDArray[Any], k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the ``k`` largest eigenvalues of a symmetric matrix, descending, and vectors."""
    n = len(gram)
    if 2 * k < n:
        power, vectors = eigh(gram, driver="evr", subset_by_index=(n - k, n - 1))
    else:
        power, vectors = eigh(gram, driver="evd")
    return power[::-1].clip(min=0), vectors[:, ::-1]
