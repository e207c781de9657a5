from __future__ import annotations

import numpy as np
import pytest

from actlake.analyze.auroc import binormal_bound, paired_bound
from actlake.analyze.bootstrap import draw_pair_weights
from actlake.analyze.evaluate import HeldOut, compare_with_words, measure, recall_at_fpr, verdict


def held_out(words, *, n_bootstrap=200, n_folds=4):
    n = words.shape[1]
    fold = np.arange(n) % n_folds
    return HeldOut(
        subset="all",
        cv="folds",
        pairs=np.arange(n),
        fold=fold,
        weights=draw_pair_weights(fold.astype(str), n_draws=n_bootstrap, seed=0),
        words=words,
    )


def noisy(rng, n, shift):
    return rng.standard_normal((2, n)) + np.array([[shift / 2], [-shift / 2]])


def by_metric(rows):
    return {row["metric"]: row for row in rows}


def judge(scores, held):
    return by_metric(compare_with_words(measure(scores, held), scores, held))


def test_every_estimate_lies_in_its_interval():
    rng = np.random.default_rng(0)
    rows = judge(noisy(rng, 40, 1.0), held_out(noisy(rng, 40, 0.2)))
    assert set(rows) == {
        "auroc", "auroc_bootstrap", "auroc_within", "d_prime", "paired_accuracy", "accuracy",
    }  # fmt: skip
    for row in rows.values():
        assert row["ci_low"] < row["estimate"] < row["ci_high"]
        assert row["reason"] is None
        assert not row["boundary"]


def test_accuracy_uses_the_threshold_of_the_training_folds():
    rng = np.random.default_rng(1)
    scores = noisy(rng, 50, 3.0)
    held = held_out(noisy(rng, 50, 0.0))
    assert by_metric(measure(scores, held))["accuracy"]["estimate"] > 0.85
    biased = by_metric(measure(scores + 10, held))
    assert biased["accuracy"]["estimate"] == 0.5
    assert biased["auroc"]["estimate"] == by_metric(measure(scores, held))["auroc"]["estimate"]


def test_perfect_scores_have_boundary_bounds_everywhere():
    rng = np.random.default_rng(2)
    n = 30
    scores = np.abs(rng.standard_normal((2, n))) * np.array([[1], [-1]]) + [[0.1], [-0.1]]
    rows = judge(scores, held_out(noisy(rng, n, 0.5)))
    for metric in ("auroc", "auroc_bootstrap"):
        assert rows[metric]["ci_low"] == pytest.approx(binormal_bound(n, n))
    for metric in ("auroc_within", "paired_accuracy", "accuracy"):
        assert rows[metric]["ci_low"] == pytest.approx(paired_bound(n))
    boundary = {metric for metric, row in rows.items() if row["boundary"]}
    assert boundary == set(rows) - {"d_prime"}
    for metric in ("auroc", "auroc_bootstrap", "auroc_within"):
        low, high = rows[metric]["bow_delta_ci_low"], rows[metric]["bow_delta_ci_high"]
        assert low < rows[metric]["bow_delta"] < high


def test_a_probe_equal_to_the_bag_of_words_is_not_distinguishable_from_it():
    scores = noisy(np.random.default_rng(3), 40, 1.0)
    rows = judge(scores, held_out(scores))
    for metric in ("auroc", "auroc_bootstrap", "auroc_within"):
        assert rows[metric]["bow_delta"] == 0
        assert rows[metric]["verdict"].startswith("not distinguishable")


def test_two_perfect_scores_leave_a_difference_of_either_sign_possible():
    perfect = np.array([[1.0], [-1.0]]) * np.linspace(1, 2, 20)
    rows = judge(perfect, held_out(perfect))
    for metric in ("auroc", "auroc_bootstrap", "auroc_within"):
        assert rows[metric]["bow_delta"] == 0
        assert rows[metric]["bow_delta_ci_low"] < -0.01
        assert rows[metric]["bow_delta_ci_high"] > 0.01
        assert rows[metric]["verdict"].startswith("ceiling")


