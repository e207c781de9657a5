"""Each hypothesis of the plan: supported and refuted by planted tables, else one cannot tell."""

from __future__ import annotations

import pandas as pd
import pytest

from actlake.analyze.hypotheses import HYPOTHESES, StudyTables, judge_hypotheses

RUN = "phi-3"
NEAR_1 = {"estimate": 1.0, "ci_low": 0.98, "ci_high": 1.0}
COLUMNS = {"run": RUN, "subset": "all", "pool": "mean_response", "method": "diff_means"}


def frame(*rows, **common):
    return pd.DataFrame([{**COLUMNS, **common, **row} for row in rows])


def nested(layer=12, bow=0.7, **row):
    return frame({"metric": "auroc_nested", "layer": layer, "bow_estimate": bow, **NEAR_1, **row})


def judged(name, *, runs=(RUN,), **tables):
    hypothesis = [h for h in HYPOTHESES if h.id == name]
    return judge_hypotheses(StudyTables(**tables), runs=runs, hypotheses=hypothesis)


def answer(name, **tables):
    (found,) = judged(name, **tables)
    return found.answer


def test_without_tables_one_cannot_tell_anything():
    found = judge_hypotheses(StudyTables(), runs=[RUN])
    assert [v.hypothesis.id for v in found] == [f"H{i}" for i in range(1, 10)]
    assert {v.answer for v in found} == {"cannot tell"}
    assert all(v.because for v in found)


def test_a_perfect_auroc_is_perfect_on_every_model_and_never_without_the_bag_of_words():
    both = pd.concat([nested(), nested().assign(run="llama")])
    (found,) = judged("H1", runs=(RUN, "llama"), probes=both)
    assert (found.run, found.answer) == (None, "supported")
    assert "bag of words alone reaches 0.7" in found.because
    worse = pd.concat([nested(), nested(estimate=0.9, ci_low=0.8, ci_high=0.95).assign(run="b")])
    assert answer("H1", runs=(RUN, "b"), probes=worse) == "not supported"
    assert answer("H1", probes=nested(estimate=0.99, ci_low=0.9, ci_high=1.0)) == "cannot tell"
    assert answer("H1", runs=(RUN, "absent"), probes=nested()) == "cannot tell"


def matched(patch, steer, gap, *, p=0.04, layer=12):
    row = {"layer": layer, "p_value": p}
    ends = [
        {"what": what, "estimate": (low + high) / 2, "ci_low": low, "ci_high": high, **row}
        for what, (low, high) in (("patch", patch), ("steer", steer), ("steer - patch", gap))
    ]
    return frame(*ends, metric="effect")


def test_patching_fails_only_where_steering_works_at_the_same_size():
    fails = matched((-0.1, 0.1), (0.5, 0.9), (0.4, 1.0))
    assert answer("H2", probes=nested(), matched=fails) == "supported"
    works = matched((0.2, 0.4), (0.5, 0.9), (0.1, 0.7))
    assert answer("H2", probes=nested(), matched=works) == "not supported"
    random_does_as_well = matched((-0.1, 0.1), (0.5, 0.9), (0.4, 1.0), p=0.4)
    assert answer("H2", probes=nested(), matched=random_does_as_well) == "cannot tell"
    neither = matched((-0.1, 0.1), (-0.2, 0.9), (-0.4, 1.0))
    assert answer("H2", probes=nested(), matched=neither) == "cannot tell"


def test_no_verdict_rests_on_the_best_of_many_layers():
    lucky = matched((0.2, 0.4), (0.5, 0.9), (0.1, 0.7), layer=3)
    probed = matched((-0.1, 0.1), (0.5, 0.9), (0.4, 1.0), layer=12)
    tables = {"probes": nested(layer=12), "matched": pd.concat([lucky, probed])}
    (found,) = judged("H2", **tables)
    assert found.answer == "supported"
    assert "layer 12" in found.because


def ablated(low, high, **row):
    values = {
        "arm": "keywords_removed", "metric": "auroc", "layer": 12, "way": "reextracted",
        "readout": "refit", "lexicon": None, "delta": -0.3, "contrast": (low + high) / 2,
        "contrast_ci_low": low, "contrast_ci_high": high, "bow_estimate": 0.55,
    }  # fmt: skip
    return frame(values | row)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.4, -0.2, "supported"),
        (-0.02, 0.03, "not supported"),
        (0.0, 0.2, "not supported"),
        (-0.4, 0.2, "cannot tell"),
    ],
)
def test_a_drop_counts_beyond_that_of_random_words(low, high, expected):
    assert answer("H3", probes=nested(), ablation=ablated(low, high)) == expected


