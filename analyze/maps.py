"""Affine maps between the activations of two models, fitted on the same texts.

Everything is done in the row space of the anchors: one eigendecomposition of an (anchor, anchor)
matrix per model and fold, from which every penalty, map and permutation of the anchors follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from ..schemas import InvalidInputError, MapMethod
from .auroc import Floats
from .probes import LinearProbe
from .splits import group_folds

__all__ = [
    "AffineMap",
    "AnchorMaps",
    "Basis",
    "carry_probe",
    "carry_vector",
    "fit_map",
    "random_orthogonal_map",
]

Ints = NDArray[np.int64]
RANK_TOLERANCE = 1e-12
MIN_ANCHORS = 6


@dataclass(frozen=True)
class AffineMap:
    """A map h ↦ left·right·(h − mean_from) + mean_to.

    ``left`` has dims (to, rank), ``right`` (rank, from); their product is never formed.
    """

    left: Floats
    right: Floats
    mean_from: Floats
    mean_to: Floats

    def apply(self, x: Floats) -> Floats:
        """Return the images of the rows of ``x`` (text, from), dims (text, to)."""
        result: Floats = ((x - self.mean_from) @ self.right.T) @ self.left.T + self.mean_to
        return result

    @property
    def matrix(self) -> Floats:
        """The linear part, dims (to, from)."""
        result: Floats = self.left @ self.right
        return result

    @property
    def offset(self) -> Floats:
        """The constant c of h ↦ M h + c, dims (to,)."""
        result: Floats = self.mean_to - self.left @ (self.right @ self.mean_from)
        return result


def carry_vector(forward: AffineMap, vector: Floats) -> Floats:
    """Return v_B = M v_A: a difference of activations of A as one of B (SCIENCE §5).

    ``forward`` maps A to B; ``vector`` has dims (hidden of A,).
    """
    result: Floats = forward.left @ (forward.right @ vector)
    return result


def carry_probe(backward: AffineMap, probe: LinearProbe) -> LinearProbe:
    """Return the probe of A read on B: w_B = Nᵀ w_A, b_B = b_A + w_A·c′ (SCIENCE §5).

    A probe is a covector, so it needs the map from B back to A, h_A ≈ N h_B + c′. It is
    M v only where the map is orthogonal.
    """
    weight = backward.right.T @ (backward.left.T @ probe.weight)
    bias = probe.bias + float(probe.weight @ backward.offset)
    return LinearProbe(weight, bias, scale=probe.scale)


@dataclass(frozen=True)
class Basis:
    """The centred anchors of one model as U·diag(power^½)·axes, leading components first.

    ``points`` U has dims (anchor, rank), ``power`` (rank,), ``axes`` (rank, hidden).
    """

    mean: Floats
    points: Floats
    power: Floats
    axes: Floats

    @classmethod
    def of(cls, x: Floats) -> Basis:
        """Return the basis of the rows of ``x`` (anchor, hidden)."""
        mean = x.mean(axis=0)
        centred = x - mean
        power, vectors = eigh(centred @ centred.T, driver="evd")
        power, vectors = power[::-1], vectors[:, ::-1]
        rank = int((power > max(float(power[0]), 0.0) * RANK_TOLERANCE).sum())
        rank = min(rank, len(x) - 1, x.shape[1])
        power, vectors = power[:rank], vectors[:, :rank]
        return cls(mean, vectors, power, (vectors / np.sqrt(power)).T @ centred)


def fit_map(
    source: Basis,
    target: Basis,
    *,
    method: MapMethod,
    penalty: float,
    n_components: int,
    order: Ints | None = None,
) -> AffineMap:
    """Return the map from ``source`` to ``target``, two bases of the same anchors.

    Parameters
    ----------
    source, target
        Bases of the anchors in the two models, row by row the same texts.
    method
        ``procrustes``: rotation and one scale between the leading components (Schönemann 1966,
        doi 10.1007/BF02289451); ``ridge``: penalised least squares; ``cca``: regularised
        canonical correlation, the best prediction through its components (Vinod 1976).
    penalty
        Of ridge, in units of the mean power of the components; of CCA the share of the mean
        power in each regularised covariance, 0 to 1. Procrustes has none.
    n_components
        Leading components that Procrustes and CCA use, at most what both anchors allow.
    order
        Permutes the anchors of the source: the control that breaks the correspondence.
    """
    points = source.points if order is None else source.points[order]
    if method == "ridge":
        shrunk = np.sqrt(source.power) / (source.power + penalty * source.power.mean())
        inner = (target.points * np.sqrt(target.power)).T @ (points * shrunk)
        return AffineMap(target.axes.T @ inner, source.axes, source.mean, target.mean)
    k = min(n_components, source.power.size, target.power.size)
    px, py = source.power[:k], target.power[:k]
    ux, uy = points[:, :k], target.points[:, :k]
    if method == "procrustes":
        u, s, vt = np.linalg.svd((ux * np.sqrt(px)).T @ (uy * np.sqrt(py)))
        inner = (s.sum() / px.sum()) * (u @ vt).T
    else:
        rx = (1 - penalty) * px + penalty * px.mean()
        ry = (1 - penalty) * py + penalty * py.mean()
        u, s, vt = np.linalg.svd((ux * np.sqrt(px / rx)).T @ (uy * np.sqrt(py / ry)))
        inner = np.sqrt(ry)[:, None] * ((u * s) @ vt).T / np.sqrt(rx)
    return AffineMap(target.axes[:k].T @ inner, source.axes[:k], source.mean, target.mean)


def random_orthogonal_map(
    source: Basis, target: Basis, *, n_components: int, rng: np.random.Generator
) -> AffineMap:
    """Return a uniformly random rotation between the leading components of two models."""
    k = min(n_components, source.power.size, target.power.size)
    q, r = np.linalg.qr(rng.standard_normal((k, k)))
    rotation = q * np.sign(np.diag(r))  # Haar: Mezzadri 2007, arXiv math-ph/0609050
    return AffineMap(target.axes[:k].T @ rotation, source.axes[:k], source.mean, target.mean)


class AnchorMaps:
    """All maps from one model to another that the same anchors give.

    Parameters
    ----------
    x, y
        Anchors in the source and the target, dims (anchor, hidden), row by row the same texts.
    groups
        What is held out together, dims (anchor,).
    n_folds, n_components, seed
        Of the held-out R² and of the choice of the penalty inside it.

    Raises
    ------
    InvalidInputError
        If there are fewer than six anchors or three groups, or one model does not vary.
    """

    def __init__(
        self,
        x: Floats,
        y: Floats,
        *,
        groups: NDArray[np.str_],
        n_folds: int,
        n_components: int,
        seed: int,
    ) -> None:
        n_groups = np.unique(groups).size
        if len(x) != len(y):
            msg = f"maps need the same anchors in both models, got {len(x)} and {len(y)}"
            raise InvalidInputError(msg)
        if len(x) < MIN_ANCHORS or n_groups < 3:
            msg = (
                f"a map between models needs {MIN_ANCHORS} anchor texts or more in three groups "
                f"or more, got {len(x)} in {n_groups}; add neutral texts to the corpus, or take "
                "anchors = 'train'"
            )
            raise InvalidInputError(msg)
        if not np.ptp(x, axis=0).any() or not np.ptp(y, axis=0).any():
            msg = "the anchors have equal activations in one of the two models: nothing to map"
            raise InvalidInputError(msg)
        self.n_components = n_components
        self.n_folds = min(n_folds, n_groups)
        self.source, self.target = Basis.of(x), Basis.of(y)
        # Errors over the anchors are the same in coordinates of their own span, however wide
        # the models are.
        self.x, self.y = (
            basis.points * np.sqrt(basis.power) for basis in (self.source, self.target)
        )
        fold = group_folds(groups, self.n_folds, seed=seed)
        self.outer = [self._split(np.arange(len(x)), fold, k) for k in range(self.n_folds)]
        # The penalty of an outer fold is chosen on the other folds of its own training anchors.
        self.inner = [
            [self._split(np.flatnonzero(fold != k), fold, j) for j in range(self.n_folds) if j != k]
            for k in range(self.n_folds)
        ]

    def _split(self, rows: Ints, fold: Ints, k: int) -> tuple[Basis, Basis, Ints]:
        train, test = rows[fold[rows] != k], rows[fold[rows] == k]
        return Basis.of(self.x[train]), Basis.of(self.y[train]), test

    def _errors(
        self,
        split: tuple[Basis, Basis, Ints],
        *,
        method: MapMethod,
        penalty: float,
        rng: np.random.Generator | None = None,
    ) -> tuple[float, float]:
        """Return (squared error of the map, of the training mean) on the held-out anchors."""
        source, target, test = split
        order = None if rng is None else rng.permutation(len(source.points))
        fitted = fit_map(
            source,
            target,
            method=method,
            penalty=penalty,
            n_components=self.n_components,
            order=order,
        )
        truth = self.y[test]
        return (
            float(((truth - fitted.apply(self.x[test])) ** 2).sum()),
            float(((truth - target.mean) ** 2).sum()),
        )

    def choose_penalty(
        self,
        method: MapMethod,
        grid: Sequence[float],
        *,
        splits: Sequence[tuple[Basis, Basis, Ints]] | None = None,
    ) -> float:
        """Return the penalty of ``grid`` with the smallest held-out error over ``splits``."""
        if method == "procrustes":
            return 0.0
        over = self.outer if splits is None else splits
        ordered = sorted(grid, reverse=True)  # at a tie the stronger penalty
        errors = [
            sum(self._errors(split, method=method, penalty=p)[0] for split in over) for p in ordered
        ]
        return float(ordered[int(np.argmin(errors))])

    def held_out_r2(self, method: MapMethod, grid: Sequence[float]) -> float:
        """Return 1 − Σ‖y − ŷ‖²/Σ‖y − ȳ_train‖² over held-out groups; 0 for the mean alone.

        The penalty is chosen anew inside every training fold.
        """
        pairs = [
            self._errors(
                split,
                method=method,
                penalty=self.choose_penalty(method, grid, splits=inner),
            )
            for split, inner in zip(self.outer, self.inner, strict=True)
        ]
        return _r2(pairs)

    def permuted_r2(self, method: MapMethod, *, penalty: float, rng: np.random.Generator) -> float:
        """Return the held-out R² when the training anchors do not correspond."""
        return _r2(
            [self._errors(split, method=method, penalty=penalty, rng=rng) for split in self.outer]
        )

    def fit(
        self,
        method: MapMethod,
        *,
        penalty: float,
        rng: np.random.Generator | None = None,
    ) -> AffineMap:
        """Return the map of all anchors; with ``rng`` that of permuted anchors."""
        return fit_map(
            self.source,
            self.target,
            method=method,
            penalty=penalty,
            n_components=self.n_components,
            order=None if rng is None else rng.permutation(len(self.x)),
        )


def _r2(errors: Sequence[tuple[float, float]]) -> float:
    of_map, of_mean = (sum(column) for column in zip(*errors, strict=True))
    return float(1 - of_map / of_mean)
