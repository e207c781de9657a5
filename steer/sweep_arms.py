"""What a sweep adds: a direction or several, their placebos, and strengths in their units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..extract import LoadedModel
from ..schemas import Direction, InvalidInputError, ModelInfo, SteerSpec

__all__ = ["SweepPlan", "check_direction", "plan_sweep", "with_random"]

_NUMBERED = re.compile(r"^(.*?)-(\d+)$")


@dataclass(frozen=True)
class SweepPlan:
    """Directions x strengths of a sweep, at one layer or at several at once.

    Attributes
    ----------
    directions
        The direction of each steered layer.
    names
        Of each swept direction, with its number: the direction itself, random ones, placebos.
    units
        (direction, layer, hidden), unit vectors.
    alphas
        Raw strengths at the first layer, in rising order, 0 among them.
    ratios
        (layer,): the raw strength of a layer over that of the first.
    mean_norms
        (layer,): mean residual norms.
    """

    directions: tuple[Direction, ...]
    names: tuple[tuple[str, int], ...]
    units: np.ndarray
    alphas: tuple[float, ...]
    ratios: tuple[float, ...]
    mean_norms: tuple[float, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """The steered layers."""
        return tuple(direction.layer for direction in self.directions)

    @property
    def place(self) -> str:
        """The steered layers as tables name them."""
        return "+".join(map(str, self.layers))

    @cached_property
    def vectors(self) -> np.ndarray:
        """What a strength of 1 at the first layer adds, (direction, layer, hidden)."""
        return np.asarray(self.units * np.asarray(self.ratios)[:, None])

    def in_units(self, alpha: float) -> dict[str, float]:
        """Return a strength raw, per class separation and per mean norm, as means over layers."""
        raw = alpha * np.asarray(self.ratios)
        separations = np.array([direction.norm for direction in self.directions])
        return {
            "alpha_raw": float(raw.mean()),
            "alpha_separation": float((raw / separations).mean()),
            "alpha_norm": float((raw / np.asarray(self.mean_norms)).mean()),
        }


def check_direction(loaded: LoadedModel, direction: Direction) -> None:
    """Raise InvalidInputError where a direction is not one of this model's residual stream."""
    _check(loaded.info, direction)


def _check(info: ModelInfo, direction: Direction) -> None:
    if direction.site != "resid_post":
        msg = f"the direction was read at {direction.site}, steering writes resid_post"
        raise InvalidInputError(msg)
    if len(direction.vector) != info.hidden_size:
        msg = (
            f"the direction is {len(direction.vector)} wide, {info.name} is {info.hidden_size}: "
            f"it comes from {direction.model}"
        )
        raise InvalidInputError(msg)
    if direction.model != info.name:
        msg = f"the direction comes from {direction.model}, the model loaded is {info.name}"
        raise InvalidInputError(msg)
    if direction.layer >= info.n_layers:
        msg = (
            f"the direction is of layer {direction.layer}; {info.name} has layers 0 to "
            f"{info.n_layers - 1}"
        )
        raise InvalidInputError(msg)


def with_random(direction: Direction, *, n_random: int, seed: int) -> np.ndarray:
    """Return the direction and ``n_random`` isotropic unit vectors, (1 + n_random, hidden)."""
    return _with_random([direction], n_random=n_random, seed=seed)[:, 0]


def _with_random(directions: Sequence[Direction], *, n_random: int, seed: int) -> np.ndarray:
    """Return the directions and random ones of each layer's own, (1 + n_random, layer, hidden)."""
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((n_random, len(directions), len(directions[0].vector)))
    draws /= np.linalg.norm(draws, axis=-1, keepdims=True)
    return np.concatenate([np.array([[d.vector for d in directions]]), draws])


def plan_sweep(
    info: ModelInfo,
    direction: Direction | Sequence[Direction],
    *,
    spec: SteerSpec,
    mean_norm: float | Sequence[float],
    placebos: Sequence[Direction] = (),
) -> SweepPlan:
    """Return what a sweep runs; see :func:`~actlake.steer.sweep_direction` for the parameters.

    Raises
    ------
    InvalidInputError
        If a direction does not fit the model, two are of one layer, a mean norm is no size, or a
        placebo is missing at a layer.
    """
    directions = (direction,) if isinstance(direction, Direction) else tuple(direction)
    norms = (mean_norm,) if isinstance(mean_norm, int | float) else tuple(mean_norm)
    for one in (*directions, *placebos):
        _check(info, one)
    layers = [one.layer for one in directions]
    if not directions or len(set(layers)) != len(layers):
        msg = f"expected one direction per layer, got those of layers {layers}"
        raise InvalidInputError(msg)
    if len(norms) != len(directions) or not all(np.isfinite(n) and n > 0 for n in norms):
        msg = f"expected {len(directions)} mean norms above 0, got {list(norms)}"
        raise InvalidInputError(msg)
    scales = {
        "raw": [1.0] * len(directions),
        "separation": [one.norm for one in directions],
        "norm": list(norms),
    }[spec.unit]
    names = [(directions[0].method, 0)] + [("random", i) for i in range(spec.n_random)]
    units = [_with_random(directions, n_random=spec.n_random, seed=spec.seed)]
    by_name: dict[str, dict[int, Direction]] = {}
    for one in placebos:
        by_name.setdefault(one.method, {})[one.layer] = one
    for name, of_layer in by_name.items():
        lacking = [layer for layer in layers if layer not in of_layer]
        if len(lacking) == len(layers):
            continue  # a placebo of layers that are not steered now
        if lacking:
            msg = f"placebo {name!r} has no direction at layers {lacking}; give one per layer"
            raise InvalidInputError(msg)
        numbered = _NUMBERED.match(name)
        names.append((numbered[1], int(numbered[2])) if numbered else (name, 0))
        units.append(np.array([[of_layer[layer].vector for layer in layers]]))
    return SweepPlan(
        directions=directions,
        names=tuple(names),
        units=np.concatenate(units),
        alphas=tuple(alpha * scales[0] for alpha in sorted({*spec.alphas, 0.0})),
        ratios=tuple(scale / scales[0] for scale in scales),
        mean_norms=tuple(float(norm) for norm in norms),
    )