def test_texts_that_went_through_the_model_again_come_before_repooled_ones():
    both = pd.concat([ablated(-0.4, -0.2, way="repooled"), ablated(-0.02, 0.03)])
    assert answer("H3", probes=nested(), ablation=both) == "not supported"
    assert answer("H3", probes=nested(), ablation=ablated(-0.4, -0.2, way="repooled")) == (
        "supported"
    )


def mediated(effects, *, p=0.001):
    rows = [
        {
            "metric": "NIE", "way": "forward", "mediator": "coordinate", "layer": layer,
            "estimate": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "p_value_max": p,
        }
        for layer, value in effects.items()
    ]  # fmt: skip
    return frame(*rows)


def test_the_probes_layer_mediates_the_most_or_not():
    there = mediated({10: 0.2, 12: 0.8, 14: 0.3})
    assert answer("H4", probes=nested(), mediation=there) == "supported"
    elsewhere = mediated({10: 0.8, 12: 0.2})
    assert answer("H4", probes=nested(), mediation=elsewhere) == "not supported"
    close = mediated({10: 0.8, 12: 0.75})
    assert answer("H4", probes=nested(), mediation=close) == "cannot tell"
    # A nested row has no layer of its own where folds chose different ones.
    unplaced = nested().assign(layer=None)
    assert answer("H4", probes=unplaced, mediation=there) == "cannot tell"
    assert answer("H4", probes=unplaced, mediation=there, layers={RUN: 12}) == "supported"
    chance = mediated({10: 0.2, 12: 0.8}, p=0.3)
    assert answer("H4", probes=nested(), mediation=chance) == "cannot tell"


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ("needed", "supported"),
        ("not needed", "not supported"),
        ("no effect shown", "cannot tell"),
        ("undecided", "cannot tell"),
        ("not tested", "cannot tell"),
    ],
)
def test_the_claimed_strength_is_needed_or_not(verdict, expected):
    row = {"side": "positive", "verdict": verdict, "reason": "so", "sufficient_raw": 5.0}
    (found,) = judged("H5", doses=frame(row))
    assert found.answer == expected
    assert "enough: 5 raw" in found.because


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ("fails without conflict", "supported"),
        ("steers without conflict too", "not supported"),
        ("weaker without conflict", "not supported"),
        ("untestable", "cannot tell"),
    ],
)
def test_task_free_scenarios(verdict, expected):
    row = {"direction": "positive", "verdict": verdict, "reason": "so"}
    assert answer("H6", task_free=frame(row)) == expected


def test_cruelty_at_any_strength_decides():
    focus = {"alpha_raw": -5, "verdict": "raises task focus without cruelty", "reason": "calm"}
    cruel = {"alpha_raw": -20, "verdict": "raises task focus with cruelty", "reason": "harsh"}
    assert answer("H7", negative=frame(focus)) == "supported"
    (found,) = judged("H7", negative=frame(focus, cruel))
    assert (found.answer, found.because) == ("not supported", "at α = -20: harsh")
    nothing = {"alpha_raw": -5, "verdict": "undecided", "reason": "wide"}
    assert answer("H7", negative=frame(nothing)) == "cannot tell"


def test_the_best_random_direction_of_all_layers_counts():
    band = [
        {"layer": i, "max_folded": top, "n_draws": 1000, "share_above_95_folded": 0.001}
        for i, top in enumerate((0.7, 0.96))
    ]
    (found,) = judged("H8", null=frame(*band))
    assert found.answer == "supported"
    assert "the largest of 1000 is 0.96 (layer 1, mean_response); 0.1 %" in found.because
    assert answer("H8", null=frame(band[0])) == "not supported"


def cosine(value, *, n_shared=0, width=0.05):
    return frame(
        {
            "metric": "cosine", "space": "raw", "layer": 12, "contrast": "empathy",
            "other": "task", "estimate": value, "ci_low": value - width, "n_shared": n_shared,
            "ci_high": value + width, "p_value": 0.001, "disattenuated": value,
        }
    )  # fmt: skip


def test_opposite_directions_need_texts_of_their_own():
    assert answer("H9", probes=nested(), geometry=cosine(-0.97)) == "supported"
    assert answer("H9", probes=nested(), geometry=cosine(-0.4)) == "not supported"
    assert answer("H9", probes=nested(), geometry=cosine(-0.88)) == "cannot tell"
    (found,) = judged("H9", probes=nested(), geometry=cosine(-1.0, n_shared=40))
    assert found.answer == "cannot tell"
    assert "share texts" in found.because
