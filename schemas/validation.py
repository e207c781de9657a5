"""What a corpus is held against before any model runs over it, and what was found."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .base import Record
from .scenario import CATEGORIES
from .text import TextId

__all__ = ["CorpusCheck", "Reason", "RubricScore", "ValidateSpec", "ValidationReport", "Verdict"]

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class ValidateSpec(Record):
    """The thresholds of validation; None leaves a check as a figure without a verdict.

    Attributes
    ----------
    categories
        The categories that are known; another one is a reason to reject.
    length_band
        Most that the arms' lengths differ, as a share of the longer, in words and in characters.
    words
        Fewest and most words of a response.
    duplicate_jaccard
        Responses of unlike pairs at or above this Jaccard of word ``shingle``-grams are
        near-duplicates; the later one is rejected.
    content_overlap
        Least and most Jaccard of the content words of the two arms.
    keyword_share
        Most of a response's words that are keywords of either lexicon.
    keyword_gap
        Most that a lexicon's share differs between the arms of a pair of ``balanced`` subsets.
    sentiment_margin
        Most by which the positive arm may be less positive than the negative one: VADER's
        compound score, mean over sentences, from -1 to 1.
    require_scores
        Reject pairs that nobody scored by the rubric.
    bow_balanced
        Most AUROC of a bag of words in ``balanced`` subsets; ``bow_all`` the same over all pairs.
    surface_auroc
        Most AUROC of lengths, punctuation and persons together.
    length_auroc
        Most AUROC of length alone, folded at one half.
    opener_repetition
        Most texts of an arm that begin with the same three words, as a share.
    max_jaccard
        Most Jaccard of word 5-grams of two texts of one arm.
    leakage_cosine
        Most TF-IDF cosine between a response of the train and one of the test split.
    rejected_share
        Most pairs that may be rejected for the corpus to pass.
    """

    encoding_type: ClassVar[str] = "actlake-validate-spec"

    categories: tuple[str, ...] = CATEGORIES
    length_band: Share = 0.1
    words: tuple[Count, Count] = (8, 400)
    shingle: Annotated[int, Field(ge=1)] = 3
    duplicate_jaccard: Annotated[float, Field(gt=0, le=1)] = 0.6
    n_permutations: Annotated[int, Field(ge=16)] = 128
    content_overlap: tuple[Share, Share] = (0.0, 0.9)
    keyword_share: Share = 0.25
    keyword_gap: Share = 0.12
    sentiment_margin: Annotated[float, Field(ge=0, le=2)] = 0.75
    require_scores: bool = False
    balanced: tuple[str, ...] = ("balanced",)
    bow_balanced: Share | None = 0.8
    bow_all: Share | None = None
    surface_auroc: Share | None = 0.75
    length_auroc: Share | None = 0.6
    opener_repetition: Share | None = 0.02
    max_jaccard: Share | None = 0.2
    leakage_cosine: Share | None = 0.8
    rejected_share: Share = 0.0
    min_pairs: Count = 2
    min_scenarios: Count = 2
    max_folds: Annotated[int, Field(ge=2)] = 100
    seed: int = 0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("words", "content_overlap"):
            low, high = getattr(self, name)
            if low > high:
                msg = f"{name}: the least ({low}) is more than the most ({high})"
                raise ValueError(msg)
        return self


class RubricScore(Record):
    """What a judge, or a person, gave a text by its scenario's rubric; None: not readable."""

    encoding_type: ClassVar[str] = "actlake-rubric-score"

    text: TextId
    score: Literal[0, 1, 2] | None
    judge: str = "unknown"


class Reason(Record):
    """Why a pair or a text is rejected: the check, and what it found."""

    check: str
    message: str


class Verdict(Record):
    """What validation says of one pair, or of one neutral text."""

    id: TextId
    kind: Literal["pair", "text"] = "pair"
    reasons: tuple[Reason, ...] = ()
    measures: dict[str, float] = Field(default_factory=dict)

    @property
    def accepted(self) -> bool:
        """Whether there is no reason to reject it."""
        return not self.reasons


class CorpusCheck(Record):
    """One check of the corpus as a whole; without a bound it is a figure and passes."""

    name: str
    value: float | None
    bound: float | None = None
    sense: Literal["at most", "at least"] = "at most"
    passed: bool
    note: str = ""


class ValidationReport(Record):
    """The verdict on a corpus with every figure and every reason."""

    encoding_type: ClassVar[str] = "actlake-validation"

    corpus: str
    texts_digest: str
    spec: ValidateSpec
    n_pairs: int
    n_accepted: int
    n_neutral: int
    n_neutral_accepted: int
    categories: dict[str, int]
    subsets: dict[str, int]
    checks: tuple[CorpusCheck, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether every check of the corpus passed."""
        return all(check.passed for check in self.checks)
