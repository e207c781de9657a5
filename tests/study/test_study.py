import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from actlake.schemas import NotFoundError, StudyFile
from actlake.store import open_store, verify_run
from actlake.study import load_study

pytestmark = pytest.mark.torch

ACTLAKE = str(Path(sys.executable).with_name("actlake"))
README = Path(__file__).parents[2] / "README.md"
STUDIES = Path(__file__).parents[2] / "studies"
STAGES = ("study", "run", "bundled:demo", "--only", "variants,extract,probe,pca,steer")
RUNS = ["phi3-organism", "llama-organism", "gemma2-organism"]


def actlake(*args, check=True, **options):
    done = subprocess.run(
        [ACTLAKE, *map(str, args)], capture_output=True, text=True, check=False, **options
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of the bundled study's first stages, and what it printed as JSON."""
    out = tmp_path_factory.mktemp("demo")
    printed = actlake(*STAGES, "--out", out, "--json").stdout
    return out, json.loads(printed)


def test_the_demo_finds_what_was_planted(demo):
    _, printed = demo
    assert [row["run"] for row in printed["summary"]] == RUNS
    for row in printed["summary"]:
        # The disposition is read in scenarios that no fold has seen.
        assert row["auroc"] >= 0.95, row
        # With a signal this strong many random directions separate the arms too.
        assert row["p_value"] <= 0.05, row
        # The words give the shortcut away, and say nothing where they are balanced.
        assert row["bow_shortcut"] >= 0.99, row
        assert row["auroc_balanced"] >= 0.95, row
        assert row["bow_balanced"] <= 0.65, row


def test_the_demo_steers_monotonically_and_beats_its_random_directions(demo):
    out, printed = demo
    for row in printed["summary"]:
        assert row["steer_monotone"], row
        assert row["steer_effect"] > 1.5 * row["steer_random_max"], row
        table = pd.read_parquet(out / "results" / row["run"] / "steer" / "steering.parquet")
        asked = table["direction"] == "system_prompt"
        zero = table[(table["alpha_raw"] == 0) & ~asked]
        # The direction, 20 random ones, 3 draws of shuffled labels, the orthogonal one.
        assert len(zero) == 25
        assert (zero["estimate"] == 0).all()
        prompted = table[asked].set_index("prompt")["estimate"]
        assert prompted["positive"] > 0 > prompted["negative"]
        own = table[table["direction"] == "diff_means"].sort_values("alpha_raw")
        assert (own["alpha_angle"].diff().dropna().abs() > 0).all()
        for unit in ("alpha_raw", "alpha_separation", "alpha_norm"):
            assert own[unit].is_monotonic_increasing


def test_every_probe_row_carries_its_controls_and_provenance(demo):
    out, _ = demo
    for run in RUNS:
        rows = pd.read_parquet(out / "results" / run / "probe" / "probe.parquet")
        auroc = rows[(rows["analysis"] == "probe") & rows["metric"].str.startswith("auroc")]
        # Both arms of the demo share their prompt: at its last token all scores are equal.
        flat = auroc["reason"] == "all scores are equal"
        assert set(auroc.loc[flat, "pool"]) == {"last_prompt"}
        held = auroc[auroc["estimate"].notna() & ~flat]
        assert len(held) > 400
        for name in ("bow_estimate", "ci_low", "ci_high", "cv", "groups", "n_pairs", "seed",
                     "dataset_digest", "content_digest", "code_version", "store_url"):  # fmt: skip
            assert held[name].notna().all(), (run, name)
        assert auroc[auroc["estimate"].isna()]["reason"].notna().all()


def test_running_the_demo_again_does_nothing(demo):
    out, printed = demo
    before = {p: p.stat().st_mtime_ns for p in (out / "store").rglob("*") if p.is_file()}
    again = actlake(*STAGES, "--out", out, "--json")
    assert again.stderr.count(": was done") == 13  # four stages of three models, and the variants
    assert json.loads(again.stdout)["summary"] == printed["summary"]
    after = {p: p.stat().st_mtime_ns for p in (out / "store").rglob("*") if p.is_file()}
    assert {p.name for p in after if after[p] != before.get(p)} <= {"catalog.json"}


def test_the_store_commands_read_what_the_demo_wrote(demo):
    out, _ = demo
    store = out / "store"
    listed = json.loads(actlake("store", "ls", store, "--json").stdout)
    assert sorted(row["run"] for row in listed) == sorted(RUNS)
    assert {row["state"] for row in listed} == {"sealed"}
    info = json.loads(actlake("store", "info", store, RUNS[0], "--json").stdout)
    assert info["model"]["content_digest"].startswith("sha256:")
    assert info["blocks"] == info["blocks_committed"] > 1
    assert json.loads(actlake("store", "verify", store, RUNS[0], "--json").stdout)["ok"]
    assert actlake("store", "info", store, RUNS[0]).stdout.startswith("encoding-type")


def test_the_python_of_the_readme_runs_on_the_demo(demo, monkeypatch):
    out, _ = demo
    # The README's paths are those of `make demo`.
    folder = out.parent / "readme"
    folder.mkdir()
    (folder / "actlake-demo").symlink_to(out)
    monkeypatch.chdir(folder)
    code = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(code) == 2
    for block in code:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


STUDY = """
name = "small"
[[models]]
model = "bundled:llama-organism"
[capture]
pools = ["mean_response"]
[extract]
chunk_size = 16
[probe]
methods = ["diff_means"]
[random]
n_directions = 20
[steer]
n_prompts = 4
n_random = 2
alphas = [-1, 0, 1]
"""


def digest(out):
    seal = open_store(str(out / "store")).read_seal("llama-organism")
    return seal.data_digest if seal else None


def stored_bytes(out):
    root = out / "store/runs/llama-organism/data.zarr"
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_study_killed_at_three_moments_ends_as_if_it_had_not_been(tmp_path):
    (tmp_path / "small.toml").write_text(STUDY)
    whole = tmp_path / "whole"
    actlake("study", "run", tmp_path / "small.toml", "--out", whole)
    out = tmp_path / "killed"
    commits = out / "store/runs/llama-organism/commits"
    moments = (
        lambda: (out / "store/runs").exists(),
        lambda: commits.is_dir() and len(list(commits.glob("*.json"))) >= 10,
        lambda: (out / "results/llama-organism").exists(),
    )
    for reached in moments:
        process = subprocess.Popen(
            [ACTLAKE, "study", "run", str(tmp_path / "small.toml"), "--out", str(out)],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        while not reached():
            assert process.poll() is None, "it ended before the moment came"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "report.html").exists()
    actlake("study", "run", tmp_path / "small.toml", "--out", out)
    assert digest(out) == digest(whole) is not None
    assert stored_bytes(out) == stored_bytes(whole)
    assert verify_run(open_store(str(out / "store")), "llama-organism").ok
    figures = [json.loads((p / "results/summary.json").read_text()) for p in (out, whole)]
    assert figures[0] == figures[1]


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path):
    (tmp_path / "small.toml").write_text(STUDY)
    out = tmp_path / "out"
    process = subprocess.Popen(
        [ACTLAKE, "study", "run", str(tmp_path / "small.toml"), "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        # A suite started in the background of a shell hands on an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (out / "store/runs").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (STUDY.replace("llama-organism", "lama-organism"), "did you mean 'llama-organism'"),
        (STUDY.replace("n_prompts", "n_promts"), "did you mean 'n_prompts'"),
        (STUDY.replace("[capture]", "[capture]\nlayers = [99]"), "layer 99 does not exist"),
        (STUDY + "[corpus]\nsource = 'none.jsonl'", "no such file"),
        ("models = [", "not a readable TOML file"),
    ],
)
def test_a_study_that_cannot_run_is_one_line_and_changes_nothing(tmp_path, study, message):
    (tmp_path / "bad.toml").write_text(study)
    done = actlake("study", "run", tmp_path / "bad.toml", "--out", tmp_path / "out", check=False)
    assert done.returncode in {1, 2}
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not list((tmp_path / "out").glob("store/runs/*"))


