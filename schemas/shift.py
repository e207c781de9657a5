"""What negative steering and task-free scenarios are asked, and what they answer."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .base import Record
from .result import ResultRow

__all__ = [
    "NegativeSpec",
    "NegativeVerdict",
    "ScenarioSpec",
    "ScenarioVerdict",
    "ShiftRow",
]

Column = Annotated[str, Field(min_length=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Margin = Annotated[float, Field(gt=0, lt=1)]
Level = Annotated[float, Field(gt=0, lt=1)]


class NegativeSpec(Record):
    """Columns and margins of the question whether steering away raises task focus without cruelty.

    Attributes
    ----------
    task
        Column that falls as the task is focused on (the rubric's score, 2 for empathy); where it
        rises instead, ``task_rises``.
    sentiment, coherence
        Columns of sentiment and of coherence (true or 1 for a coherent text).
    hostility
        Column of hostile words, a count or a share: a text with any counts as hostile.
    hostile_margin
        Most that the share of hostile texts may rise to be called no cruelty.
    coherence_margin
        Most that the share of coherent texts may fall; beyond, nothing else is judged.
    """

    encoding_type: ClassVar[str] = "actlake-negative-spec"

    task: Column = "judge_score"
    task_rises: bool = False
    sentiment: Column = "sentiment"
    hostility: Column = "hostility_count"
    coherence: Column = "coherent"
    alpha: Column = "alpha_raw"
    prompt: Column = "prompt"
    cluster: str | None = None
    sample: str | None = None
    hostile_margin: Margin = 0.05
    coherence_margin: Margin = 0.1
    bounds: tuple[Finite, Finite] | None = None  # of the task column: for ceiling and floor
    ceiling: Share = 0.9
    floor: Share = 0.1
    level: Level = 0.95
    n_bootstrap: Annotated[int, Field(ge=100)] = 1000
    seed: int = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.bounds is not None and self.bounds[0] >= self.bounds[1]:
            msg = f"bounds: the least ({self.bounds[0]}) is not below the greatest"
            raise ValueError(msg)
        return self


class ScenarioSpec(Record):
    """Columns of the question whether steering works where helping costs the task nothing.

    Attributes
    ----------
    outcome
        Column of the outcome, more of it being more of the concept.
    kind
        Column of the scenario's type; ``free`` are its task-free values, ``left_out`` take no
        part, all others have a task conflict.
    bounds
        Least and greatest value of the outcome, for ceilings and floors.
    """

    encoding_type: ClassVar[str] = "actlake-scenario-spec"

    outcome: Column = "judge_score"
    kind: Column = "category"
    free: Annotated[tuple[str, ...], Field(min_length=1)] = ("task_free",)
    left_out: tuple[str, ...] = ("neutral",)
    alpha: Column = "alpha_raw"
    prompt: Column = "prompt"
    cluster: str | None = None
    bounds: tuple[Finite, Finite] | None = (0.0, 2.0)
    ceiling: Share = 0.9
    floor: Share = 0.1
    level: Level = 0.95
    n_bootstrap: Annotated[int, Field(ge=100)] = 1000
    seed: int = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.bounds is not None and self.bounds[0] >= self.bounds[1]:
            msg = f"bounds: the least ({self.bounds[0]}) is not below the greatest"
            raise ValueError(msg)
        return self


class ShiftRow(ResultRow):
    """A change against strength 0 of the same prompts, or a slope of such changes.

    ``kind`` is the type of scenario, or ``all``. ``baseline_estimate`` is the mean at strength 0.
    """

    encoding_type: ClassVar[str] = "actlake-shift"

    kind: str = "all"
    alpha_raw: float | None = None
    baseline_estimate: float | None = None
    ceiling: bool | None = None
    floor: bool | None = None
    untestable: bool | None = None
    n_samples: int | None = None
    n_prompts: int | None = None
    n_missing: int | None = None


class NegativeVerdict(Record):
    """What one negative strength does to task focus, and at what price.

    ``incoherent`` comes before all else: broken text has no disposition. ``with cruelty``: the
    share of hostile texts rises by an interval above 0. ``without cruelty``: its interval ends
    below the margin. ``no rise shown``: the interval of task focus holds 0.
    """

    encoding_type: ClassVar[str] = "actlake-negative-verdict"

    alpha_raw: float
    subset: Literal["all", "coherent"] = "all"
    verdict: Literal[
        "raises task focus without cruelty", "raises task focus with cruelty", "no rise shown",
        "incoherent", "undecided", "untestable",
    ]  # fmt: skip
    reason: str
    sentiment_falls: bool | None = None
    n_prompts: int


class ScenarioVerdict(Record):
    """Whether steering needs a task conflict; a difference is claimed only where it is shown."""

    encoding_type: ClassVar[str] = "actlake-scenario-verdict"

    direction: Literal["positive", "negative"]
    verdict: Literal[
        "steers without conflict too", "weaker without conflict", "fails without conflict",
        "no effect shown", "undecided", "untestable",
    ]  # fmt: skip
    reason: str
    n_prompts_free: int
    n_prompts_conflict: int
