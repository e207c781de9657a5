"""What a dose-response analysis is asked, and its rows and verdicts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .base import Record
from .result import ResultRow

__all__ = ["DoseRow", "DoseSpec", "DoseVerdict", "Side"]

Side = Literal["positive", "negative", "both"]
Share = Annotated[float, Field(ge=0, le=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Column = Annotated[str, Field(min_length=1)]


class DoseSpec(Record):
    """Which columns of a table of samples mean what, and how a sample counts as a success.

    Attributes
    ----------
    outcome
        Column of the outcome, more of it being more of the concept.
    alpha
        Column of the raw strength, signed; 0 is the baseline.
    prompt
        Column of the prompt: effects are against the baseline of the same prompt.
    cluster
        Column whose values are resampled whole; None takes the prompt.
    sample
        Column that pairs a sample with the baseline's of the same prompt (a seed); None takes
        the mean of the prompt's baseline.
    coherence
        Column of coherence, true or 1 for a coherent sample.
    by
        Columns whose combinations are analysed apart (directions, models).
    success
        ``effect``: the sign of the effect is that of alpha and the effect is not zero.
        ``threshold``: the outcome is at or above ``threshold`` where alpha is positive, below it
        where alpha is negative.
    bounds
        Least and greatest value that the outcome can take: they tell ceilings and floors.
    claimed
        The raw strength that is said to be needed.
    margin
        How many success points (as a share) a smaller strength may lack and still do.
    """

    encoding_type: ClassVar[str] = "actlake-dose-spec"

    outcome: Column = "shift"
    alpha: Column = "alpha_raw"
    prompt: Column = "prompt"
    cluster: str | None = None
    sample: str | None = None
    coherence: str | None = None
    by: tuple[str, ...] = ()
    success: Literal["effect", "threshold"] = "effect"
    threshold: Finite | None = None
    bounds: tuple[Finite, Finite] | None = None
    claimed: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 20.0
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.1
    ceiling: Share = 0.9
    floor: Share = 0.1
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    n_bootstrap: Annotated[int, Field(ge=100)] = 1000
    seed: int = 0

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.success == "threshold") != (self.threshold is not None):
            msg = "success = 'threshold' needs a threshold, and success = 'effect' takes none"
            raise ValueError(msg)
        if self.bounds is not None and self.bounds[0] >= self.bounds[1]:
            msg = f"bounds: the least ({self.bounds[0]}) is not below the greatest"
            raise ValueError(msg)
        return self


class DoseRow(ResultRow):
    """One figure of a dose-response curve: of one strength, or of one side of the grid.

    ``metric`` is one of success_rate, effect_mean, outcome_mean, coherence (per strength);
    slope_mean, anti_steerable_share (both sides); alpha50, steepness, guess_rate, lapse_rate,
    minimum_effective_dose, knee, breakdown (per side). ``subset`` is ``all`` or ``coherent``.
    ``biased_estimate`` is the success rate under the rule that counts a zero effect as success
    of every negative strength, for comparison with older tables. ``untestable`` says that the
    baseline's ceiling or floor leaves no room for an effect to this side.
    """

    encoding_type: ClassVar[str] = "actlake-dose"

    group: str = "all"
    outcome: str
    side: Side
    alpha_raw: float | None = None
    alpha_separation: float | None = None
    alpha_norm: float | None = None
    alpha_angle: float | None = None
    baseline_estimate: float | None = None
    biased_estimate: float | None = None
    identified: bool | None = None
    below_baseline: bool | None = None  # coherence under the baseline's band
    ceiling: bool | None = None
    floor: bool | None = None
    untestable: bool | None = None
    n_samples: int | None = None
    n_prompts: int | None = None
    n_missing: int | None = None


class DoseVerdict(Record):
    """Whether the claimed strength is needed, with the strengths that answer in four units.

    ``needed``: every smaller strength does less, each by an interval that excludes 0.
    ``not needed``: some smaller strength does as well within the margin. ``no effect shown``:
    the interval of the claimed strength's own effect holds 0. ``undecided``: the intervals allow
    both. ``not tested``: the grid does not hold the claimed strength, or nothing below it.
    """

    encoding_type: ClassVar[str] = "actlake-dose-verdict"

    group: str = "all"
    side: Side
    verdict: Literal["needed", "not needed", "no effect shown", "undecided", "not tested"]
    reason: str
    rule: str
    claimed_raw: float
    claimed_separation: float | None = None
    claimed_norm: float | None = None
    claimed_angle: float | None = None
    sufficient_raw: float | None = None  # the smallest strength that does as well
    sufficient_separation: float | None = None
    sufficient_norm: float | None = None
    sufficient_angle: float | None = None
    difference: float | None = None  # success at the sufficient strength minus at the claimed
    difference_low: float | None = None
    difference_high: float | None = None
    claimed_coherent: bool | None = None
    untestable: bool | None = None
    n_prompts: int | None = None
