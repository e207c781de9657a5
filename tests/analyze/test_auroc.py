from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import ndtr, ndtri
from sklearn.metrics import roc_auc_score

from actlake.analyze.auroc import (
    auroc,
    auroc_columns,
    auroc_difference,
    auroc_interval,
    binormal_bound,
    boundary_interval,
    clopper_pearson,
    delong_covariance,
    paired_bound,
)
from actlake.schemas import InvalidInputError

# SCIENCE §2, two-sided 95 %: n per class, binormal bound, paired Clopper-Pearson bound.
BOUNDARY = [
    (10, 0.866, 0.692),
    (15, 0.929, 0.782),
    (30, 0.978, 0.884),
    (50, 0.991, 0.929),
    (100, 0.997, 0.964),
    (200, 0.9993, 0.982),
]


@st.composite
def scored_labels(draw, *, min_per_class=1):
    n_pos = draw(st.integers(min_per_class, 12))
    n_neg = draw(st.integers(min_per_class, 12))
    # A handful of values makes ties the rule; halves are exact.
    values = draw(hnp.arrays(np.int64, n_pos + n_neg, elements=st.integers(-4, 4)))
    return values / 2, np.repeat([1, 0], [n_pos, n_neg])


def gaussian(rng, n, *, auroc_):
    distance = math.sqrt(2) * ndtri(auroc_)
    return np.concatenate([rng.normal(distance, 1, n), rng.normal(0, 1, n)])


def ends(interval):
    return interval.low, interval.high


@given(scored_labels())
def test_auroc_equals_sklearn_with_ties(case):
    scores, labels = case
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(scored_labels(), st.randoms(use_true_random=False))
def test_auroc_does_not_depend_on_row_order(case, random):
    scores, labels = case
    order = list(range(len(labels)))
    random.shuffle(order)
    assert auroc(scores[order], labels[order]) == pytest.approx(auroc(scores, labels), abs=1e-12)


def test_columns_with_and_without_ties_each_equal_their_own_auroc():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(size=(41, 5)), rng.integers(0, 4, (41, 5))], axis=1)
    labels = rng.random(41) < 0.4
    expected = [roc_auc_score(labels, column) for column in scores.T]
    np.testing.assert_allclose(auroc_columns(scores, labels), expected, atol=1e-12)


def test_auroc_of_equal_variance_gaussians_is_phi_of_d_over_root_two():
    """O2."""
    rng = np.random.default_rng(1)
    n, distances = 20_000, np.array([0.0, 0.5, 1.0, 2.0])
    scores = rng.normal(size=(2 * n, 4))
    scores[:n] += distances
    found = auroc_columns(scores, np.repeat([1, 0], n))
    np.testing.assert_allclose(found, ndtr(distances / math.sqrt(2)), atol=0.008)


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        ([1.0, 2.0], [1, 1], "both classes, got 2 positive of 2"),
        ([1.0, np.nan], [1, 0], "NaN"),
        ([1.0, 2.0], [1, 0, 0], "2 labels"),
    ],
)
def test_auroc_refuses_what_it_cannot_rank(scores, labels, words):
    with pytest.raises(InvalidInputError, match=words):
        auroc(scores, labels)


@given(scored_labels(min_per_class=2), st.integers(0, 2**31))
@settings(max_examples=60)
def test_delong_covariance_equals_brute_force_placements(case, seed):
    scores, labels = case
    other = np.random.default_rng(seed).integers(-2, 3, scores.size)
    both = np.stack([scores, other], axis=1)
    areas, covariance = delong_covariance(both, labels)
    pos, neg = both[labels == 1], both[labels == 0]
    wins = (pos[:, None] > neg[None]) + 0.5 * (pos[:, None] == neg[None])
    by_pos, by_neg = wins.mean(axis=1), wins.mean(axis=0)
    expected = np.cov(by_pos.T) / len(pos) + np.cov(by_neg.T) / len(neg)
    np.testing.assert_allclose(covariance, expected, atol=1e-12)
    np.testing.assert_allclose(areas, wins.mean(axis=(0, 1)), atol=1e-12)


@pytest.mark.parametrize(("n", "binormal", "paired"), BOUNDARY)
def test_boundary_bounds_equal_the_published_table(n, binormal, paired):
    """O3."""
    assert binormal_bound(n, n) == pytest.approx(binormal, abs=6e-4 if n < 200 else 6e-5)
    assert paired_bound(n) == pytest.approx(paired, abs=6e-4)


def test_binormal_bound_is_where_complete_separation_has_two_and_a_half_percent():
    rng = np.random.default_rng(2)
    n, draws = 12, 40_000
    distance = math.sqrt(2) * ndtri(binormal_bound(n, n))
    pos = rng.normal(distance, 1, (draws, n)).min(axis=1)
    neg = rng.normal(0, 1, (draws, n)).max(axis=1)
    assert (pos > neg).mean() == pytest.approx(0.025, abs=0.0035)


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 20_000])
def test_binormal_bound_exists_for_any_size(n):
    assert 0 < binormal_bound(n, n) < 1
    assert binormal_bound(n, n + 1) > binormal_bound(n, n)


