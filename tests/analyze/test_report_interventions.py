"""What the report says of interventions follows from the numbers; what is missing has a reason."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from actlake.analyze.hypotheses import HYPOTHESES, HypothesisVerdict, combine_verdicts
from actlake.analyze.hypothesis_tables import judge_study, study_tables
from actlake.analyze.report_doses import add_doses, dose_statement
from actlake.analyze.report_hypotheses import summary
from actlake.analyze.report_interventions import add_interventions
from actlake.analyze.report_matched import matched_statement
from actlake.analyze.report_mediation import mediation_statement
from actlake.analyze.report_numbers import pick_views
from actlake.analyze.report_page import Page
from actlake.analyze.report_patching import add_patching, patch_statement
from actlake.analyze.report_shifts import negative_statement, task_free_statement
from actlake.analyze.report_statements import cards, strength, tally
from actlake.analyze.report_steer_transfer import add_steer_transfer, transfer_statement
from actlake.reporting import read_tables
from actlake.schemas import InvalidInputError
from actlake.stages import Results
from tests.analyze import intervention_data as data
from tests.analyze.report_data import null_table, probe_rows, study

RUN = "phi3-organism"
ONE = (RUN,)
LABELS = {run: run for run in data.RUNS}


def words(statement) -> str:
    return " ".join((*statement.sentences, statement.caveat))


def new_page() -> Page:
    return Page(title="t", meta="", version="0")


def views():
    rng = np.random.default_rng(0)
    return pick_views(probe_rows(rng), null_table(rng), study(), layers={})


# -- hypotheses


def verdict(answer, run=RUN, name="H2"):
    (hypothesis,) = (h for h in HYPOTHESES if h.id == name)
    return HypothesisVerdict(hypothesis, run, answer, f"because of {run}")


@pytest.mark.parametrize(
    ("answers", "whole", "because"),
    [
        (["supported"], "supported", "because of phi3-organism"),
        (["supported", "supported"], "supported", "supported in all 2 models"),
        (
            ["supported", "not supported"],
            "cannot tell",
            "supported in 1 of 2 models, not supported in 1",
        ),
        (["cannot tell", "not supported"] * 2, "cannot tell", "cannot tell in 2 of 4 models"),
    ],
)
def test_an_answer_holds_over_all_models_only_where_every_model_gives_it(answers, whole, because):
    found = combine_verdicts([verdict(a) for a in answers])
    assert found.run is None
    assert found.answer == whole
    assert found.because.startswith(because)


def judged(tables, of_study):
    rng = np.random.default_rng(0)
    rows, null = probe_rows(rng), null_table(rng)
    found = judge_study(study_tables(rows, null, tables), [view.run for view in views()], of_study)
    return {(v.hypothesis.id, v.run): v for v in found}


def test_what_was_not_run_names_the_section_that_is_missing():
    found = judged({}, study())
    assert found["H7", RUN].because == (
        "not run: the study file has no sections [negative] and [texts]"
    )
    assert found["H3", RUN].because == "not run: the study file has no section [ablation]"
    assert {found[name, RUN].answer for name in ("H2", "H3", "H4", "H5", "H6", "H7")} == {
        "cannot tell"
    }
    # The bands of random directions and the probes are always there.
    assert not found["H1", None].because.startswith("not run")
    assert not found["H8", RUN].because.startswith("not run")


def test_a_stage_that_is_not_done_is_told_from_one_that_is_not_in_the_study():
    of_study = study() | {"negative": {"task": "judge_score"}, "texts": {"alphas": [0.0]}}
    found = judged({}, of_study)
    assert "section [negative] is in the study file, but its stage has no results" in (
        found["H7", RUN].because
    )
    _, verdicts = data.negative(("llama-organism",))
    found = judged({"negative-verdicts": verdicts}, of_study)
    assert found["H7", "llama-organism"].answer == "supported"
    assert "for this model" in found["H7", RUN].because


def test_the_summary_lists_every_hypothesis_once():
    text = summary(
        [verdict("supported"), verdict("supported", "b"), verdict("cannot tell", name="H5")]
    )
    assert text == "Supported: H2; cannot tell: H5."
    assert summary([]) == "No hypothesis was judged."


def test_probes_are_judged_by_their_folds_and_not_on_the_test_split():
    rows = probe_rows(np.random.default_rng(0))
    assert {"probe", "probe_test"} <= set(rows["analysis"])
    assert set(study_tables(rows, pd.DataFrame(), {}).probes["analysis"]) == {"probe"}


# -- patching


def test_the_best_patch_stands_beside_random_directions_and_its_corrected_p():
    text = words(patch_statement(RUN, data.patching(ONE)))
    assert "Writing all of the state at layer 7, response, recovers most: 100.0 %" in text
    assert "(95 % interval 96.0 % to 104.0 %)" in text
    assert "more than 5 random directions of the same size there (−2.0 % to 2.0 %" in text
    assert "p = 0.167, the smallest that 5 draws can give" in text
    assert "costs most at layer 7, response: it leaves 70.0 %" in text


def test_a_place_as_good_as_the_best_is_counted():
    rows = data.patching(ONE)
    full = (rows["arm"] == "full") & (rows["position"] == "response")
    rows.loc[full, ["estimate", "ci_low", "ci_high"]] = (1.0, 0.97, 1.03)
    assert "the intervals of 7 of 23 other places reach as far" in words(patch_statement(RUN, rows))


def test_a_patch_that_random_directions_equal_is_not_more():
    rows = data.patching(ONE)
    rows.loc[rows["arm"] == "random", "estimate"] = 0.5
    assert "no more than 5 random directions" in words(patch_statement(RUN, rows))
    bare = words(patch_statement(RUN, data.patching(ONE, n_random=0)))
    assert "no random directions were run, so nothing says that the direction matters" in bare


def test_system_prompts_that_differ_too_little_are_told_in_nats():
    rows = data.patching(ONE, total=0.005).assign(estimate=np.nan, ci_low=np.nan, ci_high=np.nan)
    text = words(patch_statement(RUN, rows))
    assert "recovers most: 0.005 nats" in text
    assert "differ too little for shares" in text
    assert "%" not in text.replace("95 %", "")


def test_a_patch_without_an_estimate_says_why():
    rows = data.patching(ONE)
    mine = rows["arm"] == "coordinate"
    rows.loc[mine, ["estimate", "ci_low", "ci_high"]] = np.nan
    rows.loc[mine, "reason"] = "the direction has no length"
    text = words(patch_statement(RUN, rows))
    assert "No share recovered by the coordinate along the direction: the direction has no" in text
    page = new_page()
    add_patching(page, {"patching": rows}, LABELS)
    body = page.sections[-1].body
    assert "Not estimated: the direction has no length." in body
    # 5 arms with an estimate less one, in two modes.
    assert len(page.charts) == 8


def test_matched_steering_quotes_the_verdict_and_random_directions():
    text = words(matched_statement(RUN, data.matched(ONE), verdict=verdict("not supported")))
    assert text.startswith(
        "Because of phi3-organism. Over all layers steering does most at layer 7"
    )
    assert "against random directions there p = 0.167" in text
    only_random = data.matched(ONE).query("what == 'random'")
    assert "Only random directions were run." in words(
        matched_statement(RUN, only_random, verdict=None)
    )


# -- mediation


def test_mediation_names_the_layer_its_share_and_its_control():
    text = words(mediation_statement(RUN, data.mediation(ONE)))
    assert "most passes through layer 3: 0.400 nats (95 % interval 0.350 to 0.450)" in text
    assert "44 % of the total effect (38 % to 50 %)" in text
    assert "more than through 5 random directions" in text
    assert "it does not stand out (p = 0.167, the smallest that 5 draws can give)" in text
    assert "TE − NDE − NIE is 0.000 nats there" in text


def test_a_share_that_was_not_computed_says_why():
    rows = data.mediation(ONE)
    share = rows["metric"] == "proportion"
    rows.loc[share, ["estimate", "ci_low", "ci_high"]] = np.nan
    rows.loc[share, "reason"] = "the interval of the total effect holds 0"
    text = words(mediation_statement(RUN, rows))
    assert "no share of the total effect: the interval of the total effect holds 0." in text
    none = rows.assign(estimate=np.nan, reason="the model has no such layer")
    assert "No indirect effect along the direction: the model has no such layer." in words(
        mediation_statement(RUN, none)
    )


# -- doses


def test_the_claim_is_answered_in_four_units():
    text = words(dose_statement(RUN, data.doses(ONE), data.dose_verdicts(ONE)))
    assert text.startswith(
        "No, a strength of 20.0 raw is not needed: 12 lacks no more than 0.1 of the success"
    )
    claim = "20.0 raw = 1.67 class separations = 0.67 mean residual norms = 15° of turn"
    assert f"The claim is {claim}." in text
    assert "Enough is 12.0 raw = 1.00 class separations" in text
    assert "less coherent than the unsteered model's" in text
    assert "α50 is 9.6 raw" in text
    assert "α50 not identified: success does not rise over the grid" in text
    assert "from 24.0 raw = 2.00 class separations" in text
    assert "12 % of 24 prompts (6.5 % to 18 %) move against the steering" in text


@pytest.mark.parametrize(
    ("answer", "opening"),
    [
        ("needed", "Yes, a strength of"),
        ("no effect shown", "A strength of 20.0 raw"),
        ("undecided", "Whether a strength of"),
        ("not tested", "Whether a strength of"),
    ],
)
def test_every_verdict_on_the_claim_has_its_words(answer, opening):
    claims = data.dose_verdicts(ONE, verdict=answer, sufficient_raw=None, claimed_coherent=None)
    (first, *_) = dose_statement(RUN, data.doses(ONE), claims).sentences
    assert first.startswith(opening)
    assert "12 lacks no more than 0.1" in first
    assert "Enough is" not in first


def test_a_sweep_without_coherence_says_that_a_breakdown_would_not_show():
    text = words(dose_statement(RUN, data.doses(ONE, coherence=False), pd.DataFrame()))
    assert "coherence was not judged, so a breakdown would not show" in text
    assert text.startswith("No claimed strength was judged on the positive side.")
    page = new_page()
    add_doses(page, {"doses": data.doses(ONE, coherence=False)}, LABELS)
    assert len(page.charts) == 2


def test_strengths_stand_in_the_units_that_are_known():
    assert strength({"alpha_raw": -3.0, "alpha_angle": np.nan}) == "−3.0 raw"
    assert strength({}) == "a strength that was not recorded"


# -- negative steering, task-free scenarios


def test_negative_steering_lists_its_verdicts_with_what_they_contrast():
    text = words(negative_statement(RUN, data.negative(ONE)[1]))
    assert "raises task focus without cruelty at α = −12.00, −24.00." in text
    assert "the share of hostile texts by +0" in text
    assert "Sentiment falls at 2 of 2 negative strengths." in text
    none = data.negative(ONE)[1].assign(subset="coherent")
    assert words(negative_statement(RUN, none)).startswith("No negative strength was judged")


def test_task_free_scenarios_say_prompts_contrast_and_floors():
    rows, verdicts = data.task_free(ONE)
    text = words(task_free_statement(RUN, verdicts, rows))
    assert text.startswith(
        "Towards the concept: weaker without conflict (6 task-free prompts, 12 with a conflict)"
    )
    assert "difference -0.013 (-0.014 to -0.012)" in text
    assert "the baseline of task-free scenarios lies at the floor" in text


# -- transfer


def test_a_transfer_uses_the_words_of_its_verdict_else_the_figures():
    rows, verdicts = data.steer_transfer()
    mine = rows[rows["run"] == RUN]
    text = words(transfer_statement(RUN, mine, verdicts[verdicts["run"] == RUN], LABELS))
    assert "From llama-organism: transfers: the direction of llama-organism does 50 %" in text
    assert "Its own direction moves the outcome by 0.2000 nats" in text
    text = words(transfer_statement(RUN, mine, pd.DataFrame(), LABELS))
    assert (
        "From gemma2-organism: 0.50 of the own direction's effect (0.35 to 0.65); p 0.040" in text
    )


def test_the_matrix_has_a_cell_for_every_pair_and_says_what_was_not_run():
    rows, verdicts = data.steer_transfer()
    gone = (rows["run"] == RUN) & (rows["source_run"] == "llama-organism")
    page = new_page()
    add_steer_transfer(
        page, {"steer-transfer": rows[~gone], "steer-transfer-verdicts": verdicts}, LABELS
    )
    body = page.sections[-1].body
    matrix = body[body.index('class="matrix"') : body.index("</table>")]
    assert matrix.count("<td") == 9
    assert matrix.count("own: 0.200 nats") == 3
    assert matrix.count("not run") == 1
    assert matrix.count("0.50 of the own effect (0.35 to 0.65)") == 5
    assert page.sections[-1].lead == "Directions of another model: transfers in all 6 transfers."


def test_a_transfer_without_a_share_says_why():
    rows, _ = data.steer_transfer()
    ratio = rows["metric"] == "ratio"
    rows.loc[ratio, ["estimate", "ci_low", "ci_high"]] = np.nan
    rows.loc[ratio, "reason"] = "the interval of the own direction's effect holds 0"
    page = new_page()
    add_steer_transfer(page, {"steer-transfer": rows}, LABELS)
    assert "share of the own effect: the interval of the own direction" in page.sections[-1].body
    assert "no share" in page.sections[-1].body


# -- all of them


def test_without_tables_nothing_is_added_and_one_model_is_enough():
    page = new_page()
    add_interventions(page, views(), {})
    empty = {name: table.head(0) for name, table in data.all_tables(ONE).items()}
    add_interventions(page, views(), empty)
    assert page.sections == []
    add_interventions(page, views(), data.all_tables(ONE), verdicts=[verdict("supported")])
    assert [s.anchor for s in page.sections] == [
        "patching", "matched", "mediation", "doses", "negative", "task-free", "samples",
    ]  # fmt: skip
    assert all(s.lead for s in page.sections)
    assert "<figcaption>" in page.sections[0].body


def test_a_table_of_another_kind_is_refused_by_name():
    with pytest.raises(InvalidInputError, match="'patching' lacks the columns"):
        add_interventions(new_page(), views(), {"patching": data.matched(ONE)})


def test_sentences_are_escaped():
    rows = data.patching(ONE).assign(position="<script>x</script>")
    page = new_page()
    add_patching(page, {"patching": rows}, {RUN: "<b>model</b>"})
    assert "<b>model" not in page.sections[-1].body
    assert "<script>x" not in page.sections[-1].body
    assert "&lt;script&gt;x" in cards([patch_statement("m", rows)])


def test_answers_are_counted():
    assert tally(["a"]) == "a in the one model"
    assert tally(["a", "a"]) == "a in all 2 models"
    assert tally(["b", "a", "a"], "pair") == "a in 2 of 3 pairs, b in 1"


def test_the_verdicts_of_a_transfer_are_read_with_the_runs_of_both_models(tmp_path):
    rows, verdicts = data.steer_transfer(("llama-organism", RUN))
    results = Results(tmp_path)
    for source, target in ((RUN, "llama-organism"), ("llama-organism", RUN)):
        own = rows[rows["run"] == target]
        said = verdicts[verdicts["run"] == target].drop(columns=["run", "source_run"])

        def make(folder, own=own, said=said):
            own.to_parquet(folder / "steer-transfer.parquet")
            record = {"verdicts": said.to_dict("records")}
            (folder / "steer-transfer.json").write_text(json.dumps(record))

        results.build(f"{source}--{target}", "steer_transfer", key={}, make=make)
    found = read_tables(results)["steer-transfer-verdicts"]
    assert set(zip(found["source_run"], found["run"], strict=True)) == {
        (RUN, "llama-organism"),
        ("llama-organism", RUN),
    }
    assert set(found["answer"]) == {"transfers"}
    assert "steer-transfer-verdicts" not in read_tables(results, wanted=lambda *_: False)
