"""Random readouts: how well arbitrary directions separate the classes, and p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..schemas import InvalidInputError
from .auroc import Floats, auroc_columns

__all__ = [
    "covariance_matched_scores",
    "drawn_aurocs",
    "isotropic_aurocs",
    "isotropic_directions",
    "isotropic_sd",
    "max_over_layers",
    "null_band",
    "null_p_value",
    "random_scores",
    "separation_sd",
    "signal_p_value",
]

Singles: TypeAlias = NDArray[np.float32]

FEW = 0.8  # the share of paired texts below which the others are not worth projecting
HIGH = 0.95  # the AUROC whose exceedance by random directions is reported


@lru_cache(maxsize=2)
def isotropic_directions(n_directions: int, hidden: int, *, seed: int) -> Singles:
    """Return w ~ N(0, I) with dims (hidden, draw); the same for every layer of a width.

    Drawn once per process; read-only, float32: a random direction needs no more digits.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((n_directions, hidden), dtype=np.float32).T
    drawn.flags.writeable = False
    return drawn


def covariance_matched_scores(points: Floats, *, n_draws: int, seed: int) -> Floats:
    """Return the scores of w = X_cᵀg with g ~ N(0, I), dims (arm, pair, draw).

    ``points`` has dims (arm, pair, feature): centred coordinates of all pairs. The draws lie
    where the activations vary, as a probe does, and most isotropic ones do not.
    """
    rows = points.reshape(-1, points.shape[-1])
    centred = rows - rows.mean(axis=0)
    g = np.random.default_rng(seed).standard_normal((rows.shape[0], n_draws))
    scores: Floats = centred @ (centred.T @ g)
    return scores.reshape(2, points.shape[1], n_draws)


def random_scores(values: NDArray[Any], rows: NDArray[np.int64], directions: Singles) -> Singles:
    """Return the projections of the pairs on random directions, dims (arm, pair, draw), float32.

    ``values`` has dims (text, hidden) and ``rows`` (arm, pair). One GEMM in single precision,
    after one of the texts was taken off all: a massive coordinate that all texts share would
    otherwise cost the digits of their differences, and AUROC does not depend on it.
    """
    x, chosen = np.asarray(values), rows.ravel()
    if chosen.size < FEW * x.shape[0]:
        x, chosen = x[chosen], np.arange(chosen.size)
    # Scores are fewer than activations: where most texts are paired, they are what is gathered.
    centred = np.subtract(x, x[chosen[0]], dtype=np.float32)
    result: Singles = (centred @ directions)[chosen].reshape(*rows.shape, -1)
    return result


def isotropic_aurocs(
    x: NDArray[Any], directions: NDArray[Any], *, members: Sequence[NDArray[np.int64]]
) -> Floats:
    """Return the AUROC of every direction on every set of pairs, dims (set, draw).

    ``x`` has dims (arm, pair, hidden). One GEMM for all sets, one rank sum per set.
    """
    return drawn_aurocs(x @ directions, members=members)


def drawn_aurocs(scores: NDArray[Any], *, members: Sequence[NDArray[np.int64]]) -> Floats:
    """Return the AUROC of every draw on every set of pairs, dims (set, draw).

    ``scores`` has dims (arm, pair, draw), the texts labelled positive first.
    """
    rows = []
    for pairs in members:
        chosen = scores[:, pairs].reshape(2 * pairs.size, -1)
        rows.append(auroc_columns(chosen, np.repeat([True, False], pairs.size)))
    return np.stack(rows)


def isotropic_sd(delta_squared: float, trace: float, *, n_positive: int, n_negative: int) -> float:
    """Return the sd of the AUROC of isotropic random directions.

    sqrt(asin(a²/(1 + a²))/2π) with a² = (‖Δμ‖²/tr Σ_w + 1/n₊ + 1/n₋)/2 (SCIENCE §2); a
    large-dimension approximation: the w·Δμ and wᵀΣw of random w are taken as Gaussian and
    constant.

    Parameters
    ----------
    delta_squared
        ‖Δμ‖² of the population means.
    trace
        tr Σ_w, the summed within-class variance.
    n_positive, n_negative
        Texts per class.
    """
    if trace <= 0:
        msg = f"the within-class variance must be positive, got {trace}"
        raise InvalidInputError(msg)
    a2 = (delta_squared / trace + 1 / n_positive + 1 / n_negative) / 2
    return math.sqrt(math.asin(a2 / (1 + a2)) / (2 * math.pi))


def separation_sd(x: Floats) -> float | None:
    """Return :func:`isotropic_sd` of the pairs ``x`` (arm, pair, hidden), or None without spread.

    The sampling noise of the two means is taken off their squared distance.
    """
    n = x.shape[1]
    if n < 2:
        return None
    trace = float(x.var(axis=1, ddof=1).sum(axis=1).mean())
    if trace <= 0:
        return None
    delta = x[0].mean(axis=0) - x[1].mean(axis=0)
    unbiased = max(float(delta @ delta) - trace * 2 / n, 0.0)
    return isotropic_sd(unbiased, trace, n_positive=n, n_negative=n)


def null_p_value(observed: float, draws: Floats) -> float:
    """Return (1 + b)/(1 + B) with b draws whose max(A, 1 − A) reaches ``observed``.

    Folded: a random direction has no sign, so either reading of it counts against the probe.
    That is the conservative choice for an observed AUROC above one half. Phipson & Smyth
    (arXiv 1603.05766) for the added ones.
    """
    folded = np.maximum(draws, 1 - draws)
    # Rank sums of equal orderings differ by rounding; a tie counts against the probe.
    reached = int((folded >= observed - 1e-12).sum())
    return (1 + reached) / (1 + draws.size)


def signal_p_value(observed: float, draws: Floats) -> float:
    """Return (1 + b)/(1 + B) with b draws that reach ``observed``, one-sided.

    For refits: their sign comes from training pairs, so that an AUROC below one half is no
    signal. (Phipson & Smyth, arXiv 1603.05766.)
    """
    return (1 + int((draws >= observed - 1e-12).sum())) / (1 + draws.size)


def max_over_layers(draws: Sequence[Floats]) -> Floats:
    """Return the largest folded AUROC over layers of every draw, dims (draw,).

    ``draws`` has one item of dims (draw,) per layer; the same direction stands at the same
    place in each (Westfall-Young maximum statistic).
    """
    stacked = np.stack(draws)
    result: Floats = np.maximum(stacked, 1 - stacked).max(axis=0)
    return result


def null_band(draws: Floats) -> dict[str, float]:
    """Return the summary of one null distribution of AUROCs, dims (draw,)."""
    folded = np.maximum(draws, 1 - draws)
    q025, q50, q975 = np.quantile(draws, [0.025, 0.5, 0.975])
    return {
        "n_draws": draws.size,
        "mean": float(draws.mean()),
        "sd": float(draws.std(ddof=1)) if draws.size > 1 else 0.0,
        "q025": float(q025),
        "q50": float(q50),
        "q975": float(q975),
        "max": float(draws.max()),
        "max_folded": float(folded.max()),
        "share_above_95": float((draws > HIGH).mean()),
        "share_above_95_folded": float((folded > HIGH).mean()),
    }
