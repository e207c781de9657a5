"""A study of every stage: two small models, a few pairs, all that the laptop and the GPU do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import bundled_corpus, write_jsonl
from actlake.schemas import InvalidInputError, StudyFile
from actlake.study import load_study, open_study, run_study

pytestmark = pytest.mark.torch
LLAMA, PHI = "llama-organism", "phi3-organism"
STUDY = """
name = "all"
[corpus]
source = "texts.jsonl"
[[models]]
model = "bundled:llama-organism"
[[models]]
model = "bundled:phi3-organism"
steer = false
[capture]
pools = ["mean_response"]
[probe]
methods = ["diff_means"]
n_bootstrap = 50
n_reliability = 4
[random]
n_directions = 20
[validation]
words = [4, 60]
[stats]
budget = 100
[nulls]
n_draws = 9
[confounds]
concepts = ["length"]
[geometry]
n_permutations = 20
n_splits = 10
n_bootstrap = 20
tsne_seeds = [0]
perplexity = 5
[similarity]
[transfer]
maps = ["ridge"]
n_random = 3
n_permuted = 3
n_bootstrap = 50
[contrasts]
n = 3
[[contrasts.personas]]
source = "Put people before the schedule."
base = "Put the schedule before people."
[patch]
layers = [2, 3]
positions = ["response"]
n_random = 2
n_bootstrap = 50
[mediate]
layers = [2, 3]
position = "response"
n_random = 2
n_bootstrap = 50
[match]
layers = [2, 3]
position = "response"
steer_position = "response"
n_random = 2
n_bootstrap = 50
[steer]
layer = 3
n_prompts = 4
n_random = 2
n_shuffled = 1
alphas = [-1, 0, 1]
[texts]
alphas = [-1, 0, 1]
n_prompts = 4
n_random = 1
max_new_tokens = 12
[doses]
[negative]
task = "sentiment"
task_rises = true
[task_free]
outcome = "sentiment"
bounds = [-1, 1]
[steer_transfer]
alphas = [-1, 0, 1]
n_prompts = 4
n_bootstrap = 50
"""
OF_A_MODEL = {"extract", "probe", "pca", "nulls", "confounds", "geometry"}
STEERED = {"steer", "doses", "texts", "negative", "task_free", "patch", "mediate", "match"}


def corpus():
    """Return the pairs of every fourth scenario, and all neutral texts."""
    _, texts = bundled_corpus("demo")
    originals = [t for t in texts if t.variant == "original" and t.subset in {"plain", "neutral"}]
    scenarios = list(dict.fromkeys(t.scenario for t in originals if t.pair))[::4]
    return [t for t in originals if not t.pair or t.scenario in scenarios]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_jsonl(corpus(), folder / "texts.jsonl")
    (folder / "study.toml").write_text(STUDY)
    said = []
    study = load_study(folder / "study.toml")
    outcome = run_study(study, out=folder / "out", base=folder, say=said.append)
    return folder, outcome, said


def test_every_stage_is_done_for_every_model(whole):
    _, outcome, said = whole
    assert not outcome.unfinished, [(o.task.name, o.message) for o in outcome.unfinished]
    done = {(o.task.stage, o.task.subject) for o in outcome.outcomes}
    assert {stage for stage, subject in done if subject == LLAMA} == OF_A_MODEL | STEERED
    assert {stage for stage, subject in done if subject == PHI} == OF_A_MODEL
    assert {stage for stage, subject in done if subject == "study"} == {
        "corpus", "similarity", "transfer",
    }  # fmt: skip
    assert ("steer_transfer", f"{PHI}--{LLAMA}") in done
    assert ("steer_transfer", f"{LLAMA}--{PHI}") not in done  # phi3 is not steered here
    assert sum(": done" in line for line in said) == len(outcome.outcomes)
    assert [row["run"] for row in outcome.summary] == [LLAMA, PHI]
    assert outcome.report is not None
    assert outcome.report.exists()


def test_the_tables_of_the_stages_name_their_run(whole):
    folder, _, _ = whole
    results = folder / "out/results" / LLAMA
    for stage, table in (
        ("patch", "patching"), ("mediate", "mediation"), ("match", "matched"),
        ("doses", "doses"), ("doses", "doses-verdicts"), ("negative", "negative-verdicts"),
        ("task_free", "task-free"), ("texts", "scored"),
    ):  # fmt: skip
        found = pd.read_parquet(results / stage / f"{table}.parquet")
        assert set(found["run"]) == {LLAMA}, table
    texts = pd.read_parquet(results / "texts/scored.parquet")
    assert len(texts) == 4 * 2 * 3  # prompts, directions, strengths
    zero = texts[texts["alpha_raw"] == 0].groupby("prompt")["text"].nunique()
    assert (zero == 1).all()
    separations = sorted(texts["alpha_separation"].round(6).unique())
    assert separations == [-1, 0, 1]


def test_the_paper_of_a_study_has_a_part_for_every_stage(whole, tmp_path):
    folder, _, _ = whole
    words = ["paper", str(folder / "out/results"), "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["left_out"]) == {"ablation"}  # this study has no variants
    for name, paths in found["written"].items():
        assert all(Path(path).stat().st_size > 0 for path in paths), name
    patched = pd.read_csv(tmp_path / "patching.csv")
    kept = pd.read_parquet(folder / "out/results" / LLAMA / "patch/patching.parquet")
    kept = kept[(kept["mode"] == "denoise") & kept["arm"].isin(["full", "coordinate"])]
    assert sorted(patched["value"].round(9)) == sorted(
        kept["effect" if patched["unit"][0] == "nats" else "estimate"].round(9)
    )


def test_another_machine_over_the_same_store_does_nothing_again(whole, tmp_path):
    folder, first, _ = whole
    study = load_study(folder / "study.toml")
    store = str(folder / "out/store")
    again = run_study(study, out=tmp_path, base=folder, store_url=store)
    assert {o.state for o in again.outcomes} == {"was done"}
    assert again.summary == first.summary
    table = f"results/{LLAMA}/patch/patching.parquet"
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / table), pd.read_parquet(folder / "out" / table)
    )


def test_a_changed_section_does_again_what_follows_from_it(whole, tmp_path):
    folder, _, _ = whole
    changed = STUDY.replace('positions = ["response"]', 'positions = ["suffix"]')
    study = StudyFile.parse(load_study_text(changed))
    graph = open_study(study, out=tmp_path, base=folder, store_url=str(folder / "out/store"))
    undone = [task.name for task in graph.tasks if not graph.is_done(task)]
    assert undone == [f"patch of {LLAMA}"]


def load_study_text(text):
    import tomllib

    return tomllib.loads(text)


def test_the_plan_says_what_is_left_and_what_it_costs(whole, tmp_path):
    folder, _, _ = whole
    plan = ["study", "plan", str(folder / "study.toml"), "--json"]
    done = CliRunner().invoke(cli, [*plan, "--out", str(folder / "out")])
    found = json.loads(done.stdout)
    assert found["totals"]["done"] == found["totals"]["tasks"] == len(found["tasks"])
    fresh = CliRunner().invoke(cli, [*plan, "--out", str(tmp_path / "new"), "--where", "gpu"])
    tasks = {task["task"]: task for task in json.loads(fresh.stdout)["tasks"]}
    assert tasks[f"extract of {LLAMA}"]["bytes"] > 0
    for stage in ("extract", "steer", "patch", "mediate", "match", "texts"):
        one = tasks[f"{stage} of {LLAMA}"]
        assert (one["where"], one["state"]) == ("gpu", "to do")
        assert one["tokens"] > 0
        assert one["hours"] is not None
    assert tasks[f"texts of {LLAMA}"]["new_tokens"] == 4 * 2 * 3 * 12
    # What a GPU stage waits for is done there too; nothing else of the laptop's is.
    assert {t["task"].split()[0] for t in tasks.values() if t["where"] == "cpu"} == {"probe", "map"}
    assert not (tmp_path / "new").exists()  # a plan writes nothing


def test_results_of_other_settings_are_not_reported(whole, tmp_path):
    folder, first, _ = whole
    shutil.copytree(folder / "out", tmp_path / "out")
    other = STUDY.replace("n_bootstrap = 50\nn_reliability = 4", "n_bootstrap = 40", 1)
    (folder / "other.toml").write_text(other)
    study = load_study(folder / "other.toml")
    again = run_study(study, out=tmp_path / "out", base=folder, only=["corpus"])
    assert [o.state for o in again.outcomes] == ["was done"]
    assert (first.summary, again.summary, again.report) == (first.summary, [], None)


def test_a_stage_that_fails_says_how_to_go_on(whole, tmp_path):
    folder, _, _ = whole
    broken = STUDY.replace("the schedule before people.", "work before everybody else around you.")
    (folder / "broken.toml").write_text(broken)
    words = ["study", "run", str(folder / "broken.toml"), "--out", str(tmp_path), "--store",
             str(folder / "out/store")]  # fmt: skip
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 1
    for stage in ("patch", "mediate", "match"):
        assert f"failed: {stage} of {LLAMA}: {LLAMA}: no persona's prompts" in done.stderr
    assert "run the same command again" in done.stderr
    assert (tmp_path / "report.html").exists()


def test_a_section_without_what_it_needs_is_refused():
    for section, needed in (("patch", "contrasts"), ("negative", "texts")):
        text = f'name = "x"\n[[models]]\nmodel = "a/b"\n[{section}]\n'
        with pytest.raises(InvalidInputError, match=rf"\[{section}\] needs a section \[{needed}\]"):
            StudyFile.parse(load_study_text(text))
