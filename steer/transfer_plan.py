"""Which directions a transfer runs, and how strongly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..extract import LoadedModel
from ..schemas import Direction, DirectionSet, InvalidInputError, SteerTransferSpec
from .resampling import Floats
from .scoring import Condition
from .sweep import check_direction

__all__ = ["TransferPlan", "plan_transfer", "role_of"]


@dataclass(frozen=True)
class TransferPlan:
    """The directions, the target's own first, with their strengths in units of ``scales``."""

    directions: tuple[Direction, ...]
    strengths: tuple[tuple[float, ...], ...]
    scales: tuple[float, ...]

    @property
    def own(self) -> Direction:
        """The target's own direction."""
        return self.directions[0]

    @property
    def vectors(self) -> Floats:
        """Unit vectors of all directions, (direction, hidden)."""
        return np.array([d.vector for d in self.directions])

    @property
    def cells(self) -> list[tuple[int, float]]:
        """Which direction at which strength; the first cell is no steering."""
        steered = [(d, a) for d, alphas in enumerate(self.strengths) for a in alphas]
        return [(0, 0.0), *steered]

    def conditions(self, n_rows: int) -> list[Condition]:
        """Return the condition of every cell and token row, in this order."""
        return [
            Condition(row, d, a * self.scales[d]) for d, a in self.cells for row in range(n_rows)
        ]


def plan_transfer(
    loaded: LoadedModel, found: DirectionSet, spec: SteerTransferSpec
) -> TransferPlan:
    """Return the plan of a set of directions.

    Raises
    ------
    InvalidInputError
        If the set has not one own direction and mapped ones, of one layer of this model.
    """
    own = [d for d in found.directions if d.mapped is None]
    others = [d for d in found.directions if d.mapped is not None]
    if len(own) != 1 or not any(role_of(d) == "mapped" for d in others):
        msg = (
            f"a transfer needs one direction of the target's own and mapped ones, got {len(own)} "
            f"and {len(others)}; `actlake analyze map` makes such a set"
        )
        raise InvalidInputError(msg)
    directions = (own[0], *others)
    for direction in directions:
        check_direction(loaded, direction)
        if direction.layer != own[0].layer:
            msg = f"{direction.name} and {own[0].name} are of unlike layers; map one at a time"
            raise InvalidInputError(msg)
    if not 0 <= own[0].layer < loaded.info.n_layers:
        msg = f"layer {own[0].layer} does not exist; there are 0 to {loaded.info.n_layers - 1}"
        raise InvalidInputError(msg)
    both = (-spec.at, spec.at)
    grid = tuple(sorted({*spec.alphas, *both} - {0.0}))
    # Controls say what chance does at the strength that is judged: the curve is not theirs.
    strengths = tuple(grid if role_of(d) in {"own", "mapped"} else both for d in directions)
    scales = tuple(own[0].norm if spec.strength == "matched" else d.norm for d in directions)
    return TransferPlan(directions, strengths, scales)


def role_of(direction: Direction) -> str:
    """Return ``own``, or what a mapped direction is."""
    return "own" if direction.mapped is None else direction.mapped.role
