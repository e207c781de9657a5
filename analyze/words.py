"""The lexical control: a TF-IDF bag of words with logistic regression, on the probes' folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression

from ..schemas import BagOfWordsSpec, InvalidInputError, NotFoundError, Text
from .auroc import Floats
from .splits import Fold, PairTable

__all__ = ["CEILING", "bag_of_words_scores", "pair_responses"]

CEILING = 0.99  # a bag of words at or above it explains the whole contrast


def pair_responses(texts: Sequence[Text], table: PairTable) -> list[str]:
    """Return the responses of the pairs of ``table``, positives first.

    Raises
    ------
    NotFoundError
        If a text of the run is not in ``texts``.
    """
    responses = {text.id: text.response for text in texts}
    wanted = table.texts.ravel().tolist()
    missing = [name for name in wanted if name not in responses]
    if missing:
        msg = (
            f"{len(missing)} of {len(wanted)} paired texts of the run are not in the corpus that "
            f"was given, the first is {missing[0]!r}; pass the corpus the run was extracted from"
        )
        raise NotFoundError(msg)
    return [responses[name] for name in wanted]


def bag_of_words_scores(
    responses: Sequence[str], folds: Sequence[Fold], *, spec: BagOfWordsSpec
) -> Floats:
    """Return held-out decision values, dims (arm, pair); NaN for pairs that no fold holds out.

    Every fold has its own vocabulary, document frequencies and regression, from its training
    texts alone. One-letter words count, since "I" is a cue of the first person.

    Parameters
    ----------
    responses
        The response texts, positives first.
    folds
        Outer folds over the pairs.
    spec
        n-gram length and inverse penalty.
    """
    vectorizer = CountVectorizer(ngram_range=(1, spec.ngram_max), token_pattern=r"(?u)\b\w+\b")
    try:
        counts = vectorizer.fit_transform(responses).tocsr()
    except ValueError as err:
        msg = (
            f"the bag of words found no word in {len(responses)} responses ({err}); texts that "
            "bring token ids need their response in words too"
        )
        raise InvalidInputError(msg) from err
    n_pairs = len(responses) // 2
    scores = np.full((2, n_pairs), np.nan)
    for fold in folds:
        if fold.test.size == 0:
            continue
        train, test = _rows(fold.train, n_pairs), _rows(fold.test, n_pairs)
        # Counting is unsupervised: leaving out the words that no training text has is the same
        # as counting the training texts alone, without reading the texts again in every fold.
        seen = np.flatnonzero(np.asarray(counts[train].sum(axis=0)).ravel())
        if seen.size == 0:
            scores[:, fold.test] = 0.0
            continue
        weigh = TfidfTransformer().fit(counts[train][:, seen])
        model = LogisticRegression(C=spec.c, max_iter=2000)
        model.fit(weigh.transform(counts[train][:, seen]), train < n_pairs)
        values = model.decision_function(weigh.transform(counts[test][:, seen]))
        scores[:, fold.test] = values.reshape(2, -1)
    return scores


def _rows(pairs: NDArray[np.int64], n_pairs: int) -> NDArray[np.int64]:
    """Return the row numbers of both arms of ``pairs``, positives first."""
    return np.concatenate([pairs, pairs + n_pairs])
