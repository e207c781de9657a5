import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import binom, binomtest

from actlake.schemas import DoseRow, DoseSpec, DoseVerdict, InvalidInputError
from actlake.steer import analyse_doses, fit_curves
from actlake.steer.clusters import effective_size, wilson

GRID = (0.0, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 25.0, 30.0)
QUICK = {"n_bootstrap": 200}


def samples_of(outcome, *, alphas=GRID, n_prompts=20, n_samples=1, seed=0, **columns):
    """A table whose outcome is what ``outcome(alpha, prompt, rng)`` returns."""
    rng = np.random.default_rng(seed)
    records = [
        {"alpha_raw": alpha, "prompt": f"p{prompt}", "shift": outcome(alpha, prompt, rng)}
        | {name: value(alpha, prompt, rng) for name, value in columns.items()}
        for alpha in alphas
        for prompt in range(n_prompts)
        for _ in range(n_samples)
    ]
    return pd.DataFrame.from_records(records)


def found(result, metric, **where):
    rows = result.rows[result.rows.metric == metric]
    for name, value in {"subset": "all", **where}.items():
        rows = rows[rows[name] == value]
    return rows


def one(result, metric, **where):
    rows = found(result, metric, **where)
    assert len(rows) == 1, rows
    return rows.iloc[0]


def both_signs(alphas=GRID):
    return tuple(sorted({*alphas, *(-a for a in alphas)}))


def test_no_effect_scores_nothing_by_the_strict_rule_and_one_half_by_the_biased_one():
    table = samples_of(lambda a, p, rng: float(p), alphas=both_signs())
    result = analyse_doses(table, spec=DoseSpec(**QUICK))
    rates = found(result, "success_rate")
    assert (rates.estimate == 0).all()
    assert rates.biased_estimate.mean() == 0.5
    assert (rates[rates.alpha_raw < 0].biased_estimate == 1).all()
    assert (rates.boundary & (rates.ci_high > 0)).all()
    assert one(result, "anti_steerable_share").estimate == 0
    assert (result.verdicts.verdict == "no effect shown").all()
    assert found(result, "alpha50").estimate.isna().all()
    assert found(result, "minimum_effective_dose").estimate.isna().all()


@settings(max_examples=25)
@given(effect=st.floats(-5, 5), alpha=st.sampled_from([-3.0, 3.0]))
def test_a_success_needs_the_sign_of_its_strength(effect, alpha):
    table = pd.DataFrame(
        {"alpha_raw": [0.0, alpha] * 2, "prompt": ["a", "a", "b", "b"],
         "shift": [1.0, 1.0 + effect, -2.0, -2.0 + effect]}
    )  # fmt: skip
    result = analyse_doses(table, spec=DoseSpec(n_bootstrap=100))
    moved = np.array([(1.0 + effect) - 1.0, (-2.0 + effect) + 2.0])
    expected = np.mean(np.sign(moved) == np.sign(alpha))
    assert one(result, "success_rate", alpha_raw=alpha).estimate == expected


