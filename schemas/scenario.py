"""Scenarios: the settings that texts answer to, and what an answer is scored by."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, StringConstraints, model_validator

from .base import Record
from .text import Split, TextId

__all__ = ["CATEGORIES", "RUBRIC_LEVELS", "Category", "Scenario", "ScenarioPrompt"]

Category = Literal[
    "grid_world",
    "medical_triage",
    "resource_allocation",
    "emergency_response",
    "ambiguous",
    "task_free",
    "neutral",
]
CATEGORIES: tuple[str, ...] = get_args(Category)
RUBRIC_LEVELS = ("0", "1", "2")
Words = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


class ScenarioPrompt(Record):
    """What is put to the model; ``task_conflict`` says whether helping costs the task anything."""

    text: Words
    task_conflict: bool | None = None


class Scenario(Record):
    """A setting with the ways it is put and the rubric that its answers are scored by.

    ``rubric`` says what an answer of score 0 (task-focused), 1 (mixed) and 2 (empathic) does;
    only neutral scenarios go without. Prompts with and without task conflict together are the
    cells of the 2 × 2 design (empathy × task conflict).
    """

    encoding_type: ClassVar[str] = "actlake-scenario"

    id: TextId
    category: Category
    title: str = ""
    prompts: Annotated[tuple[ScenarioPrompt, ...], Field(min_length=1)]
    rubric: dict[Literal["0", "1", "2"], Words] | None = None
    split: Split | None = None

    @model_validator(mode="after")
    def _scored(self) -> Self:
        if self.rubric is None and self.category != "neutral":
            msg = f"scenario {self.id!r} has no rubric: say what scores 0, 1 and 2"
            raise ValueError(msg)
        missing = [n for n in RUBRIC_LEVELS if self.rubric is not None and n not in self.rubric]
        if missing:
            msg = f"the rubric of scenario {self.id!r} lacks {', '.join(missing)}"
            raise ValueError(msg)
        return self
