"""The words of responses as arrays: which an arm takes out, and which random ones match them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..corpus.words import WORD, stop_words
from .auroc import Floats

__all__ = ["WordTable", "draw_matched", "ragged", "without_words", "word_table"]

Ints: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

STEEPNESS = 2.0  # weight of a random word: exp(−2·|difference of the log frequencies|)


@dataclass(frozen=True)
class WordTable:
    """Every word of some responses in their order.

    ``text`` numbers the response of each word, ``start`` and ``stop`` are its characters there,
    ``kind`` its place in ``vocabulary`` (lower case); all have dims (word,). ``edges`` has dims
    (text + 1,): the words of text *i* are ``edges[i]`` to ``edges[i + 1]``.
    """

    text: Ints
    start: Ints
    stop: Ints
    kind: Ints
    edges: Ints
    vocabulary: tuple[str, ...]

    @property
    def n_texts(self) -> int:
        """Responses."""
        return self.edges.size - 1

    @property
    def n_words(self) -> int:
        """Words of all responses."""
        return int(self.text.size)

    def among(self, words: Collection[str]) -> Flags:
        """Return which words are some of ``words``, dims (word,)."""
        return self.kinds(words)[self.kind]

    def kinds(self, words: Collection[str]) -> Flags:
        """Return which of the vocabulary are some of ``words``, dims (kind,)."""
        chosen = frozenset(words)
        return np.array([word in chosen for word in self.vocabulary], dtype=bool)

    def content(self) -> Flags:
        """Return which words are no function words, dims (word,)."""
        return ~self.among(stop_words())

    def log_frequency(self) -> Floats:
        """Return log of how often each word stands in all responses, dims (word,)."""
        counts = np.bincount(self.kind, minlength=len(self.vocabulary))
        result: Floats = np.log(counts[self.kind])
        return result

    def per_text(self, flags: Flags) -> Ints:
        """Return how many flagged words every text has, dims (text,)."""
        return np.bincount(self.text[flags], minlength=self.n_texts).astype(np.int64)


def word_table(responses: Sequence[str]) -> WordTable:
    """Return the words of ``responses``, contractions whole."""
    spans: list[tuple[int, int, int]] = []
    found: list[str] = []
    edges = [0]
    for number, response in enumerate(responses):
        for match in WORD.finditer(response):
            spans.append((number, *match.span()))
            found.append(match[0].lower().replace("\u2019", "'"))
        edges.append(len(found))
    text, start, stop = np.array(spans, dtype=np.int64).reshape(-1, 3).T
    vocabulary = sorted(set(found))
    code = {word: k for k, word in enumerate(vocabulary)}
    kind = np.array([code[word] for word in found], dtype=np.int64)
    last = np.array(edges, dtype=np.int64)
    return WordTable(text, start, stop, kind, last, tuple(vocabulary))


def draw_matched(
    table: WordTable, gone: Flags, *, n_draws: int, seed: Sequence[int]
) -> tuple[Flags, int]:
    """Return random words of every text to take out, and how many there were none left for.

    In each text as many content words as ``gone`` takes, none of them one of those: for each
    word in turn one is drawn, without replacement, with a probability that falls with the
    distance of their log frequencies in all texts. The rule of the variants that go through the
    model.

    Parameters
    ----------
    table
        The words.
    gone
        dims (word,): those that are matched.
    n_draws
        Independent draws.
    seed
        Of the draws; text number *i* has its own stream.

    Returns
    -------
    tuple
        Flags with dims (draw, word), and the number of words of all texts without a match.
    """
    frequency, content = table.log_frequency(), table.content()
    chosen = np.zeros((n_draws, table.n_words), dtype=bool)
    short = 0
    for text in np.flatnonzero(table.per_text(gone)):
        words = np.arange(table.edges[text], table.edges[text + 1])
        wanted = words[gone[words]]
        free = words[content[words] & ~gone[words]]
        n = min(wanted.size, free.size)
        short += int(wanted.size - n)
        if n == 0:
            continue
        rng = np.random.default_rng([*seed, int(text)])
        # The largest of log weight + Gumbel noise is a draw by weight, all draws at once.
        noise_shape = (n_draws, free.size)
        left = np.zeros(noise_shape)
        rows = np.arange(n_draws)
        for word in wanted[:n]:
            weight = -STEEPNESS * np.abs(frequency[free] - frequency[word])
            at = np.argmax(weight + rng.gumbel(size=noise_shape) + left, axis=1)
            left[rows, at] = -np.inf
            chosen[rows, free[at]] = True
    return chosen, short


def without_words(responses: Sequence[str], table: WordTable, gone: Flags) -> list[str]:
    """Return the responses with spaces in the place of the words that are gone."""
    out = []
    for text, response in enumerate(responses):
        characters = list(response)
        for word in np.flatnonzero(gone[table.edges[text] : table.edges[text + 1]]):
            start, stop = (int(of[table.edges[text] + word]) for of in (table.start, table.stop))
            characters[start:stop] = " " * (stop - start)
        out.append("".join(characters))
    return out


def ragged(first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Return (owner, value) of all values from ``first`` to, not including, ``last`` of each."""
    counts = np.maximum(last - first, 0)
    owner = np.repeat(np.arange(first.size), counts)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    value: NDArray[Any] = np.arange(owner.size) - starts + first[owner]
    return owner, value.astype(np.int64)