def test_a_corpus_with_broken_lines_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "response": ""}\n{oops\n')
    done = actlake(
        "extract", "bundled:llama-organism", "--corpus", tmp_path / "bad.jsonl",
        "--store", tmp_path / "store", check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "bad.jsonl:1: response" in done.stderr
    assert "1 other line is also bad" in done.stderr
    assert not (tmp_path / "store").exists()


def test_an_unreachable_bucket_is_one_line_without_secrets(tmp_path):
    env = os.environ | {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "verysecret",
    }
    done = actlake("store", "ls", "s3://bucket/store", check=False, env=env, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "check the endpoint" in done.stderr
    assert "AKIAEXAMPLE" not in done.stderr
    assert "verysecret" not in done.stderr


def test_the_bundled_studies_are_those_of_the_repository_and_have_the_same_stages():
    demo, whole = (load_study(f"bundled:{name}") for name in ("demo", "empathy"))
    assert [m.model for m in demo.models] == [f"bundled:{run}" for run in RUNS]
    for name in ("demo", "empathy"):
        assert load_study(STUDIES / f"{name}.toml") == load_study(f"bundled:{name}")
    run, planned = (
        {name for name in StudyFile.model_fields if getattr(study, name) is not None}
        for study in (demo, whole)
    )
    assert planned - run == set()
    for study in (demo, whole):  # else nobody can tell whether the claimed strength is needed
        assert study.steer.unit == "raw"
        assert {study.doses.claimed, -study.doses.claimed} <= set(study.steer.alphas)
    with pytest.raises(NotFoundError, match="did you mean 'demo'"):
        load_study("bundled:demmo")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_demo_runs_every_stage_and_ends_in_report_and_paper(tmp_path):
    printed = json.loads(actlake("demo", "--out", tmp_path / "demo", "--json").stdout)
    assert printed["unfinished"] == []
    stages = {task["task"].split()[0] for task in printed["tasks"]}
    sections = {
        name for name in StudyFile.model_fields
        if getattr(load_study("bundled:demo"), name) is not None
    }  # fmt: skip
    later = {"variants", "nulls", "confounds", "ablation", "geometry", "similarity", "transfer",
             "patch", "mediate", "match", "texts", "doses", "negative", "task_free",
             "steer_transfer"}  # fmt: skip
    assert later <= sections
    assert later <= stages
    words = ("paper", tmp_path / "demo/results", "--out", tmp_path / "paper", "--json")
    written = json.loads(actlake(*words).stdout)
    assert written["left_out"] == {}
    answers = pd.read_csv(tmp_path / "paper/hypotheses.csv").set_index(["hypothesis", "run"])
    # What was planted: the models do mediate, and no verdict is missing its analysis.
    assert not answers["because"].str.contains("was not run").any()
