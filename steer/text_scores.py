"""Scores of texts by rules: keywords, sentiment, hostility, repetition, length, refusal."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..corpus.lexica import bundled_lexica
from ..corpus.lines import read_toml
from ..corpus.refusals import find_refusal
from ..corpus.words import ngrams, sentences, words
from ..schemas import InvalidInputError, KeywordRules, ScoreSpec, near_names

__all__ = [
    "SCORES",
    "KeywordScore",
    "LengthScore",
    "RefusalScore",
    "RepetitionScore",
    "SentimentScore",
    "TextScore",
    "build_scores",
    "hostility_rules",
    "longest_repeat",
    "score_text",
]

_HOSTILITY = Path(__file__).resolve().parent / "data" / "hostility.toml"


class TextScore(Protocol):
    """Whatever gives a text one figure or several, by itself and knowing nothing else."""

    name: str

    def __call__(self, text: str) -> Mapping[str, float | bool | None]:
        """Return the figures of ``text`` by column; None where there is none to give."""


def hostility_rules() -> KeywordRules:
    """Return the bundled words of insult, threat, contempt and cruelty."""
    return KeywordRules.parse(read_toml(_HOSTILITY, noun="word"), where=str(_HOSTILITY))


class KeywordScore:
    """How many keywords there are, and their share of the words.

    Columns ``NAME_count`` and ``NAME_share``. A phrase counts once, the longest at a place first;
    ``kind`` is not found in ``mankind``.
    """

    def __init__(self, rules: KeywordRules) -> None:
        self.name = rules.name
        ordered = sorted(rules.words, key=len, reverse=True)
        parts = (r"\s+".join(re.escape(w) for w in phrase.split()) for phrase in ordered)
        self._pattern = re.compile(rf"(?<![\w'])(?:{'|'.join(parts)})(?![\w'])", re.IGNORECASE)

    def __call__(self, text: str) -> dict[str, float | bool | None]:
        """Return the figures of ``text`` by column."""
        n_words = len(words(text))
        n = len(self._pattern.findall(text.replace("\u2019", "'")))
        share = n / n_words if n_words else None
        return {f"{self.name}_count": n, f"{self.name}_share": share}


class SentimentScore:
    """VADER's compound score per sentence, -1 to 1 (Hutto & Gilbert 2014): mean and lowest."""

    name = "sentiment"

    def __call__(self, text: str) -> dict[str, float | bool | None]:
        """Return the figures of ``text`` by column."""
        parts = [part for part in sentences(text) if words(part)]
        found = [_vader()(part) for part in parts]
        return {
            "sentiment": sum(found) / len(found) if found else None,
            "sentiment_lowest": min(found, default=None),
        }


@functools.cache
def _vader() -> Callable[[str], float]:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()
    return lambda text: float(analyser.polarity_scores(text)["compound"])


def longest_repeat(tokens: Sequence[str]) -> int:
    """Return the length of the longest run of tokens that occurs twice, overlaps included."""
    low, high = 0, max(0, len(tokens) - 1)
    # Every part of a run that repeats repeats too, so lengths can be bisected.
    while low < high:
        middle = (low + high + 1) // 2
        runs = list(ngrams(tokens, middle))
        if len(set(runs)) < len(runs):
            low = middle
        else:
            high = middle - 1
    return low


class RepetitionScore:
    """distinct-n of words for n = 1, 2, 3 (Li et al. 2016) and the longest run said again."""

    name = "repetition"

    def __call__(self, text: str) -> dict[str, float | bool | None]:
        """Return the figures of ``text`` by column."""
        tokens = words(text)
        out: dict[str, float | bool | None] = {}
        for n in (1, 2, 3):
            grams = list(ngrams(tokens, n))
            out[f"distinct_{n}"] = len(set(grams)) / len(grams) if grams else None
        return out | {"longest_repeat": longest_repeat(tokens)}


class LengthScore:
    """Words of a text, and whether it is empty or short."""

    name = "length"

    def __init__(self, *, short: int) -> None:
        self._short = short

    def __call__(self, text: str) -> dict[str, float | bool | None]:
        """Return the figures of ``text`` by column."""
        n = len(words(text))
        return {"n_words": n, "empty": n == 0, "short": n < self._short}


class RefusalScore:
    """Whether the text refuses to answer."""

    name = "refusal"

    def __call__(self, text: str) -> dict[str, float | bool | None]:
        """Return the figures of ``text`` by column."""
        return {"refusal": find_refusal(text) is not None}


def _keywords(spec: ScoreSpec) -> list[TextScore]:
    rules = [
        KeywordRules(name=lexicon.name, licence=lexicon.licence, words=tuple(lexicon.keywords))
        for lexicon in bundled_lexica()
    ]
    return [KeywordScore(rule) for rule in (spec.rules or rules)]


SCORES: dict[str, Callable[[ScoreSpec], list[TextScore]]] = {
    "keywords": _keywords,
    "sentiment": lambda _spec: [SentimentScore()],
    "hostility": lambda _spec: [KeywordScore(hostility_rules())],
    "repetition": lambda _spec: [RepetitionScore()],
    "length": lambda spec: [LengthScore(short=spec.short)],
    "refusal": lambda _spec: [RefusalScore()],
}


def build_scores(spec: ScoreSpec) -> list[TextScore]:
    """Return the scores that a spec names.

    Raises
    ------
    InvalidInputError
        If a name is unknown, or two scores would write one column.
    """
    built: list[TextScore] = []
    for name in spec.scores:
        if name not in SCORES:
            known = list(SCORES)
            msg = f"unknown score {name!r}{near_names(name, known)}; known: {', '.join(known)}"
            raise InvalidInputError(msg)
        built += SCORES[name](spec)
    names = [score.name for score in built]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"scores {', '.join(twice)} are named twice; give each its own name"
        raise InvalidInputError(msg)
    return built


def score_text(
    text: str, scores: Sequence[TextScore], *, spec: ScoreSpec
) -> dict[str, float | bool | None]:
    """Return every figure of ``text``, and ``coherent`` where repetition and length are scored."""
    found: dict[str, float | bool | None] = {}
    for score in scores:
        found |= score(text)
    if {"distinct_2", "short", "empty"} <= found.keys():
        distinct, repeat = found["distinct_2"], found["longest_repeat"]
        found["coherent"] = bool(
            not found["empty"]
            and not found["short"]
            and (distinct is None or distinct >= spec.least_distinct)
            and (repeat is None or repeat <= spec.longest_repeat)
        )
    return found
