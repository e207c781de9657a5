"""Measures of how unlike the texts of a corpus are (SCIENCE §9)."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..schemas import InvalidInputError
from .words import ngrams, words

__all__ = [
    "compression_ratio",
    "distinct_ngrams",
    "mean_jaccard",
    "nearest_cosines",
    "normalised_entropy",
    "opener",
    "opener_repetition",
    "vendi_score",
    "within_budget",
]

N_OPENER = 3


def opener(text: str) -> str:
    """Return the first three words of ``text``."""
    return " ".join(words(text)[:N_OPENER])


def opener_repetition(texts: Sequence[str]) -> float:
    """Return the share of the texts that begin with the commonest opener; 0 if none repeats."""
    counts = Counter(opener(text) for text in texts)
    n = max(counts.values(), default=0)
    return n / len(texts) if n > 1 else 0.0


def within_budget(texts: Sequence[str], *, n_words: int, seed: int) -> list[list[str]]:
    """Return the words of randomly chosen texts, ``n_words`` in all; the last text is cut.

    Counts of distinct n-grams fall with the length of what they are counted in, so corpora are
    compared at one budget.

    Raises
    ------
    InvalidInputError
        If the texts together have fewer words.
    """
    chosen: list[list[str]] = []
    left = n_words
    for index in np.random.default_rng(seed).permutation(len(texts)):
        if left <= 0:
            break
        found = words(texts[index])[:left]
        chosen.append(found)
        left -= len(found)
    if left > 0:
        msg = f"the texts have {n_words - left} words, fewer than the budget of {n_words}"
        raise InvalidInputError(msg)
    return chosen


def distinct_ngrams(texts: Sequence[Sequence[str]], n: int) -> float:
    """Return distinct n-grams / n-grams of tokenised texts (Li et al. 2016, 1510.03055)."""
    found = [gram for tokens in texts for gram in ngrams(tokens, n)]
    return len(set(found)) / len(found) if found else 0.0


def compression_ratio(texts: Sequence[Sequence[str]]) -> float:
    """Return bytes / bytes after zlib level 9 of tokenised texts (Shaib et al. 2403.00553)."""
    raw = "\n".join(" ".join(tokens) for tokens in texts).encode()
    return len(raw) / len(zlib.compress(raw, 9)) if raw else 0.0


def _tfidf(texts: Sequence[str]) -> Any:  # a sparse matrix, (text, word), rows of length 1  # noqa: ANN401
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        return TfidfVectorizer(token_pattern=r"(?u)\b\w+\b").fit_transform(texts)
    except ValueError as err:
        msg = f"no word in {len(texts)} texts: {err}"
        raise InvalidInputError(msg) from err


def vendi_score(texts: Sequence[str]) -> float:
    """Return the effective number of unlike texts under the kernel of TF-IDF cosines.

    exp of the entropy of the eigenvalues of K/n (Friedman & Dieng 2210.02410); 1 for n equal
    texts, n for texts without a common word.
    """
    x = _tfidf(texts)
    kernel = (x @ x.T).toarray() / len(texts)
    values = np.linalg.eigvalsh(kernel)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def mean_jaccard(texts: Sequence[str], *, n: int) -> float:
    """Return the mean Jaccard of word ``n``-grams over all pairs of texts."""
    from sklearn.feature_extraction.text import CountVectorizer

    if len(texts) < 2:
        msg = f"a mean over pairs of texts needs two texts, got {len(texts)}"
        raise InvalidInputError(msg)
    try:
        x = CountVectorizer(ngram_range=(n, n), binary=True, token_pattern=r"(?u)\b\w+\b")
        sets = x.fit_transform(texts).astype(np.float64)
    except ValueError:
        return 0.0  # no text has n words
    shared = (sets @ sets.T).toarray()
    sizes = shared.diagonal()
    union = sizes[:, None] + sizes[None, :] - shared
    values = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return float(values[np.triu_indices(len(texts), k=1)].mean())


def normalised_entropy(counts: Sequence[int]) -> float:
    """Return the entropy of shares over its maximum: 1 where all counts are equal, 0 for one."""
    positive = [c for c in counts if c > 0]
    if len(positive) < 2:
        return 0.0
    total = sum(positive)
    return -sum(c / total * math.log(c / total) for c in positive) / math.log(len(positive))


def nearest_cosines(
    texts: Sequence[str], others: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return each text's highest TF-IDF cosine with one of ``others``, and which one, (text,)."""
    x = _tfidf([*texts, *others])
    cosines = (x[: len(texts)] @ x[len(texts) :].T).toarray()
    return cosines.max(axis=1), cosines.argmax(axis=1)
