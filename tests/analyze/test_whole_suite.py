"""`actlake analyze all`: every part of a store, what fails alone, what goes on after a stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from actlake.analysis import stage_name
from actlake.cli import cli
from actlake.corpus import corpus_info
from actlake.store import create_store
from tests.analyze.left_out import without_ablation
from tests.analyze.stored import write_run

FAST = """
[probe]
methods = ["diff_means", "ridge"]
n_bootstrap = 10
n_reliability = 2
[geometry]
n_permutations = 19
n_splits = 5
n_bootstrap = 5
tsne_seeds = []
[transfer]
maps = ["ridge"]
n_permuted = 2
n_random = 9
n_bootstrap = 10
[correlation]
n_bootstrap = 20
"""
PARTS = ("probe", "generators", "random", "nulls", "confounds")


def make_store(folder, synthetic_run, runs, **fields):
    """A store with runs of one corpus, of unlike widths."""
    store = create_store(folder)
    for number, name in enumerate(runs):
        run = synthetic_run(
            **{"hidden": 12 + 3 * number, "strength": 2.0, "n_test_scenarios": 2, "n_layers": 3,
               "n_neutral": 12, "n_scenarios": 5, "pairs_per_scenario": 4, **fields}
        )  # fmt: skip
        if number == 0:
            store.write_corpus(corpus_info("made-up", run.texts), run.texts)
        write_run(store, run.ds, name=name, rows=20)
    return store, run


def invoke(*words, code=0):
    done = CliRunner().invoke(cli, ["analyze", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def whole(synthetic_run, tmp_path_factory):
    """The suite over a store of two runs and a table of ratings."""
    folder = tmp_path_factory.mktemp("whole")
    store, run = make_store(folder / "store", synthetic_run, ["a", "b"])
    (folder / "fast.toml").write_text(FAST)
    rng = np.random.default_rng(0)
    rated = [(t.id, 2.0 * (t.arm == "positive")) for t in run.texts if t.arm != "neutral"]
    table = pd.DataFrame(rated, columns=["uid", "warmth"])
    table["warmth"] = (table.warmth + rng.normal(0, 0.1, len(table))).clip(0, 2)
    table.to_csv(folder / "ratings.csv", index=False)
    words = ["all", store.url, "--out", folder / "results", "--spec", folder / "fast.toml",
             "--draws", 19, "--ratings", folder / "ratings.csv", "--id", "uid", "--rating",
             "warmth", "--json"]  # fmt: skip
    done = invoke(*words)
    return folder, words, done


def test_every_part_runs_and_lies_in_its_own_folder(whole):
    folder, _, done = whole
    printed = json.loads(done.stdout)
    assert [of["run"] for of in printed["runs"]] == ["a", "b"]
    for of in printed["runs"]:
        assert without_ablation(of["parts"]) == dict.fromkeys([*PARTS, "geometry"], "done")
    assert printed["together"]["parts"] == dict.fromkeys(
        ["models", "similarity", "transfer", "correlation"], "done"
    )
    every = [of["folders"] for of in printed["runs"]] + [printed["together"]["folders"]]
    for path in [Path(path) for folders in every for path in folders.values()]:
        assert (path / "stage.json").is_file()
        tables = list(path.glob("*.parquet"))
        assert tables
        for table in tables:
            frame = pd.read_parquet(table)
            assert len(frame)
            assert len(pd.read_csv(table.with_suffix(".csv"))) == len(frame)
    arrays = {path.name for path in (folder / "results").rglob("*.zarr")}
    assert arrays == {"directions.zarr", "aurocs.zarr"}


def test_memory_is_stated_before_and_the_rate_of_jobs_is_told(whole):
    lines = whole[2].stderr.splitlines()
    for what in ("a: expected memory:", "similarity: expected memory:", "transfer: expected"):
        assert any(line.startswith(what) for line in lines), what
    stated = next(i for i, line in enumerate(lines) if line.startswith("a: expected memory"))
    told = next(i for i, line in enumerate(lines) if line.startswith("a: 3 of 3 jobs"))
    assert stated < told
    assert "jobs/s" in lines[told]


def test_geometry_has_the_directions_of_the_probes(whole):
    rows = pd.read_parquet(whole[0] / "results/a/geometry/geometry.parquet")
    assert {"diff_means", "ridge"} <= set(rows.contrast.dropna())


def test_ratings_are_set_against_the_probes_of_every_run(whole):
    rows = pd.read_parquet(whole[0] / "results/correlation/correlation.parquet")
    assert set(rows.run) == {"a", "b"}
    pearson = rows[(rows.metric == "pearson") & (rows.method == "diff_means")]
    assert (pearson.estimate > 0.3).all()
    for name in ("content_digest", "dataset_digest", "split_digest", "store_url", "code_version"):
        assert rows[name].notna().all(), name


def test_a_second_call_reads_and_computes_nothing(whole):
    _, words, first = whole
    began = time.monotonic()
    done = invoke(*words)
    seconds = time.monotonic() - began
    printed = json.loads(done.stdout)
    states = [without_ablation(of["parts"]) for of in printed["runs"]]
    states.append(printed["together"]["parts"])
    assert {state for parts in states for state in parts.values()} == {"was done"}
    assert printed["summary"] == json.loads(first.stdout)["summary"]
    assert "expected memory" not in done.stderr
    assert seconds < 20


def test_a_changed_spec_computes_what_it_touches_alone(whole):
    folder, words, _ = whole
    changed = folder / "changed.toml"
    changed.write_text(FAST.replace("n_random = 9", "n_random = 5"))
    again = [changed if word == folder / "fast.toml" else word for word in words]
    printed = json.loads(invoke(*again).stdout)
    assert printed["together"]["parts"] == {
        "models": "was done", "similarity": "was done", "transfer": "done",
        "correlation": "was done",
    }  # fmt: skip
    for of in printed["runs"]:
        assert set(without_ablation(of["parts"]).values()) == {"was done"}


def test_options_rule_over_the_file_and_the_file_over_the_defaults(whole):
    folder = whole[0]
    bands = pd.read_parquet(folder / "results/a/analyze-nulls/bands.parquet")
    assert set(bands.n_draws) == {19}
    rows = pd.read_parquet(folder / "results/a/analyze-probe/probe.parquet")
    assert set(rows.method) == {"tfidf_logistic", "diff_means", "ridge"}
    moved = pd.read_parquet(folder / "results/transfer/transfer.parquet")
    assert "ridge" in set(moved["map"])
    assert not {"procrustes", "cca"} & set(moved["map"])


def test_one_run_alone_is_compared_with_nothing_and_that_is_no_failure(synthetic_run, tmp_path):
    store, _ = make_store(tmp_path / "store", synthetic_run, ["only"], n_layers=1)
    (tmp_path / "fast.toml").write_text(FAST)
    done = invoke("all", store.url, "--out", tmp_path / "results", "--spec",
                  tmp_path / "fast.toml", "--draws", 9, "--json")  # fmt: skip
    together = json.loads(done.stdout)["together"]["parts"]
    assert together == {
        "models": "left out: a comparison needs the probes of two runs or more, there are those "
        "of ['only']",
        "similarity": "left out: a comparison needs two runs or more, got ['only']",
        "transfer": "left out: a comparison needs two runs or more, got ['only']",
        "correlation": "left out: no table of scored texts was given",
    }


def test_a_failure_says_why_and_leaves_the_rest(synthetic_run, tmp_path):
    """No word in any text, a run of other texts, and no neutral anchor: each has its sentence."""
    store, _ = make_store(
        tmp_path / "store", synthetic_run, ["a", "b"], n_layers=1, n_neutral=0,
        responses=lambda _arm, k: "!" * (k + 1),
    )  # fmt: skip
    other = synthetic_run(n_layers=1, n_scenarios=3, pairs_per_scenario=2, n_neutral=0)
    ids = np.array([f"other-{i}" for i in range(other.ds.sizes["text"])])
    write_run(store, other.ds.assign_coords(text=ids), name="c", rows=20)
    (tmp_path / "fast.toml").write_text(FAST)
    done = invoke("all", store.url, "--out", tmp_path / "results", "--spec",
                  tmp_path / "fast.toml", "--draws", 9, "--json", code=1)  # fmt: skip
    printed = json.loads(done.stdout)
    parts = {of["run"]: of["parts"] for of in printed["runs"]}
    for run in ("a", "b"):
        for name in ("probe", "generators", "confounds"):
            assert parts[run][name].startswith("failed: the bag of words found no word"), name
        for name in ("random", "nulls", "geometry"):
            assert parts[run][name] == "done", name
    assert parts["c"]["probe"].startswith("failed: ")
    assert "are not in the corpus" in parts["c"]["probe"]
    assert parts["c"]["geometry"] == "done"
    assert printed["together"]["parts"]["similarity"] == "done"
    alike = pd.read_parquet(tmp_path / "results/similarity/similarity.parquet")
    assert set(alike.run) | set(alike.other_run) == {"a", "b"}
    assert "['c'] have no texts in common with the others" in done.stderr
    assert printed["together"]["parts"]["transfer"].startswith("failed: the bag of words")
    assert (tmp_path / "results/a" / stage_name("nulls") / "nulls.csv").is_file()


def test_memory_that_does_not_suffice_is_refused_for_each_part(synthetic_run, tmp_path):
    store, _ = make_store(tmp_path / "store", synthetic_run, ["a"], n_layers=1)
    done = invoke("all", store.url, "--out", tmp_path / "results", "--memory", "1kB", "--json",
                  code=1)  # fmt: skip
    states = without_ablation(json.loads(done.stdout)["runs"][0]["parts"])
    assert all("needs" in state and "more than the 0 MiB" in state for state in states.values())


def test_a_site_that_a_run_lacks_is_named_in_every_part(synthetic_run, tmp_path):
    store, _ = make_store(tmp_path / "store", synthetic_run, ["a"], n_layers=1)
    done = invoke("all", store.url, "--out", tmp_path / "results", "--site", "mlp_out", "--json",
                  code=1)  # fmt: skip
    states = json.loads(done.stdout)["runs"][0]["parts"]
    assert all("no site 'mlp_out'" in state for state in states.values()), states


SLOW = """
import sys, time
import actlake.analyze.nullrun as room
real, begun = room.NullPart.fit, []
def fit(self, layer):
    begun.append(layer.layer)
    if len(begun) > 2:
        time.sleep(600)
    return real(self, layer)
room.NullPart.fit = fit
from actlake.console import say
from actlake.cli import main
main()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_what_is_stopped_goes_on_where_it_was(synthetic_run, tmp_path, how):
    """A real process that is stopped in the third of three layers; the first two are kept."""
    store, _ = make_store(tmp_path / "store", synthetic_run, ["a"])
    words = ["analyze", "nulls", store.url, "--out", str(tmp_path / "results"), "--methods",
             "diff_means", "--draws", "9", "--scheduler", "synchronous"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *words], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        # A suite started in the background of a shell hands on an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    kept = tmp_path / "results/a/.jobs"
    deadline = time.monotonic() + 100
    while len(list(kept.rglob("*.npz"))) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), errors
    assert "Traceback" not in errors
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.npz")}
    assert len(before) == 2
    assert not (tmp_path / "results/a/analyze-nulls").exists()
    done = invoke(*words[1:], "--json")
    assert json.loads(done.stdout)["runs"][0]["parts"] == {"nulls": "done"}
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    rows = pd.read_parquet(tmp_path / "results/a/analyze-nulls/nulls.parquet")
    assert set(rows.layer.dropna()) == {0, 1, 2}
