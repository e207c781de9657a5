"""The data-driven lexicon: the words that tell the arms apart in the train split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..schemas import InvalidInputError, SweepPoint, Text, VariantSpec
from .separability import bag_of_words_auroc
from .texts import pair_texts
from .words import words

__all__ = ["rank_words", "sweep_words"]


def rank_words(texts: Sequence[Text]) -> list[str]:
    """Return the words of ``texts``, those first whose odds differ most between the arms.

    By |z| of the log-odds ratio with the corpus as an informative Dirichlet prior (Monroe,
    Colaresi & Quinn 2008, eqs. 16 and 22), so that a word seen once does not come first.

    Raises
    ------
    InvalidInputError
        If an arm has no words.
    """
    counts = {
        arm: Counter(w for t in texts if t.arm == arm for w in words(t.response))
        for arm in ("positive", "negative")
    }
    if not all(counts.values()):
        msg = "log-odds need words of both arms in the train split"
        raise InvalidInputError(msg)
    vocabulary = sorted(counts["positive"] | counts["negative"])
    y = np.array([[counts[arm][w] for w in vocabulary] for arm in counts], dtype=np.float64)
    prior = y.sum(axis=0)
    smooth = y + prior
    odds = np.log(smooth / (smooth.sum(axis=1, keepdims=True) - smooth))
    z = (odds[0] - odds[1]) / np.sqrt((1 / smooth).sum(axis=0))
    order = np.argsort(-np.abs(z), kind="stable")
    return [vocabulary[i] for i in order]


def sweep_words(
    texts: Sequence[Text], *, spec: VariantSpec
) -> tuple[tuple[str, ...], list[SweepPoint], bool]:
    """Return the words to remove, the sweep over their number, and whether it met its target.

    Words are ranked, and k chosen, on the train split alone; ``bow_all`` is for the reader.
    Where the target is not met, all ``k_max`` words are returned, or those of the last step
    that left every text a word: none, if the first step empties one.

    Raises
    ------
    InvalidInputError
        If the train split has fewer than two scenarios.
    """
    train = [t for t in texts if t.split == "train"]
    if len({t.scenario for t in train}) < 2:
        msg = "the data-driven arm chooses its words on two train scenarios or more; there are less"
        raise InvalidInputError(msg)
    ranked = rank_words(train)
    found = {t.id: words(t.response) for t in texts}
    k = spec.k_first
    points: list[SweepPoint] = []
    removed: tuple[str, ...] = ()
    while True:
        k = min(k, spec.k_max, len(ranked))
        gone = frozenset(ranked[:k])
        left = {name: [w for w in tokens if w not in gone] for name, tokens in found.items()}
        if not all(left.values()):
            return removed, points, False
        thinned = [t.model_copy(update={"response": " ".join(left[t.id])}) for t in texts]
        aurocs = [
            bag_of_words_auroc(pair_texts(part), max_folds=spec.max_folds, seed=spec.seed)
            for part in ([t for t in thinned if t.split == "train"], thinned)
        ]
        points.append(SweepPoint(k=k, bow_train=round(aurocs[0], 4), bow_all=round(aurocs[1], 4)))
        removed = tuple(ranked[:k])
        if aurocs[0] <= spec.bow_target:
            return removed, points, True
        if k >= min(spec.k_max, len(ranked)):
            return removed, points, False
        k *= 2
