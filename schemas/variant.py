"""Lexical arms: how texts are varied, and what was changed in each."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import Record
from .text import TextId

__all__ = ["LEXICAL_ARMS", "LexicalArm", "SweepPoint", "VariantLog", "VariantSpec", "WordEdit"]

LexicalArm = Literal[
    "keywords_removed",
    "keywords_replaced",
    "random_words_removed",
    "data_driven",
    "random_like_data_driven",
    "keywords_inserted",
]
LEXICAL_ARMS: tuple[LexicalArm, ...] = (
    "keywords_removed",
    "keywords_replaced",
    "random_words_removed",
    "data_driven",
    "random_like_data_driven",
    "keywords_inserted",
)


class VariantSpec(Record):
    """Which lexical arms are made (SCIENCE §3); all of them change both classes.

    ``n_draws`` is the draws of ``random_words_removed``, each a variant of its own, matched to the
    keywords, and of ``random_like_data_driven``, matched to the words of ``data_driven``. The
    sweep of ``data_driven`` removes the ``k_first`` words with the highest train log-odds, then
    twice as many, until a bag of words with scenarios held out falls to ``bow_target``.
    """

    encoding_type: ClassVar[str] = "actlake-variant-spec"

    arms: Annotated[tuple[LexicalArm, ...], Field(min_length=1)] = LEXICAL_ARMS
    n_draws: Annotated[int, Field(ge=1, le=1000)] = 5
    k_first: Annotated[int, Field(ge=1)] = 8
    k_max: Annotated[int, Field(ge=1)] = 1024
    bow_target: Annotated[float, Field(ge=0.5, le=1)] = 0.6
    max_folds: Annotated[int, Field(ge=2)] = 100
    seed: int = 0


class WordEdit(Record):
    """A word of the parent's response and what stands in its place; spans are in characters."""

    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]
    before: str
    after: str
    why: Literal["keyword", "random", "article", "capital", "inserted"]


class VariantLog(Record):
    """What was done to one text; ``short_by`` counts what could not be done."""

    encoding_type: ClassVar[str] = "actlake-variant-log"

    text: TextId
    parent: TextId
    variant: str
    edits: tuple[WordEdit, ...] = ()
    short_by: Annotated[int, Field(ge=0)] = 0


class SweepPoint(Record):
    """The bag of words after the ``k`` words of highest log-odds were removed."""

    k: int
    bow_train: float
    bow_all: float
