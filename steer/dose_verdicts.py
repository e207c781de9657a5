"""Whether a claimed strength is needed, or a smaller one does as well."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..schemas import DoseSpec
from .clusters import Floats, cluster_weights, percentiles
from .dose_samples import DoseCounts

__all__ = ["judge_claim"]

# Where no cluster disagrees the bootstrap has width 0. By the rule of three up to 3/n of the
# clusters may disagree; 1.5/n is the standard deviation that puts 3/n at two of them.
_RULE_OF_THREE = 1.5


def judge_claim(counts: DoseCounts, spec: DoseSpec) -> dict[str, Any]:
    """Return the fields of a verdict on ``spec.claimed`` for one side.

    Success at each smaller strength minus success at the claimed one, with intervals that hold
    at once for all of them: a bootstrap over clusters of the largest studentised difference.
    """
    rule = (
        f"needed where every smaller strength has less success; not needed where a smaller one, "
        f"with an effect of its own, lacks less than {spec.margin:g}; intervals at level "
        f"{spec.level:g} for all smaller strengths at once, bootstrap over {len(counts.trials)} "
        "clusters"
    )
    head: dict[str, Any] = {"claimed_raw": spec.claimed, "rule": rule}
    at = np.flatnonzero(np.isclose(counts.alphas, spec.claimed))
    smaller = np.flatnonzero(
        (counts.alphas > 0)
        & (counts.alphas < spec.claimed)
        & ~np.isclose(counts.alphas, spec.claimed)
        & (counts.trials.sum(axis=0) > 0)
    )
    if at.size == 0 or smaller.size == 0:
        grid = ", ".join(f"{a:g}" for a in counts.alphas)
        reason = f"the strengths of this side are {grid}: the claim is {spec.claimed:g}"
        return head | {"verdict": "not tested", "reason": reason}
    n_clusters = len(counts.trials)
    if n_clusters < 2:
        return head | {"verdict": "undecided", "reason": "one cluster has no interval"}
    ones = np.ones((1, n_clusters))
    weights = cluster_weights(n_clusters, n_draws=spec.n_bootstrap, seed=spec.seed)
    effects = counts.mean_effects(weights)
    lows = [percentiles(effects[:, i], level=spec.level) for i in range(counts.alphas.size)]
    own = lows[at[0]]
    if own is None or own[0] <= 0:
        ends = "is not known" if own is None else f"is {own[0]:.3g} to {own[1]:.3g}"
        reason = f"the interval of the mean effect at {spec.claimed:g} {ends}"
        return head | {"verdict": "no effect shown", "reason": reason}
    difference, low, high = _simultaneous(
        counts.rates(ones)[0], counts.rates(weights), smaller, at=int(at[0]), level=spec.level,
        n_clusters=n_clusters,
    )  # fmt: skip
    for i, dose in enumerate(smaller):
        found = lows[dose]
        if low[i] > -spec.margin and found is not None and found[0] > 0:
            alpha = float(counts.alphas[dose])
            return head | {
                "verdict": "not needed",
                "reason": f"{alpha:g} does as well: success differs by {difference[i]:+.2f} "
                f"({low[i]:+.2f} to {high[i]:+.2f})",
                "sufficient_raw": alpha,
                "difference": float(difference[i]),
                "difference_low": float(low[i]),
                "difference_high": float(high[i]),
            }
    best = int(difference.argmax())
    shown = {
        "difference": float(difference[best]),
        "difference_low": float(low[best]),
        "difference_high": float(high[best]),
    }
    nearest = (
        f"the best smaller strength, {counts.alphas[smaller[best]]:g}, differs by "
        f"{difference[best]:+.2f} ({low[best]:+.2f} to {high[best]:+.2f})"
    )
    if (high < 0).all():
        return head | shown | {"verdict": "needed", "reason": nearest}
    return head | shown | {"verdict": "undecided", "reason": nearest}


def _simultaneous(
    rates: Floats, drawn: Floats, smaller: np.ndarray, *, at: int, level: float, n_clusters: int
) -> tuple[Floats, Floats, Floats]:
    """Return differences to the claimed strength and the ends of their joint intervals."""
    difference = rates[smaller] - rates[at]
    draws = drawn[:, smaller] - drawn[:, [at]]
    draws = draws[np.isfinite(draws).all(axis=1)]
    sd = np.maximum(draws.std(axis=0), _RULE_OF_THREE / n_clusters)
    largest = np.abs((draws - difference) / sd).max(axis=1)
    # The floor of the deviations must not shrink the factor below that of a normal.
    factor = max(float(np.quantile(largest, level)), 1.959964)
    return difference, difference - factor * sd, difference + factor * sd
