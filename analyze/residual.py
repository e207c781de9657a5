"""Deconfounding: activations and labels with their confounds regressed out inside folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .auroc import Floats
from .splits import Fold

__all__ = ["Confounds", "residual_scores"]

EXPLAINED = 1e-8  # of the labels' variance: what is left is rounding


class Confounds:
    """Numbers and categories of every text, as a matrix that each fold makes from its own.

    Parameters
    ----------
    numbers
        dims (text, feature).
    categories
        One array with dims (text,) per category.
    """

    def __init__(self, numbers: Floats, categories: Sequence[NDArray[Any]]) -> None:
        self.numbers = numbers
        self.categories = list(categories)

    def matrices(self, train: NDArray[np.int64], test: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Return the standardised confounds of the training and the test texts.

        A category that no training text has (a held-out scenario) counts as average: zero.
        """
        mean = self.numbers[train].mean(axis=0)
        spread = self.numbers[train].std(axis=0)
        spread = np.where(spread > 1e-12 * np.maximum(np.abs(mean), 1), spread, np.inf)
        out = [[(self.numbers[rows] - mean) / spread for rows in (train, test)]]
        for values in self.categories:
            names = np.unique(values[train])
            dummies = [np.equal.outer(values[rows], names).astype(float) for rows in (train, test)]
            share = dummies[0].mean(axis=0)
            known = dummies[1].any(axis=1, keepdims=True)
            out.append([dummies[0] - share, np.where(known, dummies[1] - share, 0.0)])
        first, second = zip(*out, strict=True)
        return np.concatenate(first, axis=1), np.concatenate(second, axis=1)


def residual_scores(
    points: Floats, confounds: Confounds, folds: Sequence[Fold]
) -> tuple[Floats, int]:
    """Return held-out scores after residualising, dims (arm, pair), and the folds without any.

    In each fold, activations and labels are regressed on the confounds of the training texts
    (ordinary least squares); the probe is the covariance of what is left, X_rᵀy_r, which is the
    difference of means where nothing was regressed out; held-out activations lose what the
    training regression predicts from their confounds. Where the confounds predict the training
    labels exactly, nothing is left and the fold's scores are 0.

    Parameters
    ----------
    points
        dims (arm, pair, feature).
    confounds
        Of the texts in the order of the flattened points.
    folds
        Outer folds.
    """
    n_pairs = points.shape[1]
    rows = points.reshape(2 * n_pairs, -1)
    scores = np.full(2 * n_pairs, np.nan)
    n_empty = 0
    for fold in folds:
        train = np.concatenate([fold.train, fold.train + n_pairs])
        test = np.concatenate([fold.test, fold.test + n_pairs])
        inside, outside = confounds.matrices(train, test)
        mean = rows[train].mean(axis=0)
        labels = np.repeat([0.5, -0.5], fold.train.size)
        both = np.concatenate([rows[train] - mean, labels[:, None]], axis=1)
        coefficients = np.linalg.lstsq(inside, both, rcond=1e-10)[0]
        left = both - inside @ coefficients
        if float(left[:, -1] @ left[:, -1]) <= EXPLAINED * float(labels @ labels):
            scores[test] = 0.0
            n_empty += 1
            continue
        weight = left[:, :-1].T @ left[:, -1]
        held = rows[test] - mean - outside @ coefficients[:, :-1]
        along = left[:, :-1] @ weight
        scale = along[: fold.train.size].mean() - along[fold.train.size :].mean()
        scores[test] = held @ weight / scale if scale > 0 else 0.0
    return scores.reshape(2, n_pairs), n_empty
