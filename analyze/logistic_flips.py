"""Label-flip refits of the logistic probe: no closed form, so each draw is fitted in full.

The rows of a fold do not depend on the labels, so that all draws share one standardised matrix in
its singular basis and are solved side by side; each tunes its own C in the inner folds and stops
at the tolerance of the probe itself. Nothing is approximated, and a draw costs about what the
probe does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .auroc import Floats, auroc_columns
from .logistic import RowSpace, row_space, solve_logistic
from .probes import FIT_TOLERANCE, TUNE_TOLERANCE
from .splits import Fold

__all__ = ["logistic_flip_scores"]

DRAWS_AT_ONCE = 32  # bounds the memory of the problems that are solved side by side


def logistic_flip_scores(
    x: Floats, folds: Sequence[Fold], signs: Floats, *, c_grid: Sequence[float]
) -> Floats:
    """Return held-out scores under every relabelling, dims (arm, pair, draw).

    Row 0 holds the texts that the draw labels positive. Pairs that no fold holds out are NaN.

    Parameters
    ----------
    x
        dims (arm, pair, hidden): activations, since features are standardised.
    folds
        Outer folds; probes never see what a fold holds out.
    signs
        dims (pair, draw), −1 where the labels of a pair are exchanged.
    c_grid
        What every draw tunes over.
    """
    scores = np.full((2, *signs.shape), np.nan)
    for fold in folds:
        train = x[:, fold.train]
        space = row_space(train.reshape(-1, x.shape[-1]))
        standardised = (x[:, fold.test] - space.mean) / space.scale
        basis = space.right if space.rows is None else space.rows.T @ space.right
        held = standardised @ basis  # (arm, pair, rank)
        for start in range(0, signs.shape[1], DRAWS_AT_ONCE):
            draws = slice(start, start + DRAWS_AT_ONCE)
            solved, scale = _solve(space, fold, signs[fold.train, draws], c_grid=c_grid)
            found = (held @ solved[:-1] + solved[-1]) / scale
            exchanged = signs[fold.test, draws] < 0
            scores[:, fold.test, draws] = np.where(exchanged, found[::-1], found)
    return scores


def _solve(
    space: RowSpace, fold: Fold, signs: Floats, *, c_grid: Sequence[float]
) -> tuple[Floats, Floats]:
    """Return coefficients (rank + 1, draw) of the tuned fits, and their class separations."""
    labels = np.concatenate([signs > 0, signs < 0])  # (text, draw)
    grid = np.array(sorted(c_grid))
    n_texts, n_draws = labels.shape
    n_folds = int(fold.inner_tune.max()) + 1
    chosen, start = np.zeros(n_draws, dtype=np.int64), None
    if n_folds > 1:
        fold_of_row = np.tile(fold.inner_tune, 2)
        inside = (fold_of_row[:, None] != np.arange(n_folds)).astype(np.float64)
        # Problems by draw, then inner fold, then C.
        solved = solve_logistic(
            space,
            np.repeat(labels, n_folds * grid.size, axis=1),
            weights=np.tile(np.repeat(inside, grid.size, axis=1), n_draws),
            c=np.tile(grid, n_draws * n_folds),
            tolerance=TUNE_TOLERANCE,
        )
        every = (space.points @ solved[:-1] + solved[-1]).reshape(
            n_texts, n_draws, n_folds, grid.size
        )
        inner = np.take_along_axis(every, fold_of_row[:, None, None, None], axis=2)[:, :, 0]
        arms = inner.reshape(2, -1, n_draws, grid.size)
        ordered = np.where((signs < 0)[..., None], arms[::-1], arms)
        flat = ordered.reshape(n_texts, -1)
        known = np.repeat([True, False], n_texts // 2)
        chosen = auroc_columns(flat, known).reshape(n_draws, grid.size).argmax(axis=1)
        folded = solved.reshape(-1, n_draws, n_folds, grid.size)
        at_best = np.take_along_axis(folded, chosen[None, :, None, None], axis=3)[..., 0]
        start = at_best.mean(axis=2)
    solved = solve_logistic(
        space,
        labels,
        weights=np.ones((n_texts, n_draws)),
        c=grid[chosen],
        tolerance=FIT_TOLERANCE,
        start=start,
    )
    values = space.points @ solved[:-1]
    share = labels / labels.sum(axis=0) - ~labels / (~labels).sum(axis=0)
    separation = np.einsum("td,td->d", share, values)
    return solved, np.where(separation > 0, separation, 1.0)
