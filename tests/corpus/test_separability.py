"""What tells the arms apart without reading: planted, absent, and not learnt from a scenario."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.analyze import splits, words
from actlake.corpus import bundled_corpus, pair_texts
from actlake.corpus.separability import (
    bag_of_words_auroc,
    length_auroc,
    scenario_folds,
    surface_auroc,
)
from actlake.schemas import BagOfWordsSpec, InvalidInputError
from tests.corpus.made import corpus, pair


def pairs(*args, **fields):
    return pair_texts(corpus(*args, **fields))


def test_a_planted_word_is_seen_and_nothing_is_seen_where_nothing_is():
    planted = pairs(8, 4, positive=["violet"] * 3, negative=["orange"] * 3)
    assert bag_of_words_auroc(planted) == 1.0
    assert 0.3 < bag_of_words_auroc(pairs(8, 4)) < 0.7


def test_the_same_words_in_another_order_are_half():
    texts = []
    for s in range(6):
        for k in range(3):
            first, second = f"lamp{'abcdef'[s]} before river{'xyz'[k]}".split(" before ")
            texts += pair(
                f"p{s}{k}", f"I put {first} before {second}.", f"I put {second} before {first}.",
                scenario=f"s{s}",
            )  # fmt: skip
    assert bag_of_words_auroc(pair_texts(texts)) == 0.5


def test_a_word_that_tells_the_arms_only_within_its_scenario_is_no_evidence():
    names = ["alder", "birch", "cedar", "dogwood", "elm", "fir"]
    texts = []
    for s, name in enumerate(names):
        texts += [
            t.model_copy(
                update={"id": f"{name}{t.id}", "pair": f"{name}{t.pair}", "scenario": name}
            )
            for t in corpus(1, 4, seed=s, positive=[f"{name}ly"] * 3, negative=[f"{name}ish"] * 3)
        ]
    assert bag_of_words_auroc(pair_texts(texts)) < 0.75
    together = [t.model_copy(update={"scenario": t.id[-5]}) for t in texts]
    assert len({t.scenario for t in together}) == 4
    assert bag_of_words_auroc(pair_texts(together)) > 0.9


def test_length_alone_is_folded_and_surface_sees_it():
    even = pairs(8, 4)
    assert 0.5 <= length_auroc(even) < 0.7
    cut = [
        p.model_copy(update={"negative": p.negative.model_copy(update={"response": "I go."})})
        for p in even
    ]
    assert length_auroc(cut) == 1.0
    assert surface_auroc(cut) == 1.0
    swapped = [
        p.model_copy(update={"positive": p.positive.model_copy(update={"response": "I go."})})
        for p in even
    ]
    assert length_auroc(swapped) == 1.0


def test_it_is_the_control_that_probes_are_printed_beside():
    """The same figure as analyze's bag of words on the same folds."""
    _, texts = bundled_corpus("demo")
    chosen = [p for p in pair_texts(texts) if p.positive.subset == "plain"]
    responses = [p.positive.response for p in chosen] + [p.negative.response for p in chosen]
    folds = scenario_folds([p.positive.scenario for p in chosen])
    outer = [
        splits.Fold(
            name=str(k),
            train=np.flatnonzero(folds != k),
            test=np.flatnonzero(folds == k),
            inner_scenario=np.zeros(0, dtype=np.int64),
            inner_tune=np.zeros(0, dtype=np.int64),
            inner_unit="scenario",
        )
        for k in np.unique(folds)
    ]
    scores = words.bag_of_words_scores(responses, outer, spec=BagOfWordsSpec())
    positive, negative = scores[0][:, None], scores[1][None, :]
    theirs = np.mean((positive > negative) + 0.5 * (positive == negative))
    assert bag_of_words_auroc(chosen) == pytest.approx(theirs, abs=1e-3)


@given(st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=60), st.integers(2, 6))
def test_no_scenario_lies_in_two_folds(names, n_folds):
    if len(set(names)) < 2:
        with pytest.raises(InvalidInputError, match="needs two scenarios or more"):
            scenario_folds(names)
        return
    folds = scenario_folds(names, max_folds=n_folds)
    assert folds.size == len(names)
    assert len(set(folds.tolist())) == min(n_folds, len(set(names)))
    for name in set(names):
        assert len({f for n, f in zip(names, folds, strict=True) if n == name}) == 1
