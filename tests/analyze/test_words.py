from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from actlake.analyze.auroc import auroc
from actlake.analyze.splits import pair_table, scenario_folds, split_fold
from actlake.analyze.words import bag_of_words_scores, pair_responses
from actlake.schemas import BagOfWordsSpec, InvalidInputError, NotFoundError


@pytest.mark.parametrize("ngram_max", [1, 2])
def test_scores_equal_a_pipeline_fitted_on_the_training_texts_of_each_fold(
    synthetic_run, ngram_max
):
    run = synthetic_run(n_scenarios=4, pairs_per_scenario=5)
    table = pair_table(run.ds)
    folds = scenario_folds(table, max_folds=100, seed=0).folds
    responses = pair_responses(run.texts, table)
    found = bag_of_words_scores(responses, folds, spec=BagOfWordsSpec(ngram_max=ngram_max, c=2.0))
    for fold in folds:
        train = [*fold.train, *(fold.train + table.n_pairs)]
        test = [*fold.test, *(fold.test + table.n_pairs)]
        model = make_pipeline(
            TfidfVectorizer(ngram_range=(1, ngram_max), token_pattern=r"(?u)\b\w+\b"),
            LogisticRegression(C=2.0, max_iter=2000),
        )
        model.fit([responses[i] for i in train], table.labels[train])
        expected = model.decision_function([responses[i] for i in test])
        np.testing.assert_allclose(found[:, fold.test].ravel(), expected, atol=1e-4)


def test_the_first_person_is_a_word(synthetic_run):
    run = synthetic_run(
        responses=lambda arm, k: f"{'I' if arm == 'positive' else 'a'} walk to the door {k % 7}"
    )
    table = pair_table(run.ds)
    folds = scenario_folds(table, max_folds=100, seed=0).folds
    scores = bag_of_words_scores(pair_responses(run.texts, table), folds, spec=BagOfWordsSpec())
    assert auroc(scores.ravel(), table.labels) == 1.0


def test_words_that_say_nothing_score_at_chance(synthetic_run):
    run = synthetic_run(n_scenarios=12, pairs_per_scenario=15)
    table = pair_table(run.ds)
    folds = scenario_folds(table, max_folds=100, seed=0).folds
    scores = bag_of_words_scores(pair_responses(run.texts, table), folds, spec=BagOfWordsSpec())
    assert auroc(scores.ravel(), table.labels) == pytest.approx(0.5, abs=0.12)


def test_pairs_that_no_fold_holds_out_have_no_score(synthetic_run):
    run = synthetic_run(n_scenarios=4, n_test_scenarios=1)
    table = pair_table(run.ds)
    split = split_fold(table, max_folds=100, seed=0)
    scores = bag_of_words_scores(pair_responses(run.texts, table), [split], spec=BagOfWordsSpec())
    assert np.isfinite(scores[:, split.test]).all()
    assert np.isnan(scores[:, split.train]).all()


def test_a_test_text_without_a_known_word_scores_the_intercept(synthetic_run):
    run = synthetic_run(
        n_scenarios=3, responses=lambda arm, k: f"{arm}" if k < 16 else "unheard syllables"
    )
    table = pair_table(run.ds)
    folds = scenario_folds(table, max_folds=100, seed=0).folds
    scores = bag_of_words_scores(pair_responses(run.texts, table), folds, spec=BagOfWordsSpec())
    assert np.ptp(scores[:, folds[2].test]) == 0


def test_a_corpus_that_lacks_a_text_of_the_run_is_named(synthetic_run):
    run = synthetic_run()
    with pytest.raises(NotFoundError, match=r"1 of 96 paired texts .* 'pos-0005'"):
        pair_responses([t for t in run.texts if t.id != "pos-0005"], pair_table(run.ds))


def test_responses_without_words_are_refused(synthetic_run):
    run = synthetic_run(responses=lambda _arm, _k: "…!?")
    table = pair_table(run.ds)
    folds = scenario_folds(table, max_folds=100, seed=0).folds
    with pytest.raises(InvalidInputError, match="no word in 96 responses"):
        bag_of_words_scores(pair_responses(run.texts, table), folds, spec=BagOfWordsSpec())
