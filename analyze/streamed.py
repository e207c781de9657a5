"""What follows from statistics without another read: PCA, ridge, LDA, means, re-pooling."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, eigh
from scipy.linalg.blas import dsymv

from ..schemas import InvalidInputError
from .auroc import Floats
from .geometry import PrincipalAxes
from .probes import LinearProbe
from .statistics import Moments, Statistics

__all__ = [
    "Pooled",
    "repool",
    "streamed_axes",
    "streamed_diff_means",
    "streamed_lda",
    "streamed_ridge",
]


@dataclass(frozen=True)
class Pooled:
    """Pooled activations of texts, dims (text, hidden); ``counts`` says of how many tokens.

    A text of which no token was kept is not there.
    """

    texts: NDArray[np.int64]
    values: Floats
    counts: Floats


def streamed_axes(moments: Moments, *, n_components: int) -> PrincipalAxes:
    """Return the leading principal axes of the rows that ``moments`` are of.

    Eigenvectors of the scatter, only those asked for; signs as :func:`principal_axes` has them.

    Raises
    ------
    InvalidInputError
        If there are fewer than two rows, or they do not vary.
    """
    hidden = moments.mean.size
    if moments.n < 2 or moments.trace <= 0:
        msg = f"principal components need rows that vary, got {moments.n} rows"
        raise InvalidInputError(msg)
    k = min(n_components, hidden, moments.n - 1)
    power, vectors = eigh(
        moments.scatter, lower=True, subset_by_index=(hidden - k, hidden - 1), driver="evr"
    )
    power, axes = power[::-1].clip(min=0), vectors[:, ::-1].T
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.sign(axes[np.arange(k), largest])[:, None]
    freedom = moments.n - 1
    return PrincipalAxes(
        moments.mean,
        axes,
        power / freedom,
        moments.trace / freedom,
        moments.trace**2 / moments.squared,
    )


def _contrast(moments: Moments) -> tuple[Floats, int, int]:
    """Return μ₊ − μ₋ and the rows of each class, where the one target is 0 or 1.

    Σ(x − x̄)(y − ȳ) is (μ₊ − μ₋) n₊n₋/n.

    Raises
    ------
    InvalidInputError
        If there is not one target, it is not 0 or 1, or one class has no row.
    """
    if moments.target_mean.size != 1:
        msg = f"a probe needs one target, the label as 0 or 1, got {moments.target_mean.size}"
        raise InvalidInputError(msg)
    share, n = float(moments.target_mean[0]), moments.n
    n_positive = round(share * n)
    spread = float(moments.target_scatter[0])
    expected = n_positive * (n - n_positive) / n
    if abs(share * n - n_positive) > 1e-6 * n or abs(spread - expected) > 1e-6 * max(n, 1):
        msg = f"labels must be 0 or 1; their mean is {share:.6g} and their scatter {spread:.6g}"
        raise InvalidInputError(msg)
    if n_positive in {0, n}:
        msg = f"one class: {n_positive} of {n} rows are positive; a probe needs both"
        raise InvalidInputError(msg)
    return moments.cross[:, 0] / expected, n_positive, n - n_positive


def _midpoint(moments: Moments, delta: Floats, n_positive: int) -> Floats:
    """Return (μ₊ + μ₋)/2."""
    share = n_positive / moments.n
    result: Floats = moments.mean + delta * (0.5 - share)
    return result


def _probe(weight: Floats, moments: Moments, delta: Floats, n_positive: int) -> LinearProbe:
    separation = float(weight @ delta)
    bias = -float(weight @ _midpoint(moments, delta, n_positive))
    return LinearProbe(weight, bias, scale=separation if separation > 0 else 1.0)


def streamed_diff_means(moments: Moments) -> LinearProbe:
    """Return the difference of means of the rows with target 1 and 0 (SCIENCE §1)."""
    delta, n_positive, _ = _contrast(moments)
    return _probe(delta, moments, delta, n_positive)


def streamed_ridge(moments: Moments, *, penalty: float) -> LinearProbe:
    """Return ridge regression on the label, w = (S + κI)⁻¹Σ(x − x̄)(y − ȳ).

    ``penalty`` is κ in units of the mean eigenvalue of the scatter. The decision value is the
    regression's own, less one half, so that 0 is the threshold between the classes.
    """
    delta, _, _ = _contrast(moments)
    kappa = penalty * moments.trace / moments.mean.size
    weight = _solve(moments.scatter, kappa, moments.cross[:, 0])
    bias = float(moments.target_mean[0]) - float(weight @ moments.mean) - 0.5
    separation = float(weight @ delta)
    return LinearProbe(weight, bias, scale=separation if separation > 0 else 1.0)


def streamed_lda(moments: Moments) -> LinearProbe:
    """Return (Σ_w + shrinkage)⁻¹(μ₊ − μ₋), with OAS (Chen et al. 2010, eq. 23).

    Σ_w is the scatter less what lies between the classes. The shrinkage counts rows as
    independent; tokens of one text are not, so that it is smaller than it should be.
    """
    delta, n_positive, n_negative = _contrast(moments)
    hidden, n = moments.mean.size, moments.n - 2
    if n < 1:
        msg = f"LDA needs three rows or more, got {moments.n}"
        raise InvalidInputError(msg)
    between = n_positive * n_negative / moments.n
    length = float(delta @ delta)
    trace = (moments.trace - between * length) / n
    # tr((S − bδδᵀ)²) = tr(S²) − 2b δᵀSδ + b²‖δ‖⁴, with S from its lower triangle.
    s_delta = _times(moments.scatter, delta)
    squared = (
        moments.squared - 2 * between * float(delta @ s_delta) + between**2 * length**2
    ) / n**2
    below = (n + 1 - 2 / hidden) * (squared - trace**2 / hidden)
    above = (1 - 2 / hidden) * squared + trace**2
    intensity = 1.0 if below <= 0 else min(1.0, above / below)
    if trace <= 0:
        return _probe(delta, moments, delta, n_positive)
    if intensity == 1:
        return _probe(delta * hidden / trace, moments, delta, n_positive)
    share, ridge = (1 - intensity) / n, intensity * trace / hidden
    # By Sherman & Morrison (1950) the between-class part changes the length of the solution
    # alone: (S − bδδᵀ + κI)⁻¹δ = u/(1 − b δᵀu) with u = (S + κI)⁻¹δ.
    u = _solve(moments.scatter, ridge / share, delta)
    weight = u / (1 - between * float(delta @ u)) / share
    return _probe(weight, moments, delta, n_positive)


def _times(lower: Floats, vector: Floats) -> Floats:
    """Return S·v for a symmetric matrix of which the lower triangle is right."""
    result: Floats = dsymv(1.0, lower, vector, lower=1)
    return result


def _solve(lower: Floats, kappa: float, right: Floats) -> Floats:
    """Return (S + κI)⁻¹r; a singular S without a penalty is refused."""
    system = lower.copy(order="F")
    system[np.diag_indices_from(system)] += kappa
    try:
        factor = cho_factor(system, lower=True, overwrite_a=True)
    except np.linalg.LinAlgError as err:
        msg = f"the scatter of the rows is singular with penalty {kappa:.3g}; take a larger one"
        raise InvalidInputError(msg) from err
    result: Floats = cho_solve(factor, right)
    return result


def repool(statistics: Statistics, *, n_marks: int = 1, drop: Collection[int] = ()) -> Pooled:
    """Return the pooled activations of every text without the tokens of the marks in ``drop``.

    Cells are text·n_marks + mark. Other tokens have still attended to those left out.

    Raises
    ------
    InvalidInputError
        If a mark is not one of them, or no token is left.
    """
    strange = sorted(set(drop) - set(range(n_marks)))
    if strange:
        msg = f"marks are 0 to {n_marks - 1}, got {strange}"
        raise InvalidInputError(msg)
    keep = ~np.isin(statistics.cells % n_marks, list(drop))
    texts, code = np.unique(statistics.cells[keep] // n_marks, return_inverse=True)
    if not texts.size:
        msg = f"no token is left without the marks {sorted(drop)}"
        raise InvalidInputError(msg)
    counts = np.zeros(texts.size)
    np.add.at(counts, code, statistics.cell_counts[keep])
    values = np.zeros((texts.size, statistics.hidden))
    share = statistics.cell_counts[keep] / counts[code]
    np.add.at(values, code, statistics.cell_means[keep] * share[:, None])
    return Pooled(texts, values, counts)
