"""Generation of texts: what is asked of a model, under which budget, and where a text is from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from .base import Record
from .text import Arm, TextId

__all__ = [
    "Attempt",
    "CellCount",
    "GenerateSpec",
    "GenerationPlan",
    "GenerationReport",
    "PersonaSet",
    "TextProvenance",
]

Words = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Positive = Annotated[float, Field(gt=0)]


class PersonaSet(Record):
    """Matched instructions: the same paraphrase number of both arms, then what is common to all.

    ``n_test`` paraphrases, the last ones, are kept for scenarios of the test split.
    """

    encoding_type: ClassVar[str] = "actlake-personas"

    positive: Annotated[tuple[Words, ...], Field(min_length=1)]
    negative: Annotated[tuple[Words, ...], Field(min_length=1)]
    neutral: tuple[Words, ...] = ()
    instruction: str = ""
    n_test: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _matched(self) -> Self:
        if len(self.positive) != len(self.negative):
            msg = (
                f"{len(self.positive)} positive and {len(self.negative)} negative personas; "
                "write each paraphrase for both arms"
            )
            raise ValueError(msg)
        if self.n_test >= len(self.positive):
            msg = f"n_test {self.n_test} leaves no persona for the train split"
            raise ValueError(msg)
        for number, pair in enumerate(zip(self.positive, self.negative, strict=True), start=1):
            lengths = [len(words.split()) for words in pair]
            if max(lengths) - min(lengths) > max(2, 0.2 * max(lengths)):
                msg = (
                    f"persona {number} has {lengths[0]} words for the positive and {lengths[1]} "
                    "for the negative arm; matched instructions are of one length"
                )
                raise ValueError(msg)
        return self


class GenerateSpec(Record):
    """How many texts are wanted per cell, how they are sampled, and what they may cost.

    A cell is a prompt of a scenario; ``per_cell`` pairs (of neutral scenarios: texts) are wanted
    in each. ``max_attempts`` bounds the tries per text. ``max_tokens`` counts prompts and
    answers; prices are in dollars per million tokens.
    """

    encoding_type: ClassVar[str] = "actlake-generate-spec"

    per_cell: Annotated[int, Field(ge=1)] = 2
    max_attempts: Annotated[int, Field(ge=1)] = 6
    temperature: Annotated[float, Field(ge=0)] = 0.9
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    max_new_tokens: Annotated[int, Field(ge=1)] = 300
    batch: Annotated[int, Field(ge=1)] = 32
    seed: int = 0
    max_requests: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_dollars: Positive | None = None
    price_in: Annotated[float, Field(ge=0)] = 0.0
    price_out: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.max_dollars is not None and self.price_in + self.price_out == 0:
            msg = "max_dollars needs prices: give price_in and price_out, per million tokens"
            raise ValueError(msg)
        return self


class TextProvenance(Record):
    """Where a generated text is from: enough to ask the same again."""

    encoding_type: ClassVar[str] = "actlake-text-provenance"

    text: TextId
    model: str
    revision: str | None = None
    quantisation: str | None = None
    engine: str
    engine_version: str | None = None
    sampling: dict[str, float]
    seed: int
    template_digest: str
    persona: int
    attempt: int


class Attempt(Record):
    """One answer of the model and what became of it; the log that generation resumes from."""

    encoding_type: ClassVar[str] = "actlake-attempt"

    slot: TextId
    arm: Arm
    attempt: int
    response: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    provenance: TextProvenance


class GenerationPlan(Record):
    """What is generated; a folder goes on with the same plan only. Budgets are not part of it."""

    encoding_type: ClassVar[str] = "actlake-generation-plan"

    scenarios_digest: str
    personas_digest: str
    sampling_digest: str
    model: str
    seed: int


class CellCount(Record):
    """How many pairs or texts a cell has, of those that are wanted."""

    scenario: str
    category: str
    prompt: int
    task_conflict: bool | None
    wanted: int
    filled: int


class GenerationReport(Record):
    """What generation came to."""

    encoding_type: ClassVar[str] = "actlake-generation"

    stopped: Literal["complete", "attempts", "budget"]
    n_texts: int
    n_pairs: int
    n_requests: int
    n_tokens: int
    dollars: float
    rejected: dict[str, int]  # attempts by the check that refused them
    cells: tuple[CellCount, ...]
