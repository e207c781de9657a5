import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.steer.clusters import wilson
from actlake.steer.resampling import (
    draw_weights,
    interval_of_mean,
    interval_of_ratio,
    p_of_null,
)

pytestmark = pytest.mark.torch  # the room imports torch


@given(n=st.integers(1, 30), seed=st.integers(0, 99))
def test_every_draw_shares_out_all_pairs(n, seed):
    weights = draw_weights(n, n_draws=20, seed=seed)
    assert weights.shape == (20, n)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert np.array_equal(weights, draw_weights(n, n_draws=20, seed=seed))


def test_intervals_cover_what_they_should():
    rng = np.random.default_rng(0)
    hits = ratios = 0
    for draw in range(300):
        below = rng.normal(2, 1, 40)
        above = 0.3 * below + rng.normal(0, 0.5, 40)
        weights = draw_weights(40, n_draws=400, seed=draw)
        low, high = interval_of_mean(below, weights)
        hits += low <= 2 <= high
        low, high = interval_of_ratio(above, below, weights)
        ratios += low <= 0.3 <= high
    assert 270 <= hits <= 297
    assert 270 <= ratios <= 297


def test_a_constant_ratio_has_an_interval_without_width_and_no_denominator_has_no_bound():
    below = np.array([1.0, 2.0, 5.0])
    weights = draw_weights(3, n_draws=200, seed=0)
    assert interval_of_ratio(2 * below, below, weights) == pytest.approx((2, 2))
    assert not np.isfinite(interval_of_ratio(below, np.zeros(3), weights)).any()


def test_p_counts_the_draws_at_least_as_far_from_zero():
    null = np.array([-3.0, 1.0, 2.0])
    assert p_of_null(2.0, null) == 3 / 4
    assert p_of_null(-4.0, null) == 1 / 4
    assert wilson(1.0, 10, level=0.95)[1] == pytest.approx(1)
    assert wilson(1.0, 10, level=0.95)[0] == pytest.approx(0.722, abs=1e-3)