@given(k=st.integers(0, 40), n=st.integers(1, 40), level=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_that_of_scipy(k, n, level):
    k = min(k, n)
    expected = binomtest(k, n).proportion_ci(confidence_level=level, method="wilson")
    assert wilson(k / n, n, level=level) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_samples_that_repeat_each_other_count_once():
    prompt = np.repeat(np.arange(40), 10)
    copied = np.repeat(np.random.default_rng(0).integers(0, 2, 40), 10)
    assert effective_size(copied, prompt) == pytest.approx(40, rel=0.05)
    alone = np.random.default_rng(1).integers(0, 2, 400)
    assert effective_size(alone, np.arange(400)) == 400
    assert 200 < effective_size(alone, prompt) <= 400
    assert effective_size(np.ones(400), prompt) == 40


def test_counts_of_a_known_curve_give_its_parameters_back():
    alphas = np.linspace(0, 30, 31)
    p = 0.08 + (1 - 0.08 - 0.15) * expit(0.7 * (alphas - 12))
    trials = np.full(alphas.size, 1e6)
    curve = fit_curves(alphas, p * trials, trials)
    assert curve.alpha50[0] == pytest.approx(12, abs=0.01)
    assert curve.steepness[0] == pytest.approx(0.7, rel=0.01)
    assert curve.guess[0] == pytest.approx(0.08, abs=0.002)
    assert curve.lapse[0] == pytest.approx(0.15, abs=0.002)
    assert curve.predict(alphas)[0] == pytest.approx(p, abs=1e-3)


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.01, 1.0, 50.0]))
def test_a_curve_is_at_least_as_likely_as_a_flat_one_nearby_in_any_unit(seed, scale):
    rng = np.random.default_rng(seed)
    alphas = np.array(GRID)
    trials = rng.integers(5, 60, alphas.size).astype(float)
    p = 0.05 + 0.9 * expit(0.5 * (alphas - rng.uniform(3, 20)))
    successes = rng.binomial(trials.astype(int), p)
    curve = fit_curves(alphas * scale, successes, trials)
    share = successes.sum() / trials.sum()
    flat = binom.logpmf(successes, trials, share).sum()
    fitted = binom.logpmf(successes, trials, curve.predict(alphas * scale)[0]).sum()
    assert fitted > flat
    again = fit_curves(alphas, successes, trials)
    assert curve.alpha50[0] / scale == pytest.approx(again.alpha50[0], rel=1e-3, abs=1e-2)


def test_many_curves_at_once_are_each_alone():
    rng = np.random.default_rng(2)
    trials = np.full((6, len(GRID)), 30.0)
    successes = rng.binomial(30, expit(np.array(GRID) - 8), size=trials.shape)
    together = fit_curves(GRID, successes, trials)
    for i in range(6):
        alone = fit_curves(GRID, successes[i], trials[i])
        assert together.alpha50[i] == pytest.approx(alone.alpha50[0], abs=1e-4)


@pytest.mark.parametrize(
    ("alphas", "successes", "trials", "message"),
    [
        ([0, 1, 1], [0, 1, 1], [2, 2, 2], "three unlike"),
        ([0, 1, 2], [0, 1], [2, 2], "one per strength"),
        ([0, 1, 2], [0, 1, 3], [2, 2, 2], "no more successes"),
    ],
)
def test_counts_that_make_no_curve_are_refused(alphas, successes, trials, message):
    with pytest.raises(InvalidInputError, match=message):
        fit_curves(alphas, successes, trials)


def threshold_table(*, middle=8.0, steepness=0.8, n_prompts=60, seed=0, spread=0.5):
    """Success as a Bernoulli draw whose middle differs between prompts."""
    shifts = np.random.default_rng(seed + 1000).normal(0, spread, n_prompts)

    def outcome(alpha, prompt, rng):
        return float(rng.random() < expit(steepness * (alpha - middle - shifts[prompt])))

    return samples_of(outcome, n_prompts=n_prompts, seed=seed)


def test_the_middle_of_the_curve_is_found_with_an_interval():
    spec = DoseSpec(success="threshold", threshold=0.5, n_bootstrap=400)
    result = analyse_doses(threshold_table(), spec=spec, separation=2.0, mean_norm=40.0)
    row = one(result, "alpha50")
    assert row.estimate == pytest.approx(8, abs=1)
    assert row.ci_low < 8 < row.ci_high
    assert row.identified
    assert row.alpha_separation == pytest.approx(row.estimate / 2)
    assert row.alpha_norm == pytest.approx(row.estimate / 40)
    # The angle is interpolated between the strengths of the grid.
    assert row.alpha_angle == pytest.approx(np.degrees(np.arctan(row.estimate / 40)), rel=0.02)
    assert one(result, "minimum_effective_dose").estimate in {5.0, 7.0}


