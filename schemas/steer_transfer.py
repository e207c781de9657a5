"""Steering one model with directions of another: what is asked, its rows and verdicts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .base import Record, check_distinct
from .direction import MappedRole
from .result import SteeringRow

__all__ = ["SteerTransferRow", "SteerTransferSpec", "SteerTransferVerdict"]

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SteerTransferSpec(Record):
    """Steering a model with its own direction and with mapped ones.

    ``alphas`` are in class separations of the target along its own direction. With ``strength``
    ``matched`` every direction is as long as the own one; with ``mapped`` each is as long as its
    map made it, so that a map which carries little of a direction pushes little. Ratios are of
    the effect at ``at`` separations: half the change between +at and -at.
    """

    encoding_type: ClassVar[str] = "actlake-steer-transfer-spec"

    alphas: Annotated[tuple[Finite, ...], Field(min_length=1)] = (
        -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0,
    )  # fmt: skip
    at: Positive = 1.0
    strength: Literal["matched", "mapped"] = "matched"
    positions: Literal["prompt-all", "prompt-last", "response", "all"] = "all"
    subsets: tuple[str, ...] | None = None  # of the corpus, for the prompts; None: all
    n_prompts: Annotated[int, Field(ge=1)] = 24
    n_bootstrap: Annotated[int, Field(ge=1)] = 2000
    seed: int = 0

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        check_distinct("alphas", self.alphas)
        return self


class SteerTransferRow(SteeringRow):
    """What one direction does to the target: its own, a mapped one, or a control of the map.

    Metrics: ``baseline`` (the unsteered log-prob difference), ``shift`` (against no steering, at
    one strength), ``effect`` (half the change between +at and -at), and of a mapped direction
    ``ratio`` (its effect over the own direction's) and ``difference`` (its effect less that). The
    ratio's ``p_value`` is that of the effect among random directions of the source through the
    same map, ``p_broken`` among maps of texts that do not correspond, ``p_orthogonal`` among
    random rotations.
    """

    encoding_type: ClassVar[str] = "actlake-steer-transfer"

    role: Literal["unsteered", "own"] | MappedRole
    map: str | None = None
    map_r2: float | None = None
    cosine: float | None = None  # with the target's own direction
    share_kept: float | None = None
    source_model: str | None = None
    source_run: str | None = None
    source_layer: int | None = None
    n_broken: int | None = None
    p_broken: float | None = None
    n_orthogonal: int | None = None
    p_orthogonal: float | None = None


class SteerTransferVerdict(Record):
    """Whether a direction steers another model, for one map.

    ``answer``: ``transfers``, ``opposite`` (it steers the other way), ``no transfer`` (no more
    than random directions through the same map), ``unspecific`` (it steers, but broken maps or
    random rotations do as much), or ``untestable`` (the target's own direction does nothing, or
    there are too few draws). ``words`` says so with the figures.
    """

    encoding_type: ClassVar[str] = "actlake-steer-transfer-verdict"

    map: str
    answer: Literal["transfers", "opposite", "no transfer", "unspecific", "untestable"]
    words: str
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    p_value: float | None = None
    p_broken: float | None = None
    p_orthogonal: float | None = None
