"""Review by people: what was drawn, what they answered, how far they agree."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import Record
from .text import TextId

__all__ = ["Agreement", "ReviewAnswer", "ReviewItem", "ReviewKey", "ReviewReport", "ReviewVerdict"]

RubricLevel = Literal[0, 1, 2]


class ReviewItem(Record):
    """A pair as raters see it, under a name that says nothing; ``a`` is the arm shown as A."""

    item: TextId
    pair: TextId
    a: Literal["positive", "negative"]


class ReviewKey(Record):
    """What the sheets hide: which pair an item is, and which arm is A. Raters never see it."""

    encoding_type: ClassVar[str] = "actlake-review-key"

    corpus: str
    texts_digest: str
    seed: int
    items: Annotated[tuple[ReviewItem, ...], Field(min_length=1)]


class ReviewAnswer(Record):
    """What one rater says of one item: scores by the rubric, and accept or reject."""

    item: TextId
    rater: str
    score_a: RubricLevel
    score_b: RubricLevel
    verdict: Literal["accept", "reject"]
    comment: str = ""


class Agreement(Record):
    """An agreement with its interval; None where ``note`` says why."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int
    method: str
    note: str = ""


class ReviewVerdict(Record):
    """Whether a reviewed pair stays, and why not."""

    pair: TextId
    accepted: bool
    reasons: tuple[str, ...] = ()


class ReviewReport(Record):
    """The outcome of a review."""

    encoding_type: ClassVar[str] = "actlake-review"

    corpus: str
    texts_digest: str
    raters: tuple[str, ...]
    n_items: int
    agreement: tuple[Agreement, ...]
    verdicts: tuple[ReviewVerdict, ...]
