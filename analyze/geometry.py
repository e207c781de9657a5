"""Principal components of activations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from ..schemas import InvalidInputError
from .auroc import Floats

__all__ = ["PrincipalAxes", "effective_rank", "principal_axes"]


@dataclass(frozen=True)
class PrincipalAxes:
    """The principal axes of a cloud of points.

    ``axes`` has dims (component, hidden), unit rows; ``variance`` (component,) with divisor
    n − 1; ``spectrum`` all eigenvalues of the covariance, descending.
    """

    mean: Floats
    axes: Floats
    variance: Floats
    spectrum: Floats

    @property
    def explained(self) -> Floats:
        """Share of the total variance of every component."""
        result: Floats = self.variance / self.spectrum.sum()
        return result

    def project(self, x: Floats) -> Floats:
        """Return the coordinates of ``x`` (text, hidden), dims (text, component)."""
        result: Floats = (x - self.mean) @ self.axes.T
        return result


def effective_rank(spectrum: Floats) -> float:
    """Return (tr Σ)²/tr Σ² of a covariance with eigenvalues ``spectrum`` (SCIENCE §4)."""
    return float(spectrum.sum() ** 2 / (spectrum**2).sum())


def principal_axes(x: Floats, *, n_components: int) -> PrincipalAxes:
    """Return the leading principal axes of ``x`` (text, hidden), in float64.

    One eigendecomposition of the smaller Gram matrix. An axis points where its entry of largest
    size is positive. There are as many axes as directions with variance, at most
    ``n_components``; none where all rows are equal.
    """
    if x.shape[0] < 2:
        msg = f"principal components need two texts or more, got {x.shape[0]}"
        raise InvalidInputError(msg)
    mean = x.mean(axis=0, dtype=np.float64)
    centred = np.subtract(x, mean, dtype=np.float64)
    wide = x.shape[1] > x.shape[0]
    gram = centred @ centred.T if wide else centred.T @ centred
    power, vectors = eigh(gram, driver="evd")
    power, vectors = power[::-1].clip(min=0), vectors[:, ::-1]
    # Rows that differ only by the rounding of their own mean have no variance.
    floor = max(float(power[0]) * 1e-12, float((mean**2).sum()) * x.shape[0] * 1e-28)
    n_axes = min(n_components, int((power > floor).sum()))
    kept = vectors[:, :n_axes]
    axes = (centred.T @ kept if wide else kept).T
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    axes = axes / np.where(lengths > 0, lengths, 1.0)
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(n_axes), largest])[:, None]
    spectrum = np.where(power > floor, power, 0.0) / (x.shape[0] - 1)
    return PrincipalAxes(mean, axes, spectrum[:n_axes], spectrum)
