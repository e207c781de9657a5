"""Inner products of activations in four coordinate systems, as Gram matrices of the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from ..schemas import InvalidInputError
from .auroc import Floats

__all__ = ["SPACES", "Space", "oas_shrinkage", "outlier_dimensions", "spaces"]

SPACES = ("raw", "standardised", "whitened", "outliers_removed")


@dataclass(frozen=True)
class Space:
    """The Gram matrix of the centred texts in one coordinate system.

    ``gram`` has dims (text, text); ``hidden`` is the number of its dimensions, of which the
    isotropic null's sd is 1/√hidden; ``note`` says what was removed or shrunk.
    """

    name: str
    gram: Floats
    hidden: int
    note: str = ""


def outlier_dimensions(x: Floats, *, n_dims: int) -> NDArray[np.int64]:
    """Return the dimensions of the largest mean square over the texts, largest first.

    The mean square, not the variance: a massive activation can be nearly constant.
    """
    return np.argsort(-np.einsum("td,td->d", x, x), kind="stable")[:n_dims]


def oas_shrinkage(residuals: Floats, *, n_freedom: int) -> tuple[float, float]:
    """Return the intensity ρ and the target μ of Σ ≈ (1 − ρ)S + ρμI.

    Oracle approximating shrinkage (Chen et al. 2010, IEEE TSP 58:5016, eq. 23), from the traces
    of S = RᵀR/n alone; ``residuals`` R has dims (text, hidden) and ``n_freedom`` is n.
    """
    hidden = residuals.shape[1]
    wide = residuals.shape[0] < hidden
    gram = residuals @ residuals.T if wide else residuals.T @ residuals
    trace = float(np.trace(gram)) / n_freedom
    squared = float((gram**2).sum()) / n_freedom**2
    above = (1 - 2 / hidden) * squared + trace**2
    below = (n_freedom + 1 - 2 / hidden) * (squared - trace**2 / hidden)
    intensity = 1.0 if below <= 0 else min(1.0, above / below)
    return intensity, trace / hidden


def spaces(
    x: Floats, *, groups: Sequence[str] | NDArray[np.str_], n_outliers: int
) -> dict[str, Space]:
    """Return the four coordinate systems of the texts ``x`` (text, hidden).

    Differences of means are vectors: they are divided by the standard deviation of each
    dimension (``standardised``), multiplied by Σ^(−1/2) (``whitened``), or lose the dimensions
    with the largest mean square (``outliers_removed``). Deviations are within ``groups``, so that
    the concept itself is not divided away; Σ is shrunk by OAS and never formed (Woodbury).

    Raises
    ------
    InvalidInputError
        If the texts do not vary within their groups.
    """
    codes = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    member = np.equal.outer(np.arange(codes.max() + 1), codes).astype(np.float64)
    residuals = x - (member.T @ ((member @ x) / member.sum(axis=1, keepdims=True)))
    n_freedom = x.shape[0] - member.shape[0]
    sd = np.sqrt(np.einsum("td,td->d", residuals, residuals) / max(n_freedom, 1))
    moving = sd > 1e-7 * np.sqrt(np.mean(x**2, axis=0))
    if n_freedom < 1 or not moving.any():
        msg = "the activations do not vary within the arms; there is no scale to measure them by"
        raise InvalidInputError(msg)
    centred = x - x.mean(axis=0)
    hidden = x.shape[1]
    scaled = np.where(moving, centred / np.where(moving, sd, 1.0), 0.0)
    dropped = outlier_dimensions(x, n_dims=min(n_outliers, hidden - 1))
    kept = np.delete(centred, dropped, axis=1)
    intensity, target = oas_shrinkage(residuals, n_freedom=n_freedom)
    raw = centred @ centred.T
    return {
        "raw": Space("raw", raw, hidden),
        "standardised": Space("standardised", scaled @ scaled.T, int(moving.sum())),
        "whitened": Space(
            "whitened",
            _whitened(centred, residuals, raw, intensity=intensity, target=target, n=n_freedom),
            hidden,
            f"OAS shrinkage {intensity:.3g}",
        ),
        "outliers_removed": Space(
            "outliers_removed", kept @ kept.T, kept.shape[1], f"without dims {dropped.tolist()}"
        ),
    }


def _whitened(
    centred: Floats, residuals: Floats, raw: Floats, *, intensity: float, target: float, n: int
) -> Floats:
    """Return X Σ⁻¹ Xᵀ with Σ = (1 − ρ)RᵀR/n + ρμI, by the smaller of two systems."""
    share, ridge = (1 - intensity) / n, intensity * target
    if share == 0:
        return raw / ridge
    if residuals.shape[0] < residuals.shape[1]:
        cross = centred @ residuals.T
        system = residuals @ residuals.T
        system[np.diag_indices_from(system)] += ridge / share
        result: Floats = (raw - cross @ cho_solve(cho_factor(system), cross.T)) / ridge
        return (result + result.T) / 2
    covariance = share * residuals.T @ residuals
    covariance[np.diag_indices_from(covariance)] += ridge
    result = centred @ cho_solve(cho_factor(covariance), centred.T)
    return (result + result.T) / 2
