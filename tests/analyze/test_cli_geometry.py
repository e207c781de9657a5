"""The commands that compare, on a store of two made-up runs."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import corpus_info
from actlake.schemas import InvalidInputError, NotFoundError
from actlake.store import create_store
from tests.analyze.stored import write_run


@pytest.fixture(scope="module")
def store(synthetic_run, tmp_path_factory):
    """A store with its corpus and two runs of it."""
    made = create_store(tmp_path_factory.mktemp("store"))
    for name, hidden in (("a", 12), ("b", 9)):
        run = synthetic_run(n_neutral=12, hidden=hidden, strength=2.0, n_test_scenarios=2)
        if name == "a":
            made.write_corpus(corpus_info("made-up", run.texts), run.texts)
        write_run(made, run.ds, name=name, rows=40)
    return made.url


def run_json(*words):
    done = CliRunner().invoke(cli, ["analyze", *map(str, words), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_geometry_writes_its_tables_and_prints_the_cosines(store, tmp_path):
    found = run_json("geometry", store, "a", "--permutations", 50, "--out", tmp_path)
    assert {row["space"] for row in found["rows"]} == {
        "raw", "standardised", "whitened", "outliers_removed",
    }  # fmt: skip
    table = pd.read_parquet(tmp_path / "a/geometry/geometry.parquet")
    assert (table[table.metric == "cosine"].n_draws == 50).all()
    assert (tmp_path / "a/geometry/tsne.parquet").is_file()


def test_a_spec_file_names_contrasts_and_options_rule_over_it(store, tmp_path):
    (tmp_path / "spec.toml").write_text(
        "n_permutations = 20\ntsne_seeds = []\n"
        '[[contrasts]]\nname = "warm"\n'
        'positive = {arm = "positive"}\nnegative = {arm = "neutral"}\n'
        '[[contrasts]]\nname = "task"\n'
        'positive = {arm = "negative"}\nnegative = {arm = "neutral"}\n'
    )
    words = ["geometry", store, "a", "--spec", tmp_path / "spec.toml", "--out", tmp_path]
    with pytest.raises(InvalidInputError, match="'warm' and 'task' have 12 texts in common"):
        run_json(*words)
    rows = run_json(*words, "--shared", "flag")["rows"]
    assert all(row["verdict"].startswith("trap") or "; trap" in row["verdict"] for row in rows)
    (tmp_path / "spec.toml").write_text("permutations = 3")
    with pytest.raises(InvalidInputError, match="unknown key 'permutations'"):
        run_json(*words)


def test_similarity_and_transfer_take_all_runs_where_none_is_named(store, tmp_path):
    alike = run_json("similarity", store, "--out", tmp_path)
    assert {row["metric"] for row in alike["rows"]} == {"debiased_cka", "rsa"}
    (tmp_path / "t.toml").write_text("n_permuted = 2\nn_random = 9\nn_bootstrap = 20\n")
    moved = run_json(
        "transfer", store, "--spec", tmp_path / "t.toml", "--maps", "ridge", "--out", tmp_path
    )
    assert {(row["source_run"], row["run"]) for row in moved["rows"]} == {("a", "b"), ("b", "a")}
    assert all(np.isfinite(row["bow_estimate"]) for row in moved["rows"])
    controls = pd.read_csv(tmp_path / "transfer/transfer.csv").control.dropna()
    assert {"permuted_anchors", "bag_of_words", "target_trained"} <= set(controls)


def test_transfer_reads_the_texts_that_were_appended_to_a_run(synthetic_run, tmp_path):
    grown = create_store(tmp_path / "store")
    for name, hidden in (("a", 12), ("b", 9)):
        run = synthetic_run(n_neutral=12, hidden=hidden, strength=2.0, n_test_scenarios=2)
        late = np.isin(run.ds["scenario"].values, ["scenario-01", "scenario-05"])
        for corpus, which in (("first", ~late), ("later", late)):
            write_run(grown, run.ds.isel(text=which), name=name, rows=40, corpus=corpus)
            chosen = set(run.ds["text"].values[which].tolist())
            texts = [text for text in run.texts if text.id in chosen]
            grown.write_corpus(corpus_info(corpus, texts), texts)
    (tmp_path / "t.toml").write_text("n_permuted = 2\nn_random = 9\nn_bootstrap = 20\n")
    words = ["transfer", grown.url, "a", "b", "--spec", tmp_path / "t.toml", "--maps", "ridge"]
    moved = run_json(*words, "--out", tmp_path)["rows"]
    assert {(row["source_run"], row["run"]) for row in moved} == {("a", "b"), ("b", "a")}
    frame = pd.read_parquet(tmp_path / "transfer/transfer.parquet")
    assert (frame.n_texts == 96).all()  # of all scenarios


def test_correlate_reads_scores_and_ratings(tmp_path):
    rng = np.random.default_rng(0)
    texts = [f"t{i}" for i in range(30)]
    rating = rng.integers(0, 3, 30)
    pd.DataFrame({"text": texts, "score": rating - 1 + 0.1 * rng.standard_normal(30)}).to_parquet(
        tmp_path / "scores.parquet"
    )
    pd.DataFrame(
        {"uid": texts, "warmth": rating, "place": [f"s{i % 6}" for i in range(30)]}
    ).to_csv(tmp_path / "ratings.csv", index=False)
    words = [
        "correlate", tmp_path, tmp_path / "ratings.csv", "--id", "uid", "--rating", "warmth",
        "--out", tmp_path,
    ]  # fmt: skip
    pearson = run_json(*words, "--scenario", "place")["rows"][0]
    assert pearson["metric"] == "pearson"
    assert pearson["estimate"] > 0.9
    assert pearson["cluster_ci_low"] is not None
    assert (tmp_path / "correlation/correlation.csv").is_file()
    with pytest.raises(NotFoundError, match="no column 'where'"):
        run_json(*words, "--scenario", "where")
