"""Directions in activation space as objects of their own: where they come from and how firm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .base import Record
from .errors import InvalidInputError

__all__ = ["Direction", "DirectionSet", "MappedFrom", "MappedRole", "Reliability", "require_like"]

Cosine = Annotated[float, Field(ge=-1.000001, le=1.000001)]


class Reliability(Record):
    """How well a direction comes back from other pairs of the same kind.

    ``split_half`` is the mean cosine of fits on disjoint halves of the pairs; ``spearman_brown``
    what it predicts for two fits on all pairs, 2r/(1 + r), at least 0; ``bootstrap`` the mean
    cosine of resampled fits with the direction itself, ``bootstrap_low`` its 2.5 % quantile.
    """

    split_half: Cosine
    spearman_brown: Cosine
    bootstrap: Cosine
    bootstrap_low: Cosine
    n_draws: int = Field(ge=1)


MappedRole = Literal["mapped", "random_source", "permuted_anchors", "random_orthogonal"]


class MappedFrom(Record):
    """How a direction came from another model: as itself, or as a control of the map.

    ``mapped`` is the source's direction through the map; ``random_source`` a random direction of
    the source through the same map; ``permuted_anchors`` the source's direction through a map of
    texts that do not correspond; ``random_orthogonal`` through a random rotation between the
    leading components. ``map_r2`` is the map's held-out R², ``cosine`` that with the target's own
    direction, ``share_kept`` the share of the direction's squared length that lies in the span of
    the anchors: what lies outside of it no map can carry.
    """

    role: MappedRole
    map: str
    index: int = Field(default=0, ge=0)
    source_model: str
    source_run: str
    source_layer: int = Field(ge=0)
    source_method: str
    map_r2: float | None = None
    n_anchors: int = Field(ge=1)
    penalty: float | None = None
    cosine: Cosine
    share_kept: float | None = Field(default=None, ge=0, le=1.000001)


class Direction(Record):
    """A direction in activation space: a unit vector with its norm, bias and origin.

    A probe's decision value is norm·(vector·x) + bias. ``separation`` is the distance of the
    class means of the training texts along the unit vector. ``mapped`` says how it came from
    another model, if it did: it is then a difference of activations to steer by, its bias 0.
    """

    encoding_type: ClassVar[str] = "actlake-direction"

    method: str
    site: str
    layer: int = Field(ge=0)
    pool: str
    vector: Annotated[tuple[float, ...], Field(min_length=1)]
    norm: float = Field(gt=0)  # of the vector before it was made a unit vector
    bias: float
    model: str
    run: str
    content_digest: str | None = None
    fitted_on: str = ""
    seed: int | None = None
    separation: float | None = None
    penalty: float | None = None  # what was tuned or shrunk: C, lambda, or LDA's intensity
    reliability: Reliability | None = None
    reliability_reason: str | None = None  # why there is none
    store_url: str | None = None
    dataset_digest: str | None = None
    split_digest: str | None = None
    code_version: str | None = None
    mapped: MappedFrom | None = None

    @model_validator(mode="after")
    def _unit(self) -> Self:
        length = math.sqrt(math.fsum(x * x for x in self.vector))
        if not math.isclose(length, 1.0, rel_tol=1e-4):
            msg = f"the vector has length {length:.6g}, expected 1"
            raise ValueError(msg)
        return self

    @property
    def hidden(self) -> int:
        """Width of the activations it lives in."""
        return len(self.vector)

    @property
    def name(self) -> str:
        """What it is called in tables: method, pool and site with layer."""
        return f"{self.method}/{self.pool}/{self.site}.{self.layer}"


class DirectionSet(Record):
    """Directions of one model at one site and pool: layers and methods may differ."""

    encoding_type: ClassVar[str] = "actlake-direction-set"

    directions: Annotated[tuple[Direction, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _alike(self) -> Self:
        try:
            require_like(self.directions, across_layers=True)
        except InvalidInputError as err:
            raise ValueError(str(err)) from err
        names = [d.name for d in self.directions]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            msg = f"{twice[0]} stands twice in the set"
            raise ValueError(msg)
        return self

    @property
    def first(self) -> Direction:
        """The first direction: what all share can be read from it."""
        return self.directions[0]

    def get(self, method: str, *, layer: int) -> Direction:
        """Return the direction of a method and layer.

        Raises
        ------
        InvalidInputError
            If it is not in the set; what is there is named.
        """
        for found in self.directions:
            if (found.method, found.layer) == (method, layer):
                return found
        known = [d.name for d in self.directions]
        msg = f"no direction {method!r} of layer {layer}; the set has {known[:12]}"
        raise InvalidInputError(msg)


def require_like(directions: Sequence[Direction], *, across_layers: bool = False) -> None:
    """Raise InvalidInputError unless ``directions`` live in the same space.

    The output of one block is not that of the next, a residual is not an attention output, and
    means over a response are not last tokens: sums, cosines and comparisons of such vectors
    are numbers without a meaning.

    Parameters
    ----------
    directions
        Two or more.
    across_layers
        Allow unlike layers (for a set that is a curve over layers).
    """
    fields = ["model", "site", "pool", "hidden", *([] if across_layers else ["layer"])]
    for other in directions[1:]:
        first = directions[0]
        unlike = [f for f in fields if getattr(other, f) != getattr(first, f)]
        if unlike:
            got = ", ".join(f"{f} {getattr(first, f)!r} and {getattr(other, f)!r}" for f in unlike)
            msg = (
                f"directions of unlike places cannot be combined: {first.name} and {other.name} "
                f"have {got}; fit both at the same model, site, pool and layer"
            )
            raise InvalidInputError(msg)
