"""Patching, mediation and generation: what is contrasted, what is asked, what is found."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from .base import Record, check_distinct
from .result import ResultRow
from .text import TextId

__all__ = [
    "PATCH_ARMS",
    "Contrast",
    "MatchedRow",
    "MatchedSpec",
    "MediateSpec",
    "MediationRow",
    "PatchArm",
    "PatchMode",
    "PatchRow",
    "PatchSpec",
    "Place",
    "SteeredTextsSpec",
]

PatchArm = Literal[
    "full", "coordinate", "complement", "random", "shuffled", "wrong_layer", "same_class"
]
PATCH_ARMS: tuple[PatchArm, ...] = (
    "full", "coordinate", "complement", "random", "shuffled", "wrong_layer", "same_class",
)  # fmt: skip
PatchMode = Literal["denoise", "noise"]
Place = (
    Literal["prompt-last", "suffix", "prompt-all", "response", "all"] | Annotated[int, Field(lt=0)]
)
Layers = Literal["all"] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]


class Contrast(Record):
    """One question asked under two system prompts, with two completions to choose between.

    The ``source`` system prompt is the one under which ``positive`` is the likelier completion.
    Both, and ``same_class`` (another wording of the base's disposition, for the placebo), must
    have as many tokens as each other; what follows them is the same text.
    """

    encoding_type: ClassVar[str] = "actlake-contrast"

    id: TextId
    scenario: str = Field(default="none", min_length=1)
    prompt: NonEmpty
    source: NonEmpty
    base: NonEmpty
    same_class: NonEmpty | None = None
    positive: NonEmpty
    negative: NonEmpty

    @model_validator(mode="after")
    def _contrasting(self) -> Self:
        if self.source == self.base:
            msg = "source and base are the same system prompt, so there is nothing to patch"
            raise ValueError(msg)
        if self.positive.strip() == self.negative.strip():
            msg = "the positive and the negative completion are the same"
            raise ValueError(msg)
        return self


class PatchSpec(Record):
    """A sweep of activation patches over layers and positions.

    A position is a phase (``prompt-last``, ``suffix``: the tokens that all prompts of a contrast
    end with, ``prompt-all``, ``response``, ``all``) or one token, -1 being the prompt's last.
    ``arms`` None takes every arm that what is given allows. ``denoise`` writes states of the
    source run into the base run, ``noise`` those of the base run into the source run. ``outcome``
    is the log-prob difference of the completions, as a mean per token or as a total.
    """

    encoding_type: ClassVar[str] = "actlake-patch-spec"

    layers: Layers = "all"
    positions: Annotated[tuple[Place, ...], Field(min_length=1)] = (
        "prompt-all", "suffix", "prompt-last", "response",
    )  # fmt: skip
    arms: Annotated[tuple[PatchArm, ...], Field(min_length=1)] | None = None
    modes: Annotated[tuple[PatchMode, ...], Field(min_length=1)] = ("denoise", "noise")
    n_random: Annotated[int, Field(ge=0)] = 20
    outcome: Literal["mean", "total"] = "mean"
    n_bootstrap: Annotated[int, Field(ge=1)] = 2000
    seed: int = 0

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name in ("layers", "positions", "arms", "modes"):
            check_distinct(name, getattr(self, name))
        return self


class PatchRow(ResultRow):
    """One arm at one layer and position: what a patch of it does, as a share of what there is.

    With m the outcome, the estimate is mean(m_patched - m_base) / mean(m_source - m_base), both
    for denoising (recovered) and for noising (retained); ``effect`` is the mean change against
    the run that was patched, ``total`` the denominator [nats]. ``interchange`` is the share of
    pairs that choose as the donor's run does, among those where the two runs choose unlike.
    """

    encoding_type: ClassVar[str] = "actlake-patch"

    mode: PatchMode
    position: str
    arm: PatchArm
    index: int = 0  # of a random direction
    effect: float
    effect_ci_low: float
    effect_ci_high: float
    total: float
    total_ci_low: float
    total_ci_high: float
    small_total: (
        bool  # its interval holds 0, or it is below a hundredth of a nat: no ratio to trust
    )
    change_norm: float  # mean size of the written change per token
    interchange: float | None = None
    interchange_low: float | None = None
    interchange_high: float | None = None
    n_interchange: int = 0


class MediateSpec(Record):
    """How much of an effect passes through a mediator, layer by layer.

    The mediator is the ``full`` residual or the ``coordinate`` along a direction, at
    ``position``. ``scale`` is log-odds, or the ratio scale of Vig et al. (2004.12265).
    """

    encoding_type: ClassVar[str] = "actlake-mediate-spec"

    layers: Layers = "all"
    position: Place = "suffix"
    mediators: Annotated[tuple[Literal["full", "coordinate"], ...], Field(min_length=1)] = (
        "full", "coordinate",
    )  # fmt: skip
    scale: Literal["log_odds", "ratio"] = "log_odds"
    n_random: Annotated[int, Field(ge=0)] = 20
    outcome: Literal["mean", "total"] = "mean"
    n_bootstrap: Annotated[int, Field(ge=1)] = 2000
    seed: int = 0

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        check_distinct("layers", self.layers)
        check_distinct("mediators", self.mediators)
        return self


class MediationRow(ResultRow):
    """One effect of a decomposition: TE, NDE, NIE, TE - NDE - NIE, or the proportion mediated.

    ``way`` is ``forward`` (base is the null, source the set) or ``reverse``. ``index`` counts the
    random directions of mediator ``random``.
    """

    encoding_type: ClassVar[str] = "actlake-mediation"

    way: Literal["forward", "reverse"]
    mediator: Literal["full", "coordinate", "random"]
    position: str
    index: int = 0
    scale: Literal["log_odds", "ratio"] = "log_odds"


class MatchedSpec(Record):
    """Patching beside steering of the same size, at each layer.

    A patch of ``arm`` at ``position`` changes every token by so much; steering adds its root
    mean square over those tokens along the direction, at ``steer_position``.
    """

    encoding_type: ClassVar[str] = "actlake-matched-spec"

    layers: Layers = "all"
    arm: Literal["full", "coordinate"] = "full"
    position: Place = "suffix"
    steer_position: Place = "suffix"
    n_random: Annotated[int, Field(ge=0)] = 20
    outcome: Literal["mean", "total"] = "mean"
    n_bootstrap: Annotated[int, Field(ge=1)] = 2000
    seed: int = 0

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        check_distinct("layers", self.layers)
        return self


class MatchedRow(ResultRow):
    """One intervention of a comparison at matched size; the estimate is its effect [nats].

    ``what`` is ``patch``, ``steer``, ``random`` (steering along a random direction) or
    ``steer - patch``, whose interval is of the paired difference.
    """

    encoding_type: ClassVar[str] = "actlake-matched"

    what: Literal["patch", "steer", "random", "steer - patch"]
    arm: Literal["full", "coordinate"]
    position: str
    index: int = 0
    change_norm: float | None = None  # root mean square per token


class SteeredTextsSpec(Record):
    """Texts of every prompt under every direction, strength and seed.

    ``alphas`` multiply unit vectors. ``temperature`` 0 is greedy, and then seeds beyond the first
    would repeat its texts.
    """

    encoding_type: ClassVar[str] = "actlake-steered-texts-spec"

    alphas: Annotated[tuple[Finite, ...], Field(min_length=1)] = (0.0,)
    layer: Annotated[int, Field(ge=0)]
    positions: Literal["prompt-all", "prompt-last", "response", "all"] = "all"
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    batch_rows: Annotated[int, Field(ge=1)] = 64

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name in ("alphas", "seeds"):
            check_distinct(name, getattr(self, name))
        if self.temperature == 0 and len(self.seeds) > 1:
            msg = "at temperature 0 every seed gives the same text; name one seed"
            raise ValueError(msg)
        return self
