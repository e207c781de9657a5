"""What the commands say to input that is wrong: one line, and what to do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import corpus_info
from actlake.schemas import ActlakeError
from actlake.store import create_store
from tests.analyze.stored import write_run


def put(store, run, *, name):
    store.write_corpus(corpus_info(f"of-{name}", run.texts), run.texts)
    write_run(store, run.ds, name=name, rows=40, corpus=f"of-{name}")


@pytest.fixture(scope="module")
def store(synthetic_run, tmp_path_factory):
    """A store with the run ``a``, and ``b`` of other texts."""
    made = create_store(tmp_path_factory.mktemp("bad") / "store")
    put(made, synthetic_run(n_neutral=6, n_layers=1), name="a")
    other = synthetic_run(n_neutral=6, n_layers=1, seed=1)
    other.texts = [text.model_copy(update={"id": f"b-{text.id}"}) for text in other.texts]
    ids = np.array([f"b-{name}" for name in other.ds["text"].values])
    other.ds = other.ds.assign_coords(text=ids)
    put(made, other, name="b")
    return made.url


@pytest.fixture(scope="module")
def probed(store, tmp_path_factory):
    """The folder of the results of ``analyze probe`` with one method."""
    folder = tmp_path_factory.mktemp("probed")
    done = invoke("probe", store, "a", "--methods", "diff_means", "--out", folder)
    assert done.exit_code == 0, done.output
    return folder


def invoke(*words):
    return CliRunner().invoke(cli, ["analyze", *map(str, words)])


def said(*words):
    """Return the error of a command that fails, as the command line prints it."""
    done = invoke(*words)
    assert isinstance(done.exception, ActlakeError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


@pytest.mark.parametrize("part", ["probe", "random", "nulls", "confounds", "geometry", "ablation"])
def test_a_site_that_the_run_lacks_is_named_beside_those_it_has(store, tmp_path, part):
    found = said(part, store, "a", "--site", "attn_out", "--out", tmp_path)
    assert found == "the run has no site 'attn_out'; it has ['resid_post']"


def test_a_pool_or_method_that_does_not_exist_is_one_error(store, tmp_path):
    found = said("probe", store, "a", "--pools", "meen_response", "--out", tmp_path)
    assert found.startswith("options: probe.pools.0: Input should be 'mean_response', ")
    assert found.endswith("(got 'meen_response')")
    assert "literal" not in found
    assert ";" not in found
    found = said("probe", store, "a", "--methods", "diff_mean", "--out", tmp_path)
    assert found.startswith("options: probe.methods.0: Input should be 'diff_means', ")
    assert "too short" not in found
    assert "at least 1 item" not in found


@pytest.mark.parametrize("part", ["similarity", "transfer"])
def test_runs_that_cannot_be_compared_say_why(store, tmp_path, part):
    found = said(part, store, "--out", tmp_path)
    assert found.startswith("the runs ['a', 'b'] have fewer than 4 texts in common; ")
    assert found.endswith("extract them from one corpus")
    for runs in (["a"], ["a", "a"]):
        found = said(part, store, *runs, "--out", tmp_path)
        assert found == "a comparison needs two runs or more, got ['a']"


def test_parts_that_failed_alike_are_named_together(synthetic_run, tmp_path):
    made = create_store(tmp_path / "store")
    put(made, synthetic_run(n_scenarios=1, n_layers=1), name="a")
    done = invoke("all", made.url, "--draws", 9, "--out", tmp_path / "results")
    assert done.exit_code == 1
    whole = "probe, generators, random, nulls, confounds, ablation failed: leave-one-scenario-out"
    assert done.stderr.count(whole) == 1
    assert done.stderr.count("needs two scenarios or more") == 1


def test_a_site_that_is_missing_is_a_failure_of_the_ablation_too(store, tmp_path):
    done = invoke("all", store, "a", "--site", "attn_out", "--out", tmp_path)
    assert done.exit_code == 1
    assert "geometry, ablation failed: the run has no site 'attn_out'" in done.stderr


def test_labels_that_are_not_binary_are_refused_by_every_part(synthetic_run, tmp_path):
    run = synthetic_run(n_layers=1)
    label = run.ds["label"].values.copy()
    label[3] = 2
    run.ds["label"] = ("text", label)
    made = create_store(tmp_path / "store")
    put(made, run, name="a")
    for part in ("probe", "random", "nulls", "confounds", "geometry"):
        found = said(part, made.url, "a", "--out", tmp_path / "results")
        assert found == "labels must be 1 (positive), 0 (negative) or -1 (neutral), got [2]"


def test_probes_that_are_not_there_are_not_compared(probed):
    found = said("compare", probed, "--method", "lda")
    assert found == "run 'a' has no scores of method 'lda'; it has mean_response diff_means"
    assert "nothing to compare between methods" in said("compare", probed)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"id": ["pos-0001"], "rating": [1]}, "the ratings have no column 'text'"),
        ({"text": ["nobody"], "rating": [1]}, "none of the 96 scored texts is in the 1 ratings"),
        ({"text": ["pos-0001"] * 2, "rating": [1, 2]}, "1 texts are rated twice"),
        (
            {"text": ["pos-0001", "pos-0002"], "rating": ["warm", "cold"]},
            "no rating of a scored text is a number: the column 'rating' has ['warm', 'cold'], ",
        ),
    ],
)
def test_ratings_that_cannot_be_used_say_what_they_have(probed, tmp_path, table, message):
    pd.DataFrame(table).to_csv(tmp_path / "ratings.csv", index=False)
    scores = probed / "a/analyze-probe"
    assert message in said("correlate", scores, tmp_path / "ratings.csv", "--out", tmp_path)
