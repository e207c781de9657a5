"""Intervals for samples that come in clusters: prompts, or scenarios."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

__all__ = ["Floats", "cluster_weights", "effective_size", "percentiles", "wilson"]

Floats: TypeAlias = NDArray[np.float64]


def cluster_weights(n_clusters: int, *, n_draws: int, seed: int) -> Floats:
    """Return how often each cluster is drawn, dims (draw, cluster)."""
    rng = np.random.default_rng(seed)
    share = np.full(n_clusters, 1 / n_clusters)
    return rng.multinomial(n_clusters, share, size=n_draws).astype(np.float64)


def percentiles(draws: Floats, *, level: float) -> tuple[float, float] | None:
    """Return the percentile interval of the finite draws, None where fewer than two are."""
    finite = draws[np.isfinite(draws)]
    if finite.size < 2:
        return None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def effective_size(success: ArrayLike, cluster: ArrayLike) -> float:
    """Return how many independent samples tell as much of a share as these clustered ones.

    n over the design effect, which is the ratio of the cluster-robust variance of the share to
    the binomial one and never counted below 1 (Korn & Graubard 1998, Survey Methodology 24).
    Where all samples agree nothing can be estimated, and each cluster counts once.
    """
    values = np.asarray(success, dtype=np.float64)
    _, code = np.unique(np.asarray(cluster), return_inverse=True)
    n, n_clusters = values.size, int(code.max()) + 1 if values.size else 0
    if n == n_clusters or n == 0:
        return float(n)
    share = values.mean()
    if share in {0.0, 1.0} or n_clusters < 2:
        return float(n_clusters)
    residual = np.bincount(code, weights=values - share)
    robust = n_clusters / (n_clusters - 1) * (residual**2).sum() / n**2
    inflation = robust / (share * (1 - share) / n)
    return float(n / max(1.0, inflation))


def wilson(share: float, n: float, *, level: float) -> tuple[float, float]:
    """Return Wilson's interval of a share among ``n`` samples; ``n`` need not be whole.

    Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    z2 = float(ndtri(0.5 + level / 2)) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
