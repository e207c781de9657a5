"""Changes against strength 0 with intervals that resample clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import t

from .clusters import Floats, cluster_weights, percentiles

__all__ = ["Estimate", "mean_shift", "prompt_slopes", "weighted_draws"]

_Z = 1.959964
# By the rule of three up to 3/n of n clusters may behave in a way that none of them showed.
_RULE_OF_THREE = 3.0


@dataclass(frozen=True)
class Estimate:
    """A mean over samples, with its interval and the clusters behind it."""

    value: float
    low: float | None
    high: float | None
    n_clusters: int
    method: str

    @property
    def fields(self) -> dict[str, float | str | None]:
        """The fields of a result row."""
        ends = {"ci_low": self.low, "ci_high": self.high, "ci_method": self.method}
        return {"estimate": self.value, **ends}


def weighted_draws(values: Floats, cluster: np.ndarray, *, n_draws: int, seed: int) -> Floats:
    """Return means of ``values`` (sample,) when clusters are resampled, dims (draw,).

    Drawn means spread too little where clusters are few: their distances from the mean are
    stretched by sqrt(n/(n - 1)) t/z, which makes quantiles of them the expanded percentile
    interval (Hesterberg 2015, 1411.5279).
    """
    names, code = np.unique(cluster.astype(str), return_inverse=True)
    weights = cluster_weights(names.size, n_draws=n_draws, seed=seed)
    total = weights @ np.bincount(code, weights=values)
    drawn = total / (weights @ np.bincount(code))
    n = names.size
    if n < 2:
        return np.asarray(drawn)
    stretch = float(np.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)) / _Z
    result: Floats = values.mean() + stretch * (drawn - values.mean())
    return result


def mean_shift(
    samples: pd.DataFrame,
    column: str,
    *,
    n_draws: int,
    seed: int,
    level: float,
    binary: bool = False,
) -> Estimate | None:
    """Return the mean of a column over its known values, None where there are none.

    Where all clusters of a ``binary`` outcome agree, the bootstrap has width 0 and the interval
    is widened by the rule of three, 3/n.
    """
    known = samples[samples[column].notna()]
    if known.empty:
        return None
    values = known[column].to_numpy(dtype=np.float64)
    cluster = known.cluster.to_numpy()
    n_clusters = known.cluster.nunique()
    method = f"expanded percentile bootstrap over {n_clusters} clusters"
    if n_clusters < 2:
        return Estimate(float(values.mean()), None, None, n_clusters, "none: one cluster")
    found = percentiles(weighted_draws(values, cluster, n_draws=n_draws, seed=seed), level=level)
    low, high = found if found is not None else (None, None)
    if binary and low is not None and high is not None:
        mean, wide = float(values.mean()), _RULE_OF_THREE / n_clusters
        if high - mean < wide or mean - low < wide:
            method += ", widened by the rule of three"
        low, high = min(low, mean - wide), max(high, mean + wide)
    return Estimate(float(values.mean()), low, high, n_clusters, method)


def prompt_slopes(samples: pd.DataFrame) -> pd.DataFrame:
    """Return the least-squares slope of the outcome of each prompt with two strengths or more.

    Columns prompt, cluster, slope.
    """
    known = samples[samples.outcome.notna()]
    records = [
        (prompt, part.cluster.iloc[0], float(np.polyfit(part.alpha_raw, part.outcome, 1)[0]))
        for prompt, part in known.groupby("prompt", sort=False)
        if part.alpha_raw.nunique() > 1
    ]
    return pd.DataFrame(records, columns=["prompt", "cluster", "slope"])
