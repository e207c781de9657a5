"""Agreement: exact intervals of a share, Krippendorff's alpha and its bootstrap."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..schemas import Agreement

__all__ = ["alpha_agreement", "ordinal_alpha", "share_agreement"]


def share_agreement(name: str, successes: int, n: int, *, level: float = 0.95) -> Agreement:
    """Return a share with its Clopper-Pearson interval: 20 of 20 is still only .83 or more."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence_level=level, method="exact")
    return Agreement(
        name=name,
        value=successes / n,
        low=float(interval.low),
        high=float(interval.high),
        n=n,
        method="Clopper-Pearson",
    )


def ordinal_alpha(ratings: ArrayLike) -> float | None:
    """Return Krippendorff's alpha for ordinal ratings, None where it is undefined.

    Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section E, with the ordinal
    difference of its part F. Undefined where fewer than two ratings can be paired, or all that
    can be are the same.

    Parameters
    ----------
    ratings
        dims (rater, unit), numbers in their order; NaN where a rater gave none.
    """
    values = np.asarray(ratings, dtype=np.float64)
    levels = np.unique(values[~np.isnan(values)])
    if not levels.size:
        return None
    counts = np.stack([(values == level).sum(axis=0) for level in levels], axis=1).astype(float)
    per_unit = counts.sum(axis=1)
    counts, per_unit = counts[per_unit > 1], per_unit[per_unit > 1]
    if not counts.size:
        return None
    together = counts.T @ (counts / (per_unit - 1)[:, None])
    together -= np.diag((counts / (per_unit - 1)[:, None]).sum(axis=0))
    marginal = together.sum(axis=1)
    n = marginal.sum()
    below = np.cumsum(marginal)
    # the ratings between two levels, those of both ends by half
    between = np.abs(below[:, None] - below[None, :] - (marginal[:, None] - marginal[None, :]) / 2)
    distance = between**2
    expected = float((np.outer(marginal, marginal) * distance).sum())
    if expected == 0:
        return None
    return 1 - float((n - 1) * (together * distance).sum() / expected)


def alpha_agreement(
    name: str,
    ratings: NDArray[np.float64],
    clusters: ArrayLike,
    *,
    n_bootstrap: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Agreement:
    """Return Krippendorff's ordinal alpha with a bootstrap interval over clusters of units.

    Parameters
    ----------
    name
        Whose agreement it is.
    ratings
        dims (rater, unit).
    clusters
        dims (unit,): the units of one cluster (the two texts of a pair) are drawn together.
    n_bootstrap
        Draws; those in which alpha is undefined are left out, and counted in the note.
    seed
        Of the draws.
    level
        Of the interval.
    """
    value = ordinal_alpha(ratings)
    method = "Krippendorff's alpha, ordinal; percentile bootstrap over pairs"
    names, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if value is None:
        note = "all ratings are the same: alpha is undefined"
        return Agreement(name=name, value=None, n=names.size, method=method, note=note)
    members = [np.flatnonzero(codes == code) for code in range(names.size)]
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(n_bootstrap):
        chosen = rng.integers(names.size, size=names.size)
        draws.append(ordinal_alpha(ratings[:, np.concatenate([members[c] for c in chosen])]))
    known = [draw for draw in draws if draw is not None]
    note = f"undefined in {len(draws) - len(known)} draws" if len(known) < len(draws) else ""
    if value == 1:
        note = "no disagreement was seen: the interval has no width, see the share that agrees"
    tail = (1 - level) / 2
    low, high = np.quantile(known, [tail, 1 - tail]) if known else (np.nan, np.nan)
    return Agreement(
        name=name,
        value=value,
        low=float(low) if known else None,
        high=float(high) if known else None,
        n=names.size,
        method=method,
        note=note,
    )
