"""How firm a direction is: its cosine between disjoint halves of the pairs, and resamples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..schemas import ProbeMethod, Reliability
from .linear import Floats, pair_component, ridge_penalties, train_scatter
from .logistic import row_space, solve_logistic
from .probes import TUNE_TOLERANCE, Tuning, lda_weight

__all__ = ["MIN_PAIRS", "draw_halves", "reliabilities", "spearman_brown"]

Ints: TypeAlias = NDArray[np.int64]
Fits: TypeAlias = dict[ProbeMethod, tuple[Floats, float | None]]

MIN_PAIRS = 4  # two in each half


def spearman_brown(cosine: float) -> float:
    """Return 2r/(1 + r), the cosine of two fits on twice the pairs; 0 for r ≤ 0.

    Exact for a mean with independent noise: r = ‖μ‖²/(‖μ‖² + σ²/m) at m pairs.
    """
    return 2 * cosine / (1 + cosine) if cosine > 0 else 0.0


def draw_halves(scenario: NDArray[np.str_], *, n_draws: int, seed: int) -> list[tuple[Ints, Ints]]:
    """Return disjoint halves of the pairs; every scenario is divided as evenly as it can be."""
    rng = np.random.default_rng(seed)
    order_of_scenario = np.unique(scenario, return_inverse=True)[1]
    halves = []
    for _ in range(n_draws):
        shuffled = rng.permutation(scenario.size)
        dealt = shuffled[np.argsort(order_of_scenario[shuffled], kind="stable")]
        halves.append((np.sort(dealt[::2]), np.sort(dealt[1::2])))
    return halves


def draw_resamples(scenario: NDArray[np.str_], *, n_draws: int, seed: int) -> list[Ints]:
    """Return pairs drawn with replacement inside their scenario."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(scenario == name) for name in np.unique(scenario)]
    return [
        np.concatenate([rng.choice(mine, mine.size) for mine in members]) for _ in range(n_draws)
    ]


def reliabilities(
    points: Floats,
    raw: Floats,
    *,
    scenario: NDArray[np.str_],
    fitted: Fits,
    hidden: int,
    tuning: Tuning,
    n_draws: int,
    seed: int,
) -> dict[ProbeMethod, Reliability | None]:
    """Return the reliability of the directions of one layer, None where there is too little.

    Every half and resample is refitted with the penalty that the direction has.

    Parameters
    ----------
    points
        dims (arm, pair, feature), the training pairs' coordinates in the row space.
    raw
        dims (arm, pair, hidden), their activations, for the logistic probe.
    scenario
        dims (pair,); halves and resamples keep the share of each.
    fitted
        By method: the direction (in coordinates; of raw activations for the logistic probe),
        and its penalty (ridge) or C (logistic).
    hidden
        Width of the activations.
    tuning
        LDA's shrinkage.
    n_draws
        Halves, and resamples.
    seed
        Of both.
    """
    few = scenario.size < MIN_PAIRS or n_draws < 1
    result: dict[ProbeMethod, Reliability | None] = dict.fromkeys(fitted)
    usable = {m: of for m, of in fitted.items() if np.linalg.norm(of[0]) > 0}
    if few or not usable:
        return result
    halves = draw_halves(scenario, n_draws=n_draws, seed=seed)
    resamples = draw_resamples(scenario, n_draws=n_draws, seed=seed + 1)
    closed: Fits = {m: of for m, of in usable.items() if m != "logistic"}
    subsets = [*(half for both in halves for half in both), *resamples]
    weights = _closed_weights(points, subsets, closed, hidden=hidden, tuning=tuning)
    if "logistic" in usable:
        weights["logistic"] = _logistic_weights(raw, subsets, c=usable["logistic"][1] or 1.0)
    for method, (direction, _) in usable.items():
        found = _unit(weights[method])
        first, second = found[: 2 * n_draws : 2], found[1 : 2 * n_draws : 2]
        split_half = float(np.einsum("bf,bf->b", first, second).mean())
        cosines = found[2 * n_draws :] @ _unit(direction[None])[0]
        result[method] = Reliability(
            split_half=split_half,
            spearman_brown=spearman_brown(split_half),
            bootstrap=float(cosines.mean()),
            bootstrap_low=float(np.quantile(cosines, 0.025)),
            n_draws=n_draws,
        )
    return result


def _unit(weights: Floats) -> Floats:
    length = np.linalg.norm(weights, axis=1, keepdims=True)
    result: Floats = np.divide(weights, length, out=np.zeros_like(weights), where=length > 0)
    return result


def _closed_weights(
    points: Floats,
    subsets: Sequence[Ints],
    fitted: Fits,
    *,
    hidden: int,
    tuning: Tuning,
) -> dict[ProbeMethod, Floats]:
    """Return the weights of every subset by method, dims (subset, feature)."""
    spectral = {"lda", "ridge"} & set(fitted)
    out: dict[ProbeMethod, Floats] = {
        method: np.zeros((len(subsets), points.shape[-1])) for method in fitted
    }
    for at, pairs in enumerate(subsets):
        x = points[:, pairs]
        means = x.mean(axis=1)
        delta = means[0] - means[1]
        if "diff_means" in fitted:
            out["diff_means"][at] = delta
        if "pca_diff" in fitted:
            axis = pair_component(x[0] - x[1])
            out["pca_diff"][at] = axis * np.sign(axis @ delta)
        if not spectral:
            continue
        scatter = train_scatter(x, hidden=hidden)
        if "lda" in fitted:
            out["lda"][at] = lda_weight(scatter, tuning.shrinkage)
        if "ridge" in fitted:
            kappa = ridge_penalties(scatter, [fitted["ridge"][1] or 1.0])[0]
            out["ridge"][at] = scatter.basis @ (scatter.delta / (scatter.power + kappa))
    return out


def _logistic_weights(raw: Floats, subsets: Sequence[Ints], *, c: float) -> Floats:
    """Return the logistic weights of every subset, standardised by all training pairs."""
    space = row_space(raw.reshape(-1, raw.shape[-1]))
    n_pairs = raw.shape[1]
    counts = np.stack([np.bincount(pairs, minlength=n_pairs) for pairs in subsets], axis=1)
    solved = solve_logistic(
        space,
        np.repeat([True, False], n_pairs),
        weights=np.tile(counts, (2, 1)).astype(np.float64),
        c=np.full(len(subsets), c),
        tolerance=TUNE_TOLERANCE,
    )
    return space.raw_weights(solved[:-1]).T