def test_the_knee_is_where_a_saturating_curve_bends():
    table = samples_of(lambda a, p, rng: 1.0 if a > 0 and p < 95 * (1 - np.exp(-a / 3)) else 0.0,
                       n_prompts=100)  # fmt: skip
    row = one(analyse_doses(table, spec=DoseSpec(**QUICK)), "knee")
    assert 5 <= row.estimate <= 10
    assert "description" in row.method


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_a_flat_curve_has_no_middle(rate):
    table = samples_of(lambda a, p, rng: float(rng.random() < rate), n_prompts=40, seed=3)
    result = analyse_doses(table, spec=DoseSpec(success="threshold", threshold=0.5, **QUICK))
    row = one(result, "alpha50")
    assert np.isnan(row.estimate)
    assert row.reason.startswith("not identified")
    assert not row.identified


def test_a_middle_beyond_the_grid_is_not_identified():
    table = threshold_table(middle=60, steepness=0.08)
    result = analyse_doses(table, spec=DoseSpec(success="threshold", threshold=0.5, **QUICK))
    row = one(result, "alpha50")
    assert "not identified" in row.reason
    assert row.ci_high > 30 or "does not rise" in row.reason


@pytest.mark.slow
def test_the_interval_of_the_middle_covers_it():
    hits, widths, n_runs = 0, [], 120
    for seed in range(n_runs):
        table = threshold_table(seed=seed, spread=0.0)
        spec = DoseSpec(success="threshold", threshold=0.5, n_bootstrap=200, seed=seed)
        row = one(analyse_doses(table, spec=spec), "alpha50")
        hits += bool(row.ci_low <= 8 <= row.ci_high)
        widths.append(row.ci_high - row.ci_low)
    # 0.95 less the simulation's own error: 3.3 standard deviations at 120 runs.
    assert hits / n_runs >= 0.885
    assert np.median(widths) < 3


def test_slopes_are_of_prompts_and_the_wrong_way_is_counted():
    def outcome(alpha, prompt, rng):
        return (-0.5 if prompt < 5 else 1.0) * alpha + prompt

    result = analyse_doses(samples_of(outcome, alphas=both_signs()), spec=DoseSpec(**QUICK))
    share = one(result, "anti_steerable_share")
    assert share.estimate == 0.25
    expected = binomtest(5, 20).proportion_ci(method="wilson")
    assert (share.ci_low, share.ci_high) == pytest.approx((expected.low, expected.high))
    slope = one(result, "slope_mean")
    assert slope.estimate == pytest.approx((5 * -0.5 + 15) / 20)
    assert slope.ci_low < slope.estimate < slope.ci_high
    assert one(result, "success_rate", alpha_raw=5.0).estimate == 0.75


def test_breakdown_is_where_coherence_leaves_the_baseline_for_good():
    # The baseline itself is incoherent in two of ten: that is no breakdown.
    shares = dict(zip(GRID, (8, 8, 4, 8, 9, 8, 8, 3, 2, 0, 0), strict=True))
    table = samples_of(
        lambda a, p, rng: a + 0.1 * p,
        n_prompts=10,
        coherent=lambda a, p, rng: p < shares[a],
    )
    result = analyse_doses(table, spec=DoseSpec(coherence="coherent", **QUICK))
    row = one(result, "breakdown")
    assert row.estimate == 15
    assert row.baseline_estimate == 0.8
    at = found(result, "coherence").set_index("alpha_raw")
    assert at.below_baseline.to_dict()[2.0]  # a dip, from which it recovers
    assert not at.below_baseline.to_dict()[3.0]
    rates = found(result, "success_rate", subset="coherent").set_index("alpha_raw")
    assert rates.loc[20.0].n_samples == 2
    assert rates.loc[25.0].reason == "no sample is left"
    (verdict,) = result.verdicts.itertuples()
    assert verdict.claimed_coherent is False


def test_equal_coherence_everywhere_is_no_breakdown():
    table = samples_of(
        lambda a, p, rng: a, alphas=both_signs(), coherent=lambda a, p, rng: p % 2 == 0
    )
    rows = found(analyse_doses(table, spec=DoseSpec(coherence="coherent", **QUICK)), "breakdown")
    assert list(rows.side) == ["positive", "negative"]
    assert rows.estimate.isna().all()
    assert rows.reason.str.contains("stays within").all()


