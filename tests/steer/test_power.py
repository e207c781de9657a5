import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from actlake.schemas import InvalidInputError
from actlake.steer import margin_of, power_of, samples_for_difference, samples_for_margin
from actlake.steer.power import design_effect


def test_ten_points_need_about_96_samples():
    assert samples_for_margin(0.1) in {96, 97}
    assert margin_of(96) == pytest.approx(0.1, abs=2e-4)
    assert samples_for_margin(0.1, inflation=design_effect(5, 0.25)) == 193  # twice 96.04


@given(margin=st.floats(0.01, 0.5), share=st.floats(0.05, 0.95))
def test_the_samples_reach_the_margin_and_one_less_does_not(margin, share):
    n = samples_for_margin(margin, share=share)
    assert margin_of(n, share=share) <= margin * (1 + 1e-6)
    if n > 1:
        assert margin_of(n - 1, share=share) > margin * (1 - 1e-6)


def test_power_is_the_share_of_simulated_studies_that_see_it():
    n, first, second = 80, 0.4, 0.6
    rng = np.random.default_rng(0)
    a, b = (rng.binomial(n, p, 20_000) / n for p in (first, second))
    z = (2 * np.arcsin(np.sqrt(b)) - 2 * np.arcsin(np.sqrt(a))) * np.sqrt(n / 2)
    seen = (np.abs(z) > norm.ppf(0.975)).mean()
    assert power_of(first, second, n_samples=n) == pytest.approx(seen, abs=0.015)


@given(a=st.floats(0.05, 0.9), gap=st.floats(0.05, 0.09), m=st.integers(1, 10))
def test_the_samples_reach_the_power(a, gap, m):
    n = samples_for_difference(a, a + gap, power=0.8, n_comparisons=m)
    reached = power_of(a, a + gap, n_samples=n, n_comparisons=m)
    assert 0.8 <= reached < 0.83


def test_what_has_no_answer_is_refused():
    with pytest.raises(InvalidInputError, match="no number of samples"):
        samples_for_difference(0.5, 0.5)
    with pytest.raises(InvalidInputError, match="margin must lie between 0 and 1"):
        samples_for_margin(10)
    with pytest.raises(InvalidInputError, match="one sample or more"):
        margin_of(0)
    with pytest.raises(InvalidInputError, match="correlation 2"):
        design_effect(3, 2)
