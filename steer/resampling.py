"""Intervals of means and of ratios of means, by resampling pairs."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

__all__ = ["draw_weights", "interval_of_mean", "interval_of_ratio", "p_of_null", "wilson"]

Floats: TypeAlias = NDArray[np.float64]
_LEVELS = (0.025, 0.975)


def draw_weights(n_pairs: int, *, n_draws: int, seed: int) -> Floats:
    """Return the share of each pair in each bootstrap draw, (draw, pair)."""
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs), size=n_draws)
    shares: Floats = counts / n_pairs
    return shares


def interval_of_mean(values: Floats, weights: Floats) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of ``values`` (pair,)."""
    low, high = np.quantile(weights @ values, _LEVELS)
    return float(low), float(high)


def interval_of_ratio(above: Floats, below: Floats, weights: Floats) -> tuple[float, float]:
    """Return the 95 % percentile interval of mean(above) / mean(below), pairs kept together.

    A ratio of means, not a mean of ratios: one pair with next to nothing below would decide the
    latter (Heimersheim & Nanda 2404.15255, §4).
    """
    drawn = weights @ below
    # A draw whose denominator is exactly 0 has no ratio: it counts as boundless, at both ends.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (weights @ above) / drawn
    ratios = np.where(np.isnan(ratios), np.inf, ratios)
    low, high = np.quantile(ratios, _LEVELS, method="nearest")
    return float(low), float(high)


def p_of_null(observed: float, null: Floats) -> float:
    """Return (1 + draws at least as far from 0) / (1 + draws)."""
    return float((1 + np.sum(np.abs(null) >= abs(observed))) / (1 + len(null)))


def wilson(n_hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    found = binomtest(n_hits, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
