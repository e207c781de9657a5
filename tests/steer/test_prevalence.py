import krippendorff
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.schemas import InvalidInputError
from actlake.steer import correct_prevalence, rater_agreement


def corrected(called, n, *, se=(45, 50), fp=(5, 50)):
    return correct_prevalence(
        called, n, true_called=se[0], n_positive=se[1], false_called=fp[0], n_negative=fp[1]
    )


@given(true=st.integers(0, 100))
def test_expected_counts_give_the_true_share_back(true):
    share = true / 100
    called = round(1000 * (share * 0.9 + (1 - share) * 0.1))
    found = corrected(called, 1000)
    assert found.estimate == pytest.approx(share, abs=1e-9)
    assert found.ci_low <= found.estimate <= found.ci_high
    assert found.observed == pytest.approx(0.1 + 0.8 * share)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
@pytest.mark.parametrize(("se", "sp"), [(0.9, 0.95), (0.75, 0.85)])
def test_the_interval_covers_the_true_share(share, se, sp):
    # O12: the calibration set is a sample as well.
    rng = np.random.default_rng(int(1000 * (share + se)))
    hits, n_runs = 0, 2000
    called = rng.binomial(200, share * se + (1 - share) * (1 - sp), n_runs)
    true_called, false_called = rng.binomial(60, se, n_runs), rng.binomial(80, 1 - sp, n_runs)
    naive = 0
    for k, tp, fp in zip(called, true_called, false_called, strict=True):
        found = corrected(int(k), 200, se=(int(tp), 60), fp=(int(fp), 80))
        hits += found.ci_low <= share <= found.ci_high
        half = 1.96 * np.sqrt(k / 200 * (1 - k / 200) / 200)
        naive += abs(k / 200 - share) <= half
    assert hits / n_runs >= 0.935
    assert naive < hits or share == 0.3  # without correction the share is missed


def test_shares_beyond_the_ends_are_cut_off_and_flagged():
    found = corrected(8, 100)
    assert (found.estimate, found.boundary) == (0, True)
    assert found.ci_low == 0 < found.ci_high
    assert found.reason is None
    assert "unlike these texts" in corrected(0, 100).reason
    assert corrected(100, 100).estimate == 1
    assert not corrected(50, 100).boundary


def test_a_judge_that_guesses_tells_nothing():
    found = corrected(30, 100, se=(25, 50), fp=(25, 50))
    assert found.estimate is None
    assert "tells nothing" in found.reason


@pytest.mark.parametrize("bad", [{"called": -1, "n": 5}, {"called": 6, "n": 5}])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(InvalidInputError, match="expected counts"):
        corrected(bad["called"], bad["n"])


def test_agreement_is_that_of_the_library_and_of_the_published_example():
    # Krippendorff 2011, section C: four observers, twelve units.
    nan = np.nan
    example = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    ]
    found = rater_agreement(example)
    assert found.estimate == pytest.approx(0.815, abs=5e-4)
    expected = krippendorff.alpha(example, level_of_measurement="ordinal")
    assert found.estimate == pytest.approx(expected)
    assert found.ci_low < found.estimate < found.ci_high
    assert (found.n_texts, found.n_raters) == (11, 4)


def test_raters_who_agree_and_raters_who_guess():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, 200)
    assert rater_agreement([scores, scores], n_bootstrap=50).estimate == 1
    guess = rater_agreement([scores, rng.integers(0, 3, 200)], n_bootstrap=200)
    assert guess.ci_low < 0 < guess.ci_high


def test_what_has_no_agreement_says_why():
    assert "equal" in rater_agreement(np.ones((2, 5))).reason
    assert "no two" in rater_agreement([[1, np.nan], [np.nan, 2]]).reason
    with pytest.raises(InvalidInputError, match="two raters"):
        rater_agreement([[1, 2, 3]])
