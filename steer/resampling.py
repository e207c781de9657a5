"""Intervals of means and of ratios of means, by resampling pairs."""

from __future__ import annotations

import numpy as np

from .clusters import Floats, cluster_weights

__all__ = ["Floats", "draw_weights", "interval_of_mean", "interval_of_ratio", "p_of_null"]

_LEVELS = (0.025, 0.975)


def draw_weights(n_pairs: int, *, n_draws: int, seed: int) -> Floats:
    """Return the share of each pair in each bootstrap draw, (draw, pair)."""
    return cluster_weights(n_pairs, n_draws=n_draws, seed=seed) / n_pairs


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
