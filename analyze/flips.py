"""Label-flip refits: the labels of whole pairs exchanged, the probe refitted, many at once.

With signs s, the class difference of a fold is δ(s) = Σᵢ sᵢ(x₊ᵢ − x₋ᵢ)/m, linear in them, and its
total scatter does not depend on them. So all draws of a fold share one eigendecomposition, and
their scores are a few matrix products (see :mod:`.linear`). Nothing is approximated: each draw
has the scores that a refit from its labels would give, its own shrinkage or penalty included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..schemas import ProbeMethod
from .auroc import Flags, Floats
from .linear import (
    Scatter,
    pair_component,
    press_errors,
    ridge_penalties,
    shrinkage_intensity,
    spectral_weights,
    train_scatter,
)
from .probes import Tuning
from .splits import Fold

__all__ = ["LINEAR_METHODS", "draw_flips", "flip_scores"]

LINEAR_METHODS: tuple[ProbeMethod, ...] = ("diff_means", "lda", "ridge", "pca_diff")


def draw_flips(n_pairs: int, *, n_draws: int, seed: int) -> Floats:
    """Return signs with dims (pair, 1 + draw): the labels as they are, then random flips."""
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, size=(n_pairs, n_draws), dtype=np.int8) * 2.0 - 1.0
    return np.concatenate([np.ones((n_pairs, 1)), signs], axis=1)


def flip_scores(
    points: Floats,
    folds: Sequence[Fold],
    signs: Floats,
    *,
    methods: Sequence[ProbeMethod],
    tuning: Tuning,
    hidden: int,
    scatter_of: Callable[[Fold], Scatter] | None = None,
) -> dict[ProbeMethod, Floats]:
    """Return held-out scores under every relabelling, dims (arm, pair, draw).

    Row 0 holds the texts that the draw labels positive. Pairs that no fold holds out are NaN.

    Parameters
    ----------
    points
        dims (arm, pair, feature): coordinates of the pairs in their row space.
    folds
        Outer folds; probes never see what a fold holds out.
    signs
        dims (pair, draw), −1 where the labels of a pair are exchanged.
    methods
        Of the methods with a closed form.
    tuning
        Ridge's grid and LDA's shrinkage.
    hidden
        Width of the activations.
    scatter_of
        Where the scatter of a fold's training pairs is known already.
    """
    n_pairs, n_draws = signs.shape
    if scatter_of is None:
        scatter_of = lambda fold: train_scatter(points[:, fold.train], hidden=hidden)  # noqa: E731
    scores = {method: np.full((2, n_pairs, n_draws), np.nan) for method in methods}
    differences = points[0] - points[1]
    total = differences.T @ signs if "diff_means" in methods else np.zeros((1, 1))
    for fold in folds:
        exchanged = signs[fold.test] < 0
        if "diff_means" in methods:
            held = differences[fold.test].T @ signs[fold.test]
            left_out = np.setdiff1d(np.arange(n_pairs), np.concatenate([fold.train, fold.test]))
            held = held + differences[left_out].T @ signs[left_out]
            delta = (total - held) / fold.train.size
            centre = points[:, fold.train].mean(axis=(0, 1))
            found = _scores(points[:, fold.test] - centre, delta, delta)
            scores["diff_means"][:, fold.test] = _relabel(found, exchanged)
        if "pca_diff" in methods:
            train = points[:, fold.train]
            axis = pair_component(train[0] - train[1])[:, None]
            centred = (points[:, fold.test] - train.mean(axis=(0, 1))) @ axis
            projected = (differences[fold.train] @ axis).T @ signs[fold.train] / fold.train.size
            found = _scores(centred, projected, projected)
            scores["pca_diff"][:, fold.test] = _relabel(found, exchanged)
        if {"lda", "ridge"} & {*methods}:
            scatter = scatter_of(fold)
            mine, n = signs[fold.train], scatter.n_pairs
            delta = (scatter.points[:n] - scatter.points[n:]).T @ mine / n
            centred = (points[:, fold.test] - scatter.centre) @ scatter.basis
            for method in ("lda", "ridge"):
                if method in methods:
                    weights = _spectral(scatter, delta, mine, fold, method=method, tuning=tuning)
                    found = _scores(centred, weights, delta)
                    scores[method][:, fold.test] = _relabel(found, exchanged)
    return scores


def _scores(centred: Floats, weights: Floats, delta: Floats) -> Floats:
    """Return scores in class separations, dims (arm, pair, draw); 0 without a separation."""
    scale = np.einsum("rb,rb->b", weights, delta)
    values = centred @ weights
    result: Floats = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
    return result


def _relabel(scores: Floats, exchanged: Flags) -> Floats:
    """Return scores whose row 0 are the texts labelled positive."""
    return np.where(exchanged, scores[::-1], scores)


def _spectral(
    scatter: Scatter, delta: Floats, signs: Floats, fold: Fold, *, method: str, tuning: Tuning
) -> Floats:
    """Return the weights of every draw up to a positive factor, dims (rank, draw)."""
    if method == "lda":
        labels = np.concatenate([signs, -signs])
        intensity, mean = shrinkage_intensity(scatter, delta, labels, method=tuning.shrinkage)
        return spectral_weights(scatter, delta, intensity=intensity, mean=mean)
    penalties = ridge_penalties(scatter, tuning.lambda_grid)
    chosen = np.full(delta.shape[1], penalties[0])
    if int(fold.inner_scenario.max()) >= 1 and scatter.power.size:
        groups, best = np.tile(fold.inner_scenario, 2), np.full(delta.shape[1], np.inf)
        # The errors are linear in the signs, so the squared error is one quadratic form.
        each = np.concatenate([np.eye(scatter.n_pairs), -np.eye(scatter.n_pairs)])
        for kappa in penalties:
            errors = press_errors(scatter, groups, each, penalty=float(kappa))
            loss = np.einsum("pb,pb->b", signs, (errors.T @ errors) @ signs)
            chosen = np.where(loss < best, kappa, chosen)
            best = np.minimum(loss, best)
    result: Floats = delta / (scatter.power[:, None] + chosen)
    return result
