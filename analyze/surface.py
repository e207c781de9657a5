"""Surface features of texts: what a reader could tell the arms by without their meaning."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from .auroc import Floats
from .splits import Fold

__all__ = [
    "SURFACE_FEATURES",
    "feature_scores",
    "readability",
    "surface_features",
    "surface_scores",
]

SURFACE_FEATURES = ("length", "word_length", "markdown", "first_person", "readability")

_WORD = re.compile(r"[^\W_]+(?:['\N{RIGHT SINGLE QUOTATION MARK}][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_MARKDOWN = re.compile(
    r"^\s{0,3}(?:#{1,6}\s|[-*+]\s|\d+[.)]\s|>\s|```)|\*\*\S|__\S|`[^`\n]+`|\[[^\]\n]+\]\(", re.M
)
_FIRST_PERSON = frozenset(
    ("i", "me", "my", "mine", "myself", "we", "us", "our", "ours", "ourselves")
)


def readability(text: str) -> float:
    """Return the automated readability index: 4.71 c/w + 0.5 w/s − 21.43; 0 without a word.

    Characters per word and words per sentence (Senter & Smith 1967, AMRL-TR-66-220): no
    syllables, and so no dictionary of a language.
    """
    words = _WORD.findall(text)
    if not words:
        return 0.0
    n_sentences = max(len(_SENTENCE_END.findall(text.strip())), 1)
    n_characters = sum(len(word) for word in words)
    return 4.71 * n_characters / len(words) + 0.5 * len(words) / n_sentences - 21.43


def surface_features(responses: Sequence[str]) -> Floats:
    """Return the features of :data:`SURFACE_FEATURES`, dims (text, feature).

    Characters; mean characters per word; marks of markdown; share of words in the first person
    (with contractions such as I'm); readability.
    """
    rows = []
    for text in responses:
        words = [word.lower() for word in _WORD.findall(text)]
        heads = [re.split(r"['\N{RIGHT SINGLE QUOTATION MARK}]", word)[0] for word in words]
        n = max(len(words), 1)
        rows.append(
            (
                float(len(text)),
                sum(len(word) for word in words) / n,
                float(len(_MARKDOWN.findall(text))),
                sum(head in _FIRST_PERSON for head in heads) / n,
                readability(text),
            )
        )
    return np.array(rows, dtype=np.float64).reshape(-1, len(SURFACE_FEATURES))


def surface_scores(features: Floats, folds: Sequence[Fold]) -> Floats:
    """Return held-out decision values of all features together, dims (arm, pair).

    Logistic regression (C = 1) on features standardised in each fold's training texts.
    ``features`` has dims (text, feature), positives first; NaN for pairs that no fold holds out.
    """
    n_pairs = features.shape[0] // 2
    paired = features.reshape(2, n_pairs, -1)
    scores = np.full((2, n_pairs), np.nan)
    for fold in folds:
        if fold.test.size == 0:
            continue
        train = paired[:, fold.train].reshape(-1, features.shape[1])
        mean, scale = train.mean(axis=0), train.std(axis=0)
        scale = np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1), scale, np.inf)
        model = LogisticRegression(C=1.0, max_iter=2000)
        model.fit((train - mean) / scale, np.repeat([1, 0], fold.train.size))
        held = (paired[:, fold.test] - mean) / scale
        scores[:, fold.test] = held @ model.coef_[0] + model.intercept_[0]
    return scores


def feature_scores(feature: Floats, folds: Sequence[Fold]) -> Floats:
    """Return held-out scores of one feature (text,), dims (arm, pair).

    Its sign, midpoint and unit (the class separation) come from each fold's training texts.
    """
    paired = feature.reshape(2, -1)
    scores = np.full(paired.shape, np.nan)
    for fold in folds:
        means = paired[:, fold.train].mean(axis=1)
        separation = means[0] - means[1]
        held = paired[:, fold.test] - means.mean()
        scores[:, fold.test] = held / separation if separation != 0 else 0.0
    return scores
