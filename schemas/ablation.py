"""The lexical ablation of a run: what is asked for, and its rows."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import Record
from .capture import Pool, SpanPool
from .result import ResultRow
from .study import BagOfWordsSpec
from .variant import LEXICAL_ARMS, LexicalArm

__all__ = ["AblationFinding", "AblationRow", "AblationSpec", "AblationWay", "Readout"]

AblationWay = Literal["repooled", "reextracted"]
Readout = Literal["refit", "fixed"]
AblationFinding = Literal["shortcut", "partly_lexical", "not_lexical", "undecided", "no_signal"]
Count = Annotated[int, Field(ge=1)]


class AblationSpec(Record):
    """Words left out of both classes, and what is left of the contrast (SCIENCE §3).

    ``ways`` None takes what the run has: ``repooled`` leaves the tokens of the words out of the
    mean over the response, for which the tokens must be stored; ``reextracted`` reads variants
    that went through the model. Arms that put words in cannot be re-pooled.

    ``readouts``: ``refit`` trains on the ablated texts and reads ablated texts, ``fixed`` reads
    them with the probe of the originals. ``n_draws`` are random content words matched to the
    keywords of all lexica, in each text as many and of like frequency; ``n_dose_draws`` those
    matched to the keywords of one lexicon, and to each dose of ``data_driven``. ``n_bow_draws``
    of the former have the bag of words refitted. The words of ``data_driven`` are learned in
    each training fold, ``k_first`` of them, then twice as many, until the held-out bag of words
    falls to ``bow_target``.

    ``layers`` None is every layer. ``memory`` bounds the sums of the conditions that one pass
    over the tokens fills; what does not fit takes another pass.
    """

    encoding_type: ClassVar[str] = "actlake-ablation"

    ways: Annotated[tuple[AblationWay, ...], Field(min_length=1)] | None = None
    arms: Annotated[tuple[LexicalArm, ...], Field(min_length=1)] = LEXICAL_ARMS
    readouts: Annotated[tuple[Readout, ...], Field(min_length=1)] = ("refit", "fixed")
    layers: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    pools: tuple[Pool | SpanPool, ...] | None = None  # of the re-extracted variants
    n_draws: Count = 100
    n_dose_draws: Count = 20
    n_bow_draws: Annotated[int, Field(ge=0)] = 10
    k_first: Count = 8
    k_max: Count = 1024
    bow_target: Annotated[float, Field(ge=0.5, le=1)] = 0.6
    bow: BagOfWordsSpec = BagOfWordsSpec()
    max_folds: Annotated[int, Field(ge=2)] = 100
    n_bootstrap: Count = 1000
    memory: int | str = "1GiB"
    seed: int = 0


class AblationRow(ResultRow):
    """What one arm leaves of one contrast, beside the originals and random words.

    ``estimate`` is after the ablation, ``before_estimate`` on the same pairs before it, ``delta``
    their difference. ``random_*`` are the draws that ``lexicon`` and ``k`` of this row were
    matched by, ``contrast`` is delta less their mean delta, ``percentile`` the share of draws
    that are below the estimate (ties one half), ``p_value`` (1 + draws at or below it)/(1 + B).
    ``bow_estimate`` is the bag of words refitted under the same arm.
    """

    encoding_type: ClassVar[str] = "actlake-ablation-row"

    way: AblationWay
    arm: str  # a lexical arm, or the name of a variant of the user's own
    lexicon: str | None = None
    k: int | None = None
    readout: Readout | None = None
    words_removed: float | None = None  # of a text, mean over texts of both classes
    words_share: float | None = None
    tokens_share: float | None = None
    n_short: int | None = None  # words of all texts for which no random word was left

    before_estimate: float | None = None
    delta: float | None = None
    delta_ci_low: float | None = None
    delta_ci_high: float | None = None
    delta_ci_method: str | None = None
    random_mean: float | None = None
    random_low: float | None = None  # 2.5 % and 97.5 % of the draws
    random_high: float | None = None
    percentile: float | None = None
    contrast: float | None = None
    contrast_ci_low: float | None = None
    contrast_ci_high: float | None = None
    contrast_ci_method: str | None = None
    bow_before: float | None = None
    bow_random: float | None = None
    finding: AblationFinding | None = None