def verdict_of(success_share, *, n_prompts=200, **changes):
    """The verdict where at each strength a given share of the prompts is moved."""

    def outcome(alpha, prompt, rng):
        moved = (prompt * 7 % n_prompts) < success_share(alpha) * n_prompts
        return 1.0 if alpha > 0 and moved else 0.0

    spec = DoseSpec(**{"n_bootstrap": 300, **changes})
    table = samples_of(outcome, n_prompts=n_prompts)
    (verdict,) = analyse_doses(table, spec=spec, separation=2.0, mean_norm=40.0).verdicts.to_dict(
        "records"
    )
    return DoseVerdict.model_validate(
        {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in verdict.items()}
    )


def test_twenty_is_not_needed_where_seven_does_as_well():
    verdict = verdict_of(lambda a: 0.9 if a >= 7 else 0.4)
    assert verdict.verdict == "not needed"
    assert (verdict.sufficient_raw, verdict.sufficient_separation) == (7, 3.5)
    assert verdict.sufficient_norm == pytest.approx(7 / 40)
    assert verdict.sufficient_angle == pytest.approx(np.degrees(np.arctan(7 / 40)))
    assert (verdict.claimed_raw, verdict.claimed_separation, verdict.claimed_norm) == (20, 10, 0.5)
    assert verdict.difference_low > -0.1


def test_twenty_is_needed_where_all_smaller_ones_do_less():
    assert verdict_of(lambda a: 0.9 if a >= 20 else 0.3).verdict == "needed"


def test_few_prompts_decide_nothing_although_they_all_agree():
    assert verdict_of(lambda a: 1.0, n_prompts=12).verdict == "undecided"
    assert verdict_of(lambda a: 1.0, n_prompts=120).verdict == "not needed"


def test_a_claim_that_was_not_tested_is_said_to_be_so():
    verdict = verdict_of(lambda a: 1.0, claimed=40)
    assert verdict.verdict == "not tested"
    assert "the claim is 40" in verdict.reason


def test_the_negative_side_is_judged_by_its_own_sign():
    table = samples_of(lambda a, p, rng: -a + 0.01 * p * a, alphas=both_signs(), n_prompts=60)
    result = analyse_doses(table, spec=DoseSpec(**QUICK))
    assert (found(result, "success_rate").estimate == 0).all()
    assert (result.verdicts.verdict == "no effect shown").all()
    right = samples_of(lambda a, p, rng: a + 0.001 * p, alphas=both_signs(), n_prompts=60)
    result = analyse_doses(right, spec=DoseSpec(**QUICK))
    assert (found(result, "success_rate").estimate == 1).all()
    assert result.verdicts.claimed_raw.tolist() == [20, -20]
    assert result.verdicts.sufficient_raw.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("baseline", "flags"), [(0.95, (True, False)), (0.05, (False, True)), (0.5, (False, False))]
)
def test_ceilings_and_floors_are_flagged_where_nothing_can_be_tested(baseline, flags):
    table = samples_of(
        lambda a, p, rng: 1.0 if a > 0 or p < baseline * 20 else 0.0, alphas=both_signs((0, 1, 2))
    )
    result = analyse_doses(table, spec=DoseSpec(bounds=(0, 1), claimed=2, **QUICK))
    rows = found(result, "success_rate").set_index("side")
    assert bool(rows.loc["positive"].untestable.all()) is flags[0]
    assert bool(rows.loc["negative"].untestable.all()) is flags[1]
    assert result.verdicts.untestable.tolist() == list(flags)


