"""How generated texts are scored: rules, a judge behind an endpoint, and what is kept of it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator, model_validator

from .base import Record

__all__ = [
    "JudgeSpec",
    "Judgement",
    "KeywordRules",
    "ModelScore",
    "Prevalence",
    "RaterAgreement",
    "ScoreSpec",
    "ScoreSummary",
]

ModelScore = Literal["perplexity", "first_token_kl", "forced_choice", "logprob_difference"]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Phrase = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80)]


class KeywordRules(Record):
    """Words and phrases that are counted at word boundaries, in any case."""

    encoding_type: ClassVar[str] = "actlake-keyword-rules"

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
    title: str = ""
    licence: str = "unknown"
    words: Annotated[tuple[Phrase, ...], Field(min_length=1)]


class ScoreSpec(Record):
    """Which scores texts get, and when a text counts as coherent.

    A text is coherent that is not empty or short, has ``distinct_2`` at or above
    ``least_distinct`` and no run of words said again that is longer than ``longest_repeat``.
    """

    encoding_type: ClassVar[str] = "actlake-score-spec"

    scores: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "keywords", "sentiment", "hostility", "repetition", "length", "refusal",
    )  # fmt: skip
    rules: tuple[KeywordRules, ...] = ()
    short: Count = 5  # words
    least_distinct: Annotated[float, Field(ge=0, le=1)] = 0.5
    longest_repeat: Count = 8  # words


class JudgeSpec(Record):
    """A judge behind an OpenAI-compatible endpoint.

    ``constrain`` says how the answer is bound to the rubric's levels: by ``json_schema``, by
    ``structured_outputs`` or ``guided_choice`` (vLLM's newer and older way), by nothing, or
    ``auto``: the first of these that the server takes. ``api_key_env`` names the environment
    variable of the key, which is written nowhere. Times are in seconds; a request that fails is
    sent again after ``backoff``, twice that, and so on.
    """

    encoding_type: ClassVar[str] = "actlake-judge-spec"

    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://\S+$")]
    model: Annotated[str, StringConstraints(min_length=1)]
    constrain: Literal["auto", "json_schema", "structured_outputs", "guided_choice", "none"] = (
        "auto"
    )
    api_key_env: str = "OPENAI_API_KEY"
    max_tokens: Annotated[int, Field(ge=1)] = 32
    timeout_seconds: Seconds = 60.0
    n_retries: Count = 4
    backoff_seconds: Seconds = 1.0
    n_parallel: Annotated[int, Field(ge=1, le=256)] = 8
    seed: int = 0

    @field_validator("endpoint")
    @classmethod
    def _without_secrets(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.username or parts.password or parts.query:
            msg = "an endpoint holds no user, password or query; keys go into api_key_env"
            raise ValueError(msg)
        return value.rstrip("/")


class Judgement(Record):
    """One answer of a judge; ``score`` None has a ``reason``, and is missing rather than zero.

    ``key`` is the digest of everything that was sent, so that equal questions are put once.
    """

    encoding_type: ClassVar[str] = "actlake-judgement"

    key: str
    score: Literal[0, 1, 2] | None
    reason: Literal["unreadable", "rejected"] | None = None
    reply: str = ""
    judge: str
    version: str = ""  # what the server says of itself
    prompt_digest: str
    constrain: str = "none"
    n_tries: Count = 1

    @model_validator(mode="after")
    def _reasoned(self) -> Self:
        if (self.score is None) != (self.reason is not None):
            msg = "a judgement has a score or a reason for having none"
            raise ValueError(msg)
        return self


class Prevalence(Record):
    """A share corrected for a judge's errors (Rogan & Gladen 1978)."""

    encoding_type: ClassVar[str] = "actlake-prevalence"

    observed: float
    estimate: float | None
    reason: str | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    ci_level: float = 0.95
    ci_method: str = "Lang & Reiczigel 2014"
    boundary: bool = False  # the estimate was cut off at 0 or 1
    sensitivity: float | None = None
    specificity: float | None = None
    n_texts: int
    n_positive: int  # of the calibration set
    n_negative: int


class RaterAgreement(Record):
    """Krippendorff's alpha of raters on ordinal scores, with a bootstrap over texts."""

    encoding_type: ClassVar[str] = "actlake-agreement"

    estimate: float | None
    reason: str | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    ci_level: float = 0.95
    n_texts: int  # with two ratings or more
    n_raters: int
    seed: int = 0


class ScoreSummary(Record):
    """What ``actlake score`` made of a table: counts, means, the judge and its failures."""

    encoding_type: ClassVar[str] = "actlake-score-summary"

    n_texts: int
    scores: tuple[str, ...]
    means: dict[str, float | None]
    n_missing: dict[str, int]
    judge: str | None = None
    judge_versions: tuple[str, ...] = ()
    judge_prompt_digest: str | None = None
    judge_constrain: tuple[str, ...] = ()
    n_judged: int = 0
    n_unreadable: int = 0
    n_rejected: int = 0
    n_without_rubric: int = 0
    prevalence: Prevalence | None = None
    agreement: RaterAgreement | None = None
    spec: ScoreSpec
