import numpy as np
import pandas as pd
import pytest

from actlake.schemas import InvalidInputError, NegativeSpec, ScenarioSpec
from actlake.steer import contrast_negative, contrast_scenarios

QUICK = {"n_bootstrap": 300}
ALPHAS = (-10.0, -5.0, 0.0, 5.0)


def negative_table(*, n=100, focus=0.0, hostile=0.0, broken=0.0, gloom=0.0, seed=0):
    """Scored samples in which -10 changes a share of the prompts by design."""
    rng = np.random.default_rng(seed)
    records = []
    for prompt in range(n):
        base = int(rng.integers(1, 3))
        for alpha in ALPHAS:
            at = alpha == -10.0
            records.append(
                {
                    "alpha_raw": alpha, "prompt": f"p{prompt}",
                    "judge_score": base - (at and rng.random() < focus),
                    "sentiment": rng.normal(0.2, 0.1) - gloom * at,
                    "hostility_count": int(at and rng.random() < hostile) * 3,
                    "coherent": not (at and rng.random() < broken),
                }
            )  # fmt: skip
    return pd.DataFrame(records)


def negative_verdict(alpha=-10.0, subset="all", spec=None, **changes):
    found = contrast_negative(negative_table(**changes), spec=NegativeSpec(**QUICK, **(spec or {})))
    rows = found.verdicts[(found.verdicts.alpha_raw == alpha) & (found.verdicts.subset == subset)]
    return rows.iloc[0], found.rows


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"focus": 0.6}, "raises task focus without cruelty"),
        ({"focus": 0.6, "hostile": 0.4}, "raises task focus with cruelty"),
        ({"hostile": 0.4}, "no rise shown"),
        ({}, "no rise shown"),
        ({"focus": 0.6, "broken": 0.5}, "incoherent"),
        ({"focus": 0.9, "n": 20}, "undecided"),  # none of 20 is hostile: up to 3 in 20 may be
    ],
)
def test_the_verdict_is_what_was_planted(changes, verdict):
    found, _ = negative_verdict(**changes)
    assert found.verdict == verdict
    untouched, _ = negative_verdict(alpha=-5.0, **changes)
    assert untouched.verdict == "no rise shown"


def test_every_shift_has_its_baseline_and_its_interval():
    verdict, rows = negative_verdict(focus=0.5, hostile=0.3, gloom=0.4)
    at = rows[(rows.alpha_raw == -10) & (rows.subset == "all")].set_index("metric")
    assert at.loc["task_focus_shift"].estimate == pytest.approx(0.5, abs=0.15)
    assert at.loc["sentiment_shift"].estimate == pytest.approx(-0.4, abs=0.05)
    assert at.loc["sentiment_shift"].baseline_estimate == pytest.approx(0.2, abs=0.03)
    assert at.loc["hostile_share_shift"].estimate == pytest.approx(0.3, abs=0.15)
    assert at.loc["hostile_share_shift"].baseline_estimate == 0
    assert (at.ci_low <= at.estimate).all()
    assert (at.estimate <= at.ci_high).all()
    assert verdict.sentiment_falls
    # No hostile text at -5, which is not the same as knowing that there are none.
    quiet = rows[(rows.alpha_raw == -5) & (rows.metric == "hostile_share_shift")].iloc[0]
    assert (quiet.estimate, quiet.ci_high) == (0, pytest.approx(3 / 100))


def test_coherent_texts_are_judged_apart():
    table = negative_table(focus=0.6)
    table.loc[(table.alpha_raw == -10) & (table.prompt < "p5"), "coherent"] = False
    table.loc[~table.coherent.astype(bool), "hostility_count"] = 9
    found = contrast_negative(table, spec=NegativeSpec(**QUICK)).verdicts
    at = found[found.alpha_raw == -10].set_index("subset").verdict
    assert at["all"] == "incoherent"
    assert at["coherent"] == "raises task focus without cruelty" or at["coherent"] == "undecided"


def test_a_task_column_that_rises_is_read_the_other_way():
    table = negative_table(focus=0.6)
    flipped = table.assign(judge_score=2 - table.judge_score)
    one = contrast_negative(table, spec=NegativeSpec(**QUICK)).rows
    two = contrast_negative(flipped, spec=NegativeSpec(task_rises=True, **QUICK)).rows
    pick = one.metric == "task_focus_shift"
    assert one[pick].estimate.to_numpy() == pytest.approx(two[pick].estimate.to_numpy())


