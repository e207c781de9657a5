"""Words, sentences and n-grams of English responses."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

__all__ = [
    "FIRST_PERSON",
    "SECOND_PERSON",
    "WORD",
    "content_words",
    "ngrams",
    "sentences",
    "stop_words",
    "words",
]

WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
FIRST_PERSON = frozenset(
    ("i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves", "i'm", "i'll",
     "i've", "i'd")
)  # fmt: skip
SECOND_PERSON = frozenset(
    ("you", "your", "yours", "yourself", "yourselves", "you're", "you'll", "you've", "you'd")
)  # fmt: skip
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”\u2019)]*\s+")
# scikit-learn's list calls these stop words, but here they carry what a text is about.
_CARRIES_MEANING = frozenset(
    ("alone", "amount", "bill", "call", "cry", "describe", "detail", "fill", "find", "fire",
     "found", "full", "give", "interest", "keep", "move", "serious", "show", "sincere", "system",
     "together")
)  # fmt: skip


def words(text: str) -> list[str]:
    """Return the words of ``text`` in lower case, contractions whole."""
    return [match.lower() for match in WORD.findall(text.replace("\u2019", "'"))]


def sentences(text: str) -> list[str]:
    """Return the sentences of ``text``."""
    return [part for part in _SENTENCE_END.split(text.strip()) if part]


def ngrams(items: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Yield the runs of ``n`` items in their order."""
    return zip(*(items[i:] for i in range(n)), strict=False)


@functools.cache
def stop_words() -> frozenset[str]:
    """Return English function words, contractions included."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    short = {"s", "t", "ll", "ve", "re", "d", "m", "let", "just", "don", "said", "say", "says"}
    return frozenset(ENGLISH_STOP_WORDS - _CARRIES_MEANING) | short


def content_words(text: str) -> list[str]:
    """Return the words of ``text`` that are no function words, in their order."""
    stop = stop_words()
    return [w for w in words(text) if w not in stop and w.partition("'")[0] not in stop]