def test_clear_differences_from_the_bag_of_words_are_called_by_their_side():
    rng = np.random.default_rng(4)
    strong, weak = noisy(rng, 60, 3.0), noisy(rng, 60, 1.0)
    above, below = judge(strong, held_out(weak)), judge(weak, held_out(strong))
    for metric in ("auroc", "auroc_bootstrap", "auroc_within"):
        assert above[metric]["verdict"].startswith("above the bag of words by 0.")
        assert below[metric]["verdict"].startswith("below the bag of words by 0.")
        assert above[metric]["bow_delta"] == pytest.approx(-below[metric]["bow_delta"])


def test_only_auroc_rows_are_compared_with_words():
    scores = noisy(np.random.default_rng(5), 20, 1.0)
    rows = judge(scores, held_out(scores))
    compared = {metric for metric, row in rows.items() if "verdict" in row}
    assert compared == {"auroc", "auroc_bootstrap", "auroc_within"}


@pytest.mark.parametrize(
    ("estimate", "words", "low", "high", "said"),
    [
        (1.0, 0.99, -0.02, 0.03, "ceiling: this dataset cannot separate semantic from lexical"),
        (0.9, 0.7, 0.12, 0.28, "above the bag of words by 0.20 [0.12, 0.28]"),
        (0.6, 0.8, -0.31, -0.09, "below the bag of words by 0.20 [0.09, 0.31]"),
        (0.8, 0.8, -0.1, 0.1, "not distinguishable from the bag of words [-0.10, 0.10]"),
        (0.6, 0.2, 0.3, 0.5, "the bag of words is below chance (0.20)"),
        (0.6, 0.7, None, None, "no interval of the difference"),
    ],
)
def test_verdict_says_what_the_interval_allows(estimate, words, low, high, said):
    assert said in verdict(estimate, words, low=low, high=high)


def test_tied_scores_have_reasons_where_nothing_can_be_said():
    scores = np.zeros((2, 12))
    rows = by_metric(measure(scores, held_out(scores)))
    assert rows["auroc"]["estimate"] == 0.5
    assert rows["auroc"]["reason"] == "all scores are equal"
    assert rows["d_prime"]["estimate"] is None
    assert rows["d_prime"]["reason"] == "the scores have no spread"


def test_without_bootstrap_draws_the_missing_intervals_say_so():
    scores = noisy(np.random.default_rng(6), 20, 1.0)
    rows = judge(scores, held_out(scores, n_bootstrap=0))
    assert "auroc_bootstrap" not in rows
    assert rows["accuracy"]["ci_low"] is None
    assert rows["accuracy"]["reason"] == "n_bootstrap is 0"
    assert rows["auroc"]["ci_low"] is not None


def test_one_pair_has_estimates_and_reasons():
    scores = np.array([[1.0], [0.0]])
    rows = by_metric(measure(scores, held_out(scores, n_folds=1)))
    assert rows["auroc"]["estimate"] == 1.0
    assert rows["auroc"]["ci_low"] == pytest.approx(0.025, abs=1e-6)
    assert rows["d_prime"]["reason"]


def test_recall_uses_the_threshold_of_the_fold_that_held_the_pair_out():
    held = held_out(np.zeros((2, 4)), n_folds=2)  # folds 0, 1, 0, 1
    scores = np.array([[1.5, 1.5, 3.5, 3.5], [9.0, 9.0, 9.0, 9.0]])
    neutral = np.stack([np.linspace(0, 1, 200), np.linspace(2, 3, 200)])
    row = recall_at_fpr(scores, neutral, held)
    assert row["estimate"] == 0.75  # 1.5 passes the first fold's threshold only
    assert row["ci_method"] == "Clopper-Pearson; threshold passed by 2 of 200 neutral texts"
    thresholds = np.sort(neutral, axis=1)[:, -3]
    assert (neutral > thresholds[:, None]).mean() == pytest.approx(0.01)


def test_few_neutral_texts_bound_the_rate_less_tightly():
    held = held_out(np.zeros((2, 4)), n_folds=1)
    row = recall_at_fpr(np.full((2, 4), 5.0), np.arange(20.0)[None], held)
    assert row["estimate"] == 0
    assert "passed by 0 of 20 neutral texts" in row["ci_method"]
    assert "known to 0.05 only" in row["ci_method"]
