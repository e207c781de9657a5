"""Strengths that stand out on a curve: the least effective one, the knee, the middle."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import dunnett

from ..schemas import DoseSpec
from .clusters import Floats
from .dose_samples import DoseCounts

__all__ = ["find_knee", "minimum_effective", "why_not_identified"]


def minimum_effective(samples: pd.DataFrame, spec: DoseSpec, *, sign: int) -> dict[str, Any]:
    """Return the fields of the smallest strength whose outcome differs from the baseline's.

    Dunnett's test of every strength of one sign against strength 0 on means per prompt.
    """
    head = {
        "metric": "minimum_effective_dose",
        "method": "Dunnett, one-sided, means per prompt",
        "estimate": None,
    }
    known = samples[samples.outcome.notna() & samples.alpha_raw.mul(sign).ge(0)]
    arrays = {
        float(alpha): part.groupby("prompt").outcome.mean().to_numpy(dtype=np.float64)
        for alpha, part in ((a, known[known.alpha_raw == a]) for a in known.alpha_raw.unique())
    }
    control = arrays.pop(0.0, np.array([]))
    arrays = {alpha: part for alpha, part in arrays.items() if part.size > 1}
    if control.size < 2 or not arrays:
        return head | {"reason": "Dunnett's test needs two prompts at strength 0 and another"}
    pooled = [control, *arrays.values()]
    spread = sum(float(((part - part.mean()) ** 2).sum()) for part in pooled)
    if spread <= (1e-12 * max(float(np.abs(part).max()) for part in pooled)) ** 2:
        return head | {"reason": "the outcome does not vary between prompts"}
    with warnings.catch_warnings():  # equal values at one strength have variance 0, as they should
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)
        found = dunnett(
            *arrays.values(),
            control=control,
            alternative="greater" if sign > 0 else "less",
            rng=np.random.default_rng(spec.seed),
        )
    p_values = dict(zip(arrays, np.atleast_1d(found.pvalue), strict=True))
    effective = [a for a, p in p_values.items() if p < 1 - spec.level]
    if not effective:
        lowest = float(min(p_values.values()))
        reason = f"no strength differs from 0 (smallest p {lowest:.3f})"
        return head | {"reason": reason, "p_value": lowest}
    alpha = min(effective, key=abs)
    return head | {"estimate": abs(alpha), "p_value": float(p_values[alpha])}


def find_knee(counts: DoseCounts) -> dict[str, Any]:
    """Return the fields of kneedle's knee (Satopaa et al. 2011), which is a description only."""
    from kneed import KneeLocator

    head = {"metric": "knee", "method": "kneedle, a description only", "estimate": None}
    rates = counts.rates(np.ones((1, len(counts.trials))))[0]
    kept = np.isfinite(rates)
    if kept.sum() < 4 or np.ptp(rates[kept]) == 0:
        return head | {"reason": "too few strengths, or all rates are equal"}
    with warnings.catch_warnings():  # it warns where it finds none, which is an answer
        warnings.simplefilter("ignore")
        knee = KneeLocator(counts.alphas[kept], rates[kept]).knee
    if knee is None:
        return head | {"reason": "the curve has no knee"}
    return head | {"estimate": float(knee)}


def why_not_identified(
    alpha50: tuple[float, float] | None,
    rise: tuple[float, float] | None,
    *,
    alphas: Floats,
    n_clusters: int,
) -> str | None:
    """Return why the middle of a curve is not identified, or None where it is."""
    if alpha50 is None or rise is None or n_clusters < 2:
        return f"not identified: {n_clusters} cluster is too few to resample"
    if rise[0] <= 0.01:  # a fitted curve never falls, so 0 itself is never inside
        return (
            "not identified: success does not rise over the grid (the interval of the rise is "
            f"{rise[0]:.2f} to {rise[1]:.2f})"
        )
    low, high = alphas[0], alphas[-1]
    below, above = alpha50[0] < low, alpha50[1] > high
    if below or above:
        beyond = "spans the grid" if below and above else "reaches beyond the grid"
        return (
            f"not identified: the interval {alpha50[0]:.3g} to {alpha50[1]:.3g} {beyond}, which "
            f"is {low:g} to {high:g}"
        )
    return None
