from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from actlake.analyze.nulls import (
    covariance_matched_scores,
    drawn_aurocs,
    isotropic_aurocs,
    isotropic_directions,
    isotropic_sd,
    max_over_layers,
    null_band,
    null_p_value,
    separation_sd,
)
from actlake.schemas import InvalidInputError


@pytest.mark.parametrize("length", [0.0, 4.0, 10.0, 30.0])
def test_sd_of_random_directions_follows_the_formula(length):
    """O1: from no signal to a signal that lets many random directions pass .95."""
    rng = np.random.default_rng(0)
    n, hidden, draws = 60, 400, 3000
    sds = []
    for _ in range(4):
        x = rng.standard_normal((2, n, hidden))
        x[0] += length / np.sqrt(hidden)
        directions = isotropic_directions(draws, hidden, seed=int(rng.integers(1 << 30)))
        sds.append(isotropic_aurocs(x, directions, members=[np.arange(n)])[0].std())
    expected = isotropic_sd(length**2, hidden, n_positive=n, n_negative=n)
    assert np.mean(sds) == pytest.approx(expected, rel=0.07)


def test_sd_estimated_from_activations_takes_the_noise_of_the_means_off():
    rng = np.random.default_rng(1)
    n, hidden = 50, 300
    found: list[float | None] = []
    for _ in range(40):
        x = rng.standard_normal((2, n, hidden))
        x[0, :, :10] += 1.0
        found.append(separation_sd(x))
    expected = isotropic_sd(10.0, hidden, n_positive=n, n_negative=n)
    assert np.mean([sd for sd in found if sd is not None]) == pytest.approx(expected, rel=0.02)


def test_sd_needs_within_class_variance():
    assert separation_sd(np.ones((2, 5, 3))) is None
    with pytest.raises(InvalidInputError, match="variance must be positive"):
        isotropic_sd(1.0, 0.0, n_positive=5, n_negative=5)


def test_aurocs_of_directions_equal_sklearn_on_each_set_of_pairs():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 20, 7))
    directions = isotropic_directions(6, 7, seed=3)
    members = [np.arange(20), np.array([1, 4, 5, 9])]
    found = isotropic_aurocs(x, directions, members=members)
    for k, pairs in enumerate(members):
        labels = np.repeat([1, 0], pairs.size)
        for b in range(6):
            scores = (x[:, pairs] @ directions[:, b]).ravel()
            assert found[k, b] == pytest.approx(roc_auc_score(labels, scores))


def test_directions_are_the_same_for_the_same_seed_and_width():
    one = isotropic_directions(5, 9, seed=1)
    np.testing.assert_array_equal(one, isotropic_directions(5, 9, seed=1))
    assert not np.array_equal(one, isotropic_directions(5, 9, seed=2))


def test_p_value_counts_both_signs_and_never_reaches_zero():
    draws = np.array([0.1, 0.5, 0.6, 0.85])
    assert null_p_value(0.95, draws) == 1 / 5
    assert null_p_value(0.9, draws) == 2 / 5  # .1 read the other way reaches .9
    assert null_p_value(0.5, draws) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0, 1))
def test_p_value_lies_between_one_over_b_plus_one_and_one(draws, observed):
    p = null_p_value(observed, np.array(draws))
    assert 1 / (1 + len(draws)) <= p <= 1


def test_max_over_layers_is_taken_draw_by_draw():
    draws = [np.array([0.5, 0.9, 0.2]), np.array([0.6, 0.4, 0.7])]
    np.testing.assert_allclose(max_over_layers(draws), [0.6, 0.9, 0.8])


def test_max_over_layers_makes_the_best_of_noise_layers_unremarkable():
    """The best of 8 noise layers looks significant alone far more often than corrected."""
    rng = np.random.default_rng(4)
    alone = corrected = 0
    repeats, n, hidden = 60, 20, 16
    directions = isotropic_directions(199, hidden, seed=0)
    for _ in range(repeats):
        nulls: list[np.ndarray] = []
        observed: list[float] = []
        for _layer in range(8):
            x = rng.standard_normal((2, n, hidden))
            nulls.append(isotropic_aurocs(x, directions, members=[np.arange(n)])[0])
            readout = rng.standard_normal((hidden, 1))
            area = isotropic_aurocs(x, readout, members=[np.arange(n)])[0, 0]
            observed.append(max(area, 1 - area))
        best = int(np.argmax(observed))
        alone += null_p_value(observed[best], nulls[best]) <= 0.05
        corrected += null_p_value(observed[best], max_over_layers(nulls)) <= 0.05
    assert corrected / repeats <= 0.12
    assert alone / repeats >= 0.2


def test_band_reports_shares_above_95_one_sided_and_folded():
    band = null_band(np.array([0.01, 0.5, 0.96, 0.97]))
    assert band["share_above_95"] == 0.5
    assert band["share_above_95_folded"] == 0.75
    assert band["max"] == 0.97
    assert band["max_folded"] == 0.99
    assert band["n_draws"] == 4


def readout_p_values(kind, *, repeats, n_draws=99, n_layers=5):
    """p of the best layer of a readout that is one of the kind its null is made of."""
    rng = np.random.default_rng(11)
    n, hidden = 12, 20
    alone, corrected = [], []
    for repeat in range(repeats):
        shared = rng.standard_normal((2, n, hidden))  # layers of one model are not independent
        observed: list[float] = []
        nulls: list[np.ndarray] = []
        for _ in range(n_layers):
            x = shared + rng.standard_normal((2, n, hidden))
            if kind == "isotropic":
                directions = isotropic_directions(n_draws + 1, hidden, seed=repeat)
                areas = isotropic_aurocs(x, directions, members=[np.arange(n)])[0]
            else:
                scores = covariance_matched_scores(x, n_draws=n_draws + 1, seed=repeat)
                areas = drawn_aurocs(scores, members=[np.arange(n)])[0]
            observed.append(max(areas[0], 1 - areas[0]))
            nulls.append(areas[1:])
        best = int(np.argmax(observed))
        alone.append(null_p_value(observed[best], nulls[best]))
        corrected.append(null_p_value(observed[best], max_over_layers(nulls)))
    return np.array(alone), np.array(corrected)


@pytest.mark.parametrize("kind", ["isotropic", "covariance_matched"])
def test_p_against_random_readouts_is_uniform_for_a_random_readout(kind):
    """O5 for the nulls that ask for more than an arbitrary readout: with the maximum, not without.

    AUROCs of few texts tie, and ties count against the probe, so p is spread inside its step.
    """
    alone, corrected = readout_p_values(kind, repeats=250)
    rng = np.random.default_rng(0)
    spread = corrected - rng.random(corrected.size) / 100
    assert kstest(spread, "uniform").pvalue > 0.01
    assert (corrected <= 0.05).mean() <= 0.09
    assert (alone <= 0.05).mean() >= 0.12