def test_a_baseline_that_cannot_be_more_focused_is_not_judged():
    table = negative_table().assign(judge_score=0.0)
    found = contrast_negative(table, spec=NegativeSpec(bounds=(0, 2), **QUICK))
    assert set(found.verdicts.verdict) == {"untestable"}
    rows = found.rows[found.rows.metric == "task_focus_shift"]
    assert rows.ceiling.all()
    assert rows.untestable.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha_raw": 1.0}, "no sample has strength 0"),
        ({"judge_score": "good"}, "holds 'good', expected a number"),
        ({"coherent": 0.5}, "must hold true or false"),
    ],
)
def test_tables_without_an_answer_are_refused(change, message):
    with pytest.raises(InvalidInputError, match=message):
        contrast_negative(negative_table(n=5).assign(**change), spec=NegativeSpec(**QUICK))
    positive = negative_table(n=5)
    with pytest.raises(InvalidInputError, match="no negative strength"):
        contrast_negative(positive[positive.alpha_raw >= 0], spec=NegativeSpec(**QUICK))


def scenario_table(*, free=0.1, conflict=0.1, noise=0.3, n=40, base=(1.0, 1.0), seed=2):
    """Outcomes whose slope against strength is given by the type of scenario."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "alpha_raw": alpha, "prompt": f"{kind}-{prompt}", "category": kind,
            "judge_score": start + slope * alpha + rng.normal(0, noise),
        }
        for kind, slope, start in (
            ("task_free", free, base[0]), ("medical_triage", conflict, base[1]),
            ("neutral", 9.0, 0.0),
        )
        for prompt in range(n)
        for alpha in (-4.0, -2.0, 0.0, 2.0, 4.0)
    )  # fmt: skip


def scenarios_of(**changes):
    return contrast_scenarios(scenario_table(**changes), spec=ScenarioSpec(**QUICK))


@pytest.mark.parametrize(
    ("free", "conflict", "verdict"),
    [
        (0.1, 0.1, "steers without conflict too"),
        (0.05, 0.15, "weaker without conflict"),
        (0.0, 0.15, "fails without conflict"),
        (0.0, 0.0, "no effect shown"),
    ],
)
def test_what_task_free_scenarios_do_is_what_was_planted(free, conflict, verdict):
    found = scenarios_of(free=free, conflict=conflict)
    assert found.verdicts.verdict.tolist() == [verdict] * 2
    assert found.verdicts.direction.tolist() == ["positive", "negative"]
    rows = found.rows.set_index(["metric", "kind"])
    inter = rows.loc[("interaction_positive", "interaction")]
    assert inter.ci_low < free - conflict < inter.ci_high
    assert rows.loc[("slope_positive", "free")].estimate == pytest.approx(free, abs=0.05)


def test_two_intervals_of_which_one_holds_zero_are_no_difference():
    found = scenarios_of(free=0.02, conflict=0.06, noise=0.5, n=20, seed=5)
    rows = found.rows.set_index(["metric", "kind"])
    for verdict in found.verdicts.itertuples():
        ends = rows.loc[(f"interaction_{verdict.direction}", "interaction")]
        if verdict.verdict == "fails without conflict":
            assert ends.ci_high < 0
        if ends.ci_low < 0 < ends.ci_high:
            assert verdict.verdict in {
                "undecided", "no effect shown", "steers without conflict too"
            }  # fmt: skip


@pytest.mark.slow
def test_the_interaction_is_covered_by_its_interval():
    hits = 0
    for seed in range(100):
        rows = contrast_scenarios(
            scenario_table(free=0.05, conflict=0.1, seed=seed),
            spec=ScenarioSpec(n_bootstrap=300, seed=seed),
        ).rows.set_index("metric")
        row = rows.loc["interaction_positive"]
        hits += bool(row.ci_low <= -0.05 <= row.ci_high)
    assert 0.89 <= hits / 100 <= 1.0


def test_a_ceiling_is_flagged_and_not_judged():
    found = scenarios_of(free=0.0, conflict=0.1, noise=0.05, base=(1.95, 1.0))
    by = found.verdicts.set_index("direction").verdict
    assert by["positive"] == "untestable"
    assert by["negative"] == "fails without conflict"
    rows = found.rows[(found.rows.kind == "free") & (found.rows.metric == "effect_mean")]
    assert rows.ceiling.all()
    assert rows.set_index("alpha_raw").untestable.to_dict()[2.0]
    assert not rows.set_index("alpha_raw").untestable.to_dict()[-2.0]


@pytest.mark.parametrize(
    ("category", "message"),
    [("task_free", "needs task-free rows"), ("ambiguous", "it has .'ambiguous'.")],
)
def test_one_type_alone_is_no_contrast(category, message):
    with pytest.raises(InvalidInputError, match=message):
        contrast_scenarios(
            scenario_table(n=3).assign(category=category), spec=ScenarioSpec(**QUICK)
        )
