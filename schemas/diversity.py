"""What a corpus is made of, and how unlike its texts are."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from .base import Record

__all__ = ["CorpusStats", "DiversityRow", "StatsSpec"]


class StatsSpec(Record):
    """How diversity is measured.

    ``budget`` is the words that distinct n-grams and compression are counted in, drawn
    ``n_draws`` times; ``max_texts`` bounds the measures over all pairs of texts.
    """

    encoding_type: ClassVar[str] = "actlake-stats-spec"

    budget: Annotated[int, Field(ge=10)] = 2000
    n_draws: Annotated[int, Field(ge=1)] = 10
    max_texts: Annotated[int, Field(ge=2)] = 2000
    seed: int = 0


class DiversityRow(Record):
    """The diversity of one group of texts; None where there are too few.

    ``distinct_n`` and ``compression`` are means over draws of the budget; ``jaccard_2`` is the
    mean over pairs of texts; ``vendi`` the effective number of unlike texts under TF-IDF cosines.
    """

    group: str
    n_texts: int
    n_words: int
    words_per_text: float
    distinct_1: float | None = None
    distinct_2: float | None = None
    distinct_3: float | None = None
    compression: float | None = None
    jaccard_2: float | None = None
    vendi: float | None = None
    opener_repetition: float
    distinct_openers: float


class CorpusStats(Record):
    """The figures of a corpus: contents, coverage, diversity, leakage between the splits."""

    encoding_type: ClassVar[str] = "actlake-corpus-stats"

    corpus: str
    texts_digest: str
    spec: StatsSpec
    cells: tuple[dict[str, str | int], ...]  # texts by category, subset, split, arm, task conflict
    n_pairs: int
    n_scenarios: int
    n_scenarios_known: int | None = None
    scenario_coverage: float | None = None
    scenario_entropy: float
    category_entropy: float
    diversity: tuple[DiversityRow, ...]
    leakage: float | None = None  # highest TF-IDF cosine of a test response with a train one
    leakage_pair: tuple[str, str] | None = None
    nearest_cosines: tuple[float, ...] = ()  # of every test response with the train split
