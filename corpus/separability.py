"""How well the arms can be told apart without reading: bag of words, surface, length.

Computed before any GPU hour is spent; every score is of a text whose scenario was held out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..schemas import InvalidInputError, Pair
from .words import FIRST_PERSON, SECOND_PERSON, sentences, stop_words, words

__all__ = ["bag_of_words_auroc", "length_auroc", "scenario_folds", "surface_auroc"]

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


def scenario_folds(scenarios: Sequence[str], *, max_folds: int = 100, seed: int = 0) -> Ints:
    """Return a fold per pair: one fold per scenario, or ``max_folds`` groups of scenarios.

    Raises
    ------
    InvalidInputError
        If there are fewer than two scenarios.
    """
    names, codes, sizes = np.unique(np.asarray(scenarios), return_inverse=True, return_counts=True)
    if names.size < 2:
        msg = (
            f"leave-one-scenario-out needs two scenarios or more, got {names.tolist()} over "
            f"{len(scenarios)} pairs; give the texts a scenario"
        )
        raise InvalidInputError(msg)
    if names.size <= max_folds:
        return codes.astype(np.int64)
    shuffled = np.random.default_rng(seed).permutation(names.size)
    fold_of_name, load = np.zeros(names.size, dtype=np.int64), np.zeros(max_folds)
    for name in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of_name[name] = int(np.argmin(load))
        load[fold_of_name[name]] += sizes[name]
    result: Ints = fold_of_name[codes]
    return result


def _responses(pairs: Sequence[Pair]) -> list[str]:
    """Return the responses, positives first."""
    return [p.positive.response for p in pairs] + [p.negative.response for p in pairs]


def _held_out_auroc(features: object, folds: Ints, *, c: float, tfidf: bool) -> float:
    """Return the AUROC of logistic regression on held-out folds; features (text, feature)."""
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    x, n_pairs = features, folds.size
    label = np.repeat([1, 0], n_pairs)
    fold_of_text = np.concatenate([folds, folds])
    scores = np.zeros(2 * n_pairs)
    with threadpool_limits(1):  # on so few rows threads cost more than they give
        for fold in np.unique(folds):
            train = np.flatnonzero(fold_of_text != fold)
            test = np.flatnonzero(fold_of_text == fold)
            scaler = TfidfTransformer() if tfidf else StandardScaler()
            model = LogisticRegression(C=c, max_iter=2000)
            model.fit(scaler.fit_transform(x[train]), label[train])  # type: ignore[index]
            scores[test] = model.decision_function(scaler.transform(x[test]))  # type: ignore[index]
    # Sums of the same terms in another order differ in the last bits; they are ties.
    return float(roc_auc_score(label, np.round(scores, 9)))


def bag_of_words_auroc(
    pairs: Sequence[Pair], *, max_folds: int = 100, c: float = 1.0, seed: int = 0
) -> float:
    """Return the AUROC of TF-IDF unigrams and logistic regression, scenarios held out.

    The same control that every probe is printed beside: document frequencies and regression of
    a fold come from its training texts alone, and one-letter words count.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    folds = scenario_folds([p.positive.scenario for p in pairs], max_folds=max_folds, seed=seed)
    vectorizer = CountVectorizer(token_pattern=r"(?u)\b\w+\b")
    try:
        counts = vectorizer.fit_transform(_responses(pairs)).tocsr()
    except ValueError as err:
        msg = f"the bag of words found no word in the responses of {len(pairs)} pairs: {err}"
        raise InvalidInputError(msg) from err
    return _held_out_auroc(counts.astype(np.float64), folds, c=c, tfidf=True)


def _surface(text: str) -> list[float]:
    """Return lengths, punctuation and persons of a text: what it looks like, not what it says."""
    found = words(text)
    n = max(len(found), 1)
    n_sentences = max(len(sentences(text)), 1)
    stop = stop_words()
    return [
        len(text),
        len(found),
        sum(map(len, found)) / n,
        n_sentences,
        n / n_sentences,
        text.count(",") / n,
        len(re.findall(r"[;:()–—-]", text)) / n,
        len(re.findall(r"[\"“”]", text)) / n,
        text.count("?"),
        text.count("!"),
        sum(c.isdigit() for c in text) / n,
        sum(c.isupper() for c in text) / n,
        text.count("\n"),
        len(set(found)) / n,
        sum(w in stop for w in found) / n,
        sum(w in FIRST_PERSON for w in found) / n,
        sum(w in SECOND_PERSON for w in found) / n,
    ]


def surface_auroc(pairs: Sequence[Pair], *, max_folds: int = 100, seed: int = 0) -> float:
    """Return the AUROC of length, word length, punctuation, capitals and persons together.

    Seventeen features and logistic regression, scenarios held out.
    """
    folds = scenario_folds([p.positive.scenario for p in pairs], max_folds=max_folds, seed=seed)
    features = np.array([_surface(text) for text in _responses(pairs)])
    return _held_out_auroc(features, folds, c=1.0, tfidf=False)


def length_auroc(pairs: Sequence[Pair]) -> float:
    """Return the AUROC of length alone, max(A, 1 − A), in words or characters, the higher."""
    from sklearn.metrics import roc_auc_score

    label = np.repeat([1, 0], len(pairs))
    texts = _responses(pairs)
    found = [
        float(roc_auc_score(label, [measure(t) for t in texts]))
        for measure in (len, lambda t: len(words(t)))
    ]
    return max(max(a, 1 - a) for a in found)
