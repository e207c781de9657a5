from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from sklearn.metrics import roc_auc_score

from actlake.analyze.bootstrap import (
    bootstrap_accuracy,
    bootstrap_auroc,
    bootstrap_d_prime,
    draw_pair_weights,
    percentile_interval,
    within_fold_auroc,
)
from actlake.analyze.probes import d_prime


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 99))
def test_every_draw_keeps_the_number_of_pairs_of_each_scenario(groups, seed):
    scenario = np.array([f"s{g}" for g in groups])
    weights = draw_pair_weights(scenario, n_draws=7, seed=seed)
    for name in set(scenario):
        members = scenario == name
        assert (weights[:, members].sum(axis=1) == members.sum()).all()


def resampled(scores, weights):
    picks = np.repeat(np.arange(scores.shape[1]), weights.astype(int))
    return scores[:, picks], picks


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_weighted_statistics_equal_those_of_the_resampled_texts(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, (2, 14)) / 2 + np.array([[0.5], [0.0]])
    fold = np.repeat([0, 1, 2], [4, 4, 6])
    weights = draw_pair_weights(np.array([f"s{f}" for f in fold]), n_draws=5, seed=seed)
    pooled = bootstrap_auroc(scores, weights)
    within = bootstrap_auroc(scores, weights, fold=fold)
    spread = bootstrap_d_prime(scores, weights)
    accuracy = bootstrap_accuracy(scores, weights)
    for b in range(5):
        sample, picks = resampled(scores, weights[b])
        labels = np.repeat([1, 0], 14)
        assert pooled[b] == pytest.approx(roc_auc_score(labels, sample.ravel()), abs=1e-6)
        assert within[b] == pytest.approx(within_fold_auroc(sample, fold[picks]), abs=1e-6)
        expected = d_prime(*sample)
        assert expected is None or spread[b] == pytest.approx(expected, rel=1e-4)
        right = ((sample[0] > 0).mean() + (sample[1] < 0).mean()) / 2
        assert accuracy[b] == pytest.approx(right, abs=1e-6)


def test_auroc_inside_folds_ignores_offsets_between_folds():
    rng = np.random.default_rng(0)
    fold = np.repeat(np.arange(6), 10)
    scores = rng.standard_normal((2, 60)) + np.array([[1.5], [0.0]])
    shifted = scores + 50 * rng.standard_normal(6)[fold]
    assert within_fold_auroc(shifted, fold) == pytest.approx(within_fold_auroc(scores, fold))
    labels = np.repeat([1, 0], 60)
    pooled = roc_auc_score(labels, shifted.ravel())
    assert pooled < within_fold_auroc(shifted, fold) - 0.1


def test_bootstrap_interval_covers_the_auroc_of_correlated_pairs():
    rng = np.random.default_rng(1)
    n, repeats, truth = 60, 300, ndtr(1.0 / np.sqrt(2))
    scenario = np.repeat([f"s{k}" for k in range(6)], 10)
    inside = 0
    for k in range(repeats):
        shared = rng.standard_normal(n)
        scores = 0.7 * shared + np.sqrt(0.51) * rng.standard_normal((2, n))
        scores[0] += 1.0
        weights = draw_pair_weights(scenario, n_draws=300, seed=k)
        interval = percentile_interval(bootstrap_auroc(scores, weights))
        inside += interval.low <= truth <= interval.high
    assert 0.89 <= inside / repeats <= 0.99


def test_no_draws_give_no_interval_but_a_reason():
    interval = percentile_interval(np.array([]))
    assert interval.low is None
    assert interval.reason == "too few bootstrap draws"