@pytest.mark.parametrize(("sign", "estimate"), [(1, 1.0), (-1, 0.0)])
def test_an_auroc_at_the_boundary_has_the_boundary_bound(sign, estimate):
    scores = sign * np.concatenate([np.arange(30) + 100, np.arange(30)])
    interval = auroc_interval(scores, np.repeat([1, 0], 30))
    expected = (0.978, 1.0) if estimate else (0.0, 0.022)
    assert ends(interval) == pytest.approx(expected, abs=6e-4)
    assert interval.boundary
    assert "Clopper-Pearson" in interval.method


def test_one_misordered_text_does_not_beat_the_bound_of_a_perfect_auroc():
    n = 30
    scores = np.concatenate([np.arange(n) + 100.0, np.arange(n)])
    scores[0] = n - 1.5  # below one negative: AUROC 899/900
    interval = auroc_interval(scores, np.repeat([1, 0], n))
    assert ends(interval)[0] <= binormal_bound(n, n)
    assert not interval.boundary


@pytest.mark.parametrize("truth", [0.6, 0.8, 0.95])
def test_delong_interval_covers_the_truth(truth):
    rng = np.random.default_rng(3)
    n, repeats = 40, 600
    labels = np.repeat([1, 0], n)
    inside = 0
    for _ in range(repeats):
        interval = auroc_interval(gaussian(rng, n, auroc_=truth), labels)
        inside += interval.low <= truth <= interval.high
    # Four standard errors of the coverage below .95; a wide interval may cover more.
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / repeats) <= inside / repeats <= 0.99


def test_paired_delong_covers_the_difference_of_correlated_scores():
    rng = np.random.default_rng(4)
    n, repeats = 50, 600
    labels = np.repeat([1, 0], n)
    truth = ndtr(1.2 / math.sqrt(2)) - ndtr(0.6 / math.sqrt(2))
    inside = narrower = 0
    for _ in range(repeats):
        shared = rng.normal(size=2 * n)
        a = 1.2 * labels + 0.8 * shared + 0.6 * rng.normal(size=2 * n)
        b = 0.6 * labels + 0.8 * shared + 0.6 * rng.normal(size=2 * n)
        difference = auroc_difference(a, b, labels)
        inside += difference.low <= truth <= difference.high
        alone = auroc_interval(a, labels)
        narrower += np.ptp(ends(difference)) < 2 * np.ptp(ends(alone))
    assert 0.915 <= inside / repeats <= 0.985
    assert narrower == repeats


def test_two_perfect_scores_have_a_difference_with_width():
    scores = np.concatenate([np.arange(20) + 100, np.arange(20)])
    labels = np.repeat([1, 0], 20)
    difference = auroc_difference(scores, scores * 2, labels)
    bound = binormal_bound(20, 20)
    assert difference.estimate == 0
    assert (difference.low, difference.high) == pytest.approx((bound - 1, 1 - bound))


def test_equal_scores_carry_a_reason_instead_of_an_interval():
    interval = auroc_interval(np.zeros(10), np.repeat([1, 0], 5))
    assert interval.low is None
    assert interval.reason == "all scores are equal"


@given(st.integers(1, 60), st.data())
def test_clopper_pearson_contains_the_share_and_equals_the_bound_at_the_end(n, data):
    k = data.draw(st.integers(0, n))
    interval = clopper_pearson(k, n)
    assert interval.low <= k / n <= interval.high
    assert interval.boundary == (k in (0, n))
    if k == n:
        assert interval.low == pytest.approx(paired_bound(n))


def test_boundary_interval_names_both_bounds():
    assert "0.884" in boundary_interval(1.0, 30, 30).method


@given(
    st.integers(0, 10_000),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([1e-30, 1.0, 1e20]),
    st.booleans(),
)
def test_packed_ranks_equal_midranks_for_any_sign_size_and_ties(seed, dtype, size, rounded):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 40))
    scores = rng.standard_normal((n, 5)) * size
    if rounded:
        scores = np.round(scores / size) * size
        scores[rng.random(scores.shape) < 0.2] *= -0.0
    scores = scores.astype(dtype)
    labels = rng.permutation(np.arange(n) % 2 == 0)
    found = auroc_columns(scores, labels)
    for column in range(5):
        assert found[column] == pytest.approx(
            roc_auc_score(labels, scores[:, column].astype(float))
        )


def test_scores_that_differ_in_their_last_bit_are_not_tied():
    one = np.float32(0.3)
    column = np.array([np.nextafter(one, np.float32(1)), one], dtype=np.float32)[:, None]
    assert auroc_columns(column, [1, 0])[0] == 1.0
    assert auroc_columns(column[::-1], [1, 0])[0] == 0.0