def test_groups_are_analysed_apart_and_seeds_pair_samples():
    table = samples_of(lambda a, p, rng: a + p, n_prompts=5)
    table = pd.concat([table.assign(direction="own"), table.assign(direction="random", shift=0.0)])
    result = analyse_doses(table, spec=DoseSpec(by=("direction",), **QUICK))
    assert found(result, "success_rate", group="own").estimate.eq(1).all()
    assert found(result, "success_rate", group="random").estimate.eq(0).all()
    # Two seeds with unlike baselines: without pairing one of them would seem to move.
    paired = pd.DataFrame(
        {"alpha_raw": [0.0, 0.0, 3.0, 3.0], "prompt": "a", "seed": [1, 2, 1, 2],
         "shift": [0.0, 1.0, 0.0, 1.0]}
    )  # fmt: skip
    strict = analyse_doses(paired, spec=DoseSpec(sample="seed", **QUICK))
    assert one(strict, "success_rate", alpha_raw=3.0).estimate == 0


def test_missing_outcomes_are_counted_and_not_read_as_zero():
    table = samples_of(lambda a, p, rng: a, n_prompts=10)
    table.loc[(table.alpha_raw == 5) & (table.prompt < "p3"), "shift"] = None
    row = one(analyse_doses(table, spec=DoseSpec(**QUICK)), "success_rate", alpha_raw=5.0)
    assert (row.n_samples, row.n_missing, row.estimate) == (7, 3, 1.0)


@pytest.mark.parametrize(
    ("change", "spec", "message"),
    [
        ({"alpha_raw": np.nan}, {}, "row 0: column 'alpha_raw' holds nan"),
        ({"alpha_raw": np.inf}, {}, "expected a finite strength"),
        ({"alpha_raw": 1.0}, {}, "no sample has strength 0"),
        ({"alpha_raw": 0.0}, {}, "strength 0 and at another"),
        ({"shift": "good"}, {}, "holds 'good', expected a number"),
        ({"coherent": 0.5}, {"coherence": "coherent"}, "holds 0.5, expected true or false"),
        ({}, {"outcome": "shfit"}, r"no column 'shfit' \(did you mean 'shift'"),
        ({}, {"by": ["direction"]}, "no column 'direction'"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(change, spec, message):
    table = samples_of(lambda a, p, rng: a, n_prompts=3).assign(**change)
    with pytest.raises(InvalidInputError, match=message):
        analyse_doses(table, spec=DoseSpec.parse(spec))


def test_units_must_be_sizes():
    table = samples_of(lambda a, p, rng: a, n_prompts=3)
    with pytest.raises(InvalidInputError, match="separation must be a number above 0"):
        analyse_doses(table, spec=DoseSpec(), separation=0.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"success": "threshold"}, "needs a threshold"),
        ({"threshold": 1.0}, "takes none"),
        ({"bounds": (2, 0)}, "not below"),
        ({"claimed": -20}, "greater than 0"),
    ],
)
def test_specs_that_contradict_themselves_are_refused(values, message):
    with pytest.raises(InvalidInputError, match=message):
        DoseSpec.parse(values)


def test_every_row_is_a_record():
    table = threshold_table(n_prompts=12)
    table["coherent"] = 1
    spec = DoseSpec(success="threshold", threshold=0.5, coherence="coherent", **QUICK)
    result = analyse_doses(table, spec=spec)
    assert list(result.rows.columns) == list(DoseRow.model_fields)
    missing = result.rows[result.rows.estimate.isna()]
    assert missing.reason.notna().all()


def test_an_odds_shift_of_one_separation_puts_the_middle_there():
    # SCIENCE §6: with logit P = (alpha - 1)/0.2 in class separations alpha50 is one separation.
    alphas = np.array([0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0]) * 2.5
    p = expit((alphas / 2.5 - 1) / 0.2)
    curve = fit_curves(alphas, 500 * p, np.full(8, 500.0))
    assert curve.alpha50[0] / 2.5 == pytest.approx(1, abs=0.02)
    assert logit(curve.predict([2.5])[0, 0]) == pytest.approx(0, abs=0.1)


def test_doses_need_no_torch():
    code = (
        "import actlake.steer.doses, actlake.steer.power, sys; "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
