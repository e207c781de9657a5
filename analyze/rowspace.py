"""The activations of a layer's pairs in the space that they span, where d drops out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from .auroc import Floats
from .linear import LinearProbe

__all__ = ["PairSpace", "pair_space"]

RANK_TOLERANCE = 1e-11  # of the largest squared singular value: below it is rounding of the Gram


@dataclass(frozen=True)
class PairSpace:
    """Pairs as coordinates with the same distances and angles as their activations.

    ``points`` has dims (arm, pair, rank); ``basis`` (hidden, rank) has orthonormal columns, or
    is None where the coordinates are the centred activations themselves. A probe that only
    inner products enter (all but the logistic one, which standardises) is the same here.
    """

    centre: Floats
    points: Floats
    basis: Floats | None
    hidden: int

    def coordinates(self, x: Floats) -> Floats:
        """Return the coordinates of other activations ``x`` (text, hidden), dims (text, rank).

        What of them is orthogonal to all pairs is left out: no probe has weight there.
        """
        centred = x - self.centre
        return centred if self.basis is None else centred @ self.basis

    def lift(self, probe: LinearProbe) -> LinearProbe:
        """Return a probe of the coordinates as one of raw activations."""
        weight = probe.weight if self.basis is None else self.basis @ probe.weight
        return LinearProbe(weight, probe.bias - float(weight @ self.centre), scale=probe.scale)

    def lift_directions(self, directions: Floats) -> Floats:
        """Return directions (draw, rank) of the coordinates as dims (draw, hidden)."""
        return directions if self.basis is None else directions @ self.basis.T


def pair_space(x: Floats) -> PairSpace:
    """Return the row space of ``x`` (arm, pair, hidden), float64.

    One Gram matrix of the centred rows and its eigendecomposition, for all folds and methods.
    The mean of all rows is taken off first, which no probe's direction or AUROC depends on and
    without which a massive mean would cost the Gram matrix its digits.
    """
    hidden = x.shape[-1]
    rows = x.reshape(-1, hidden)
    centre = rows.mean(axis=0)
    centred = rows - centre
    # Rows that differ only by the rounding of their own mean are equal.
    centred[:, np.abs(centred).max(axis=0) <= 1e-13 * np.abs(centre)] = 0.0
    if rows.shape[0] >= hidden:
        return PairSpace(centre, centred.reshape(x.shape), None, hidden)
    power, vectors = eigh(centred @ centred.T, driver="evd")
    kept = power > RANK_TOLERANCE * max(float(power[-1]), 1e-300)
    if not kept.any():  # all rows are equal: one coordinate, which is zero
        kept[-1] = True
        basis = np.zeros((hidden, 1))
    else:
        basis = centred.T @ (vectors[:, kept] / np.sqrt(power[kept]))
    points = vectors[:, kept] * np.sqrt(power[kept].clip(min=0))
    return PairSpace(centre, points.reshape(2, x.shape[1], -1), basis, hidden)
