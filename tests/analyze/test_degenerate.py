"""The whole suite on degenerate runs: an error in words, or tables without an unsaid number."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from actlake.analysis_job import AnalysisJob
from actlake.analyze import directions_record, score_direction
from actlake.corpus import corpus_info
from actlake.schemas import AnalyzeSpec, GeometrySpec, InvalidInputError
from actlake.stages import Results
from actlake.store import create_store
from actlake.suite import analyze_suite
from tests.analyze.left_out import without_ablation
from tests.analyze.reasoned import assert_all_reasoned, assert_reasoned
from tests.analyze.stored import write_run

SPEC = AnalyzeSpec.parse(
    {
        "probe": {"methods": ["diff_means", "lda", "logistic", "ridge", "pca_diff"],
                  "n_bootstrap": 10, "n_reliability": 2, "c_grid": [0.01, 1.0]},
        "random": {"n_directions": 9}, "nulls": {"n_draws": 9},
        "geometry": {"n_permutations": 9, "n_splits": 3, "n_bootstrap": 3, "tsne_seeds": [0]},
        "transfer": {"n_permuted": 2, "n_random": 5, "n_bootstrap": 5},
        "correlation": {"n_bootstrap": 10},
    },
    where="test",
)  # fmt: skip
LAYERS = ("probe", "generators", "random", "nulls", "confounds")


def suite(folder, run, *, names=("a", "b"), ratings=None):
    """The states of every part of a store that has the run under two names."""
    store = create_store(folder / "store")
    store.write_corpus(corpus_info("made-up", run.texts), run.texts)
    for name in names:
        write_run(store, run.ds, name=name, rows=40)
    table = folder / "ratings.csv"
    if ratings is not None:
        ratings.to_csv(table, index=False)
    job = AnalysisJob(
        store, Results(folder / "results"), SPEC, ratings=table if ratings is not None else None,
        scheduler="synchronous",
    )  # fmt: skip
    outcomes = analyze_suite(job, names)
    return {k: state for outcome in outcomes for k, state in outcome.parts.items()}


def rated(run, value=None):
    ids = [text.id for text in run.texts if text.arm != "neutral"]
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 3, len(ids)) if value is None else value
    return pd.DataFrame({"text": ids, "rating": drawn})


def small(synthetic_run, **fields):
    defaults = {"n_scenarios": 4, "pairs_per_scenario": 3, "n_neutral": 8, "n_test_scenarios": 1}
    return synthetic_run(**(defaults | fields))


def constant(x, _texts):
    x[:, 0] = 0.25
    x[:, 1, :6] = 3.5
    return x


def make_ordinary(synthetic_run):
    return small(synthetic_run)


def make_smallest(synthetic_run):
    return synthetic_run(n_scenarios=2, pairs_per_scenario=1, subsets=("none",), n_layers=1)


def make_constant(synthetic_run):
    return small(synthetic_run, activations=constant)


def make_equal_words(synthetic_run):
    return small(synthetic_run, responses=lambda _arm, _k: "the very same words")


def make_perfect(synthetic_run):
    return small(synthetic_run, strength=60.0,
                 responses=lambda arm, k: f"{arm} words number {k % 3}")  # fmt: skip


def make_fewer_than_folds(synthetic_run):
    return synthetic_run(
        n_scenarios=3, pairs_per_scenario=1, subsets=("plain", "none"), n_neutral=3
    )


def make_huge(synthetic_run):
    return small(synthetic_run, activations=lambda x, _t: x * 1e12)


CASES = {
    "ordinary": make_ordinary, "two pairs": make_smallest, "constant features": make_constant,
    "equal words": make_equal_words, "perfect": make_perfect,
    "fewer pairs than folds": make_fewer_than_folds, "huge values": make_huge,
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_no_table_has_an_unsaid_number(synthetic_run, tmp_path, case):
    run = CASES[case](synthetic_run)
    states = suite(tmp_path, run, ratings=rated(run))
    assert all(s in ("done", "was done") or s.startswith(("left out: ", "failed: "))
               for s in states.values())  # fmt: skip
    for part in LAYERS:
        if case != "two pairs" or part != "generators":
            assert states[part] == "done", (part, states[part])
    names = assert_all_reasoned(tmp_path / "results")
    assert {"probe", "null", "scores", "random", "nulls", "bands", "confounds"} <= names
    if case in ("ordinary", "constant features", "huge values"):
        assert set(without_ablation(states).values()) == {"done"}, states
        assert {"geometry", "geometry_points", "similarity", "transfer", "correlation"} <= names


@pytest.mark.parametrize("value", [1, np.nan, 9])
def test_ratings_that_do_not_vary_or_are_missing_are_said(synthetic_run, tmp_path, value):
    run = small(synthetic_run)
    states = suite(tmp_path, run, names=("a",), ratings=rated(run, value))
    assert states["correlation"] == "done"
    rows = pd.read_parquet(tmp_path / "results/correlation/correlation.parquet")
    assert rows[rows.metric == "pearson"].estimate.isna().all()
    assert_reasoned(rows, "correlation")


def nan_row(run):
    values = run.ds["resid_post_mean_response"].values.copy()
    row = int(np.flatnonzero(run.ds["text"].values == "neg-0003")[0])
    values[row, 1, 2] = np.nan
    run.ds["resid_post_mean_response"] = (("text", "layer", "hidden"), values)
    return run


def strange_label(run):
    label = run.ds["label"].values.copy()
    label[3] = 2
    return with_label(run, label)


def one_class(run):
    label = run.ds["label"].values.copy()
    label[label == 0] = -1
    return with_label(run, label)


def with_label(run, label):
    run.ds["label"] = ("text", label)
    return run


def no_pair(run):
    run.ds["pair"] = ("text", np.array([f"own-{i}" for i in range(run.ds.sizes["text"])]))
    return run


def one_scenario(run):
    run.ds["scenario"] = ("text", np.full(run.ds.sizes["text"], "only"))
    return run


REFUSED = {
    "NaN rows": (nan_row, r"layer 1: 1 of 24 rows have NaN .*'neg-0003'"),
    "labels not binary": (strange_label, r"labels must be 1 .* got \[2\]"),
    "one class": (one_class, "one class: no original text is negative"),
    "no pair": (no_pair, "no complete pair"),
    "one scenario": (one_scenario, "two scenarios or more"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_analysed_is_said_part_by_part(synthetic_run, tmp_path, case):
    change, words = REFUSED[case]
    run = change(small(synthetic_run, chunked=False))
    states = suite(tmp_path, run)
    for part in ("probe", "nulls", "confounds"):
        assert states[part].startswith("failed: "), (part, states[part])
        assert re.search(words, states[part]), states[part]
    assert_all_reasoned(tmp_path / "results")
    assert not list((tmp_path / "results").glob("*/analyze-probe"))


def test_models_without_common_texts_are_left_out_in_words(synthetic_run, tmp_path):
    one, other = small(synthetic_run), small(synthetic_run)
    ids = np.array([f"other-{i}" for i in range(other.ds.sizes["text"])])
    store = create_store(tmp_path / "store")
    store.write_corpus(corpus_info("made-up", one.texts), one.texts)
    write_run(store, one.ds, name="a", rows=40)
    write_run(store, other.ds.assign_coords(text=ids), name="b", rows=40)
    job = AnalysisJob(store, Results(tmp_path / "results"), SPEC, scheduler="synchronous")
    *_, together = analyze_suite(job, ["a", "b"])
    assert together.parts["similarity"] == (
        "left out: the runs ['a', 'b'] have fewer than 4 texts in common; models are compared on "
        "the same texts: extract them from one corpus"
    )
    assert together.parts["transfer"].startswith("left out: the runs")
    assert not together.errors


def test_a_direction_of_another_site_pool_or_model_is_refused(synthetic_run):
    from actlake.analyze import geometry_run, probe_run
    from actlake.schemas import BagOfWordsSpec, ProbeSpec, RandomSpec

    run = small(synthetic_run)
    found = probe_run(
        run.ds, run.texts, spec=ProbeSpec(n_bootstrap=0, n_reliability=0, methods=("diff_means",)),
        random=RandomSpec(n_directions=1), bow=BagOfWordsSpec(), scheduler="synchronous",
    ).directions  # fmt: skip
    spec = GeometrySpec(n_permutations=3, n_splits=2, n_bootstrap=2, tsne_seeds=())
    options = {"spec": spec, "scheduler": "synchronous"}
    with pytest.raises(InvalidInputError, match="unlike sites cannot be compared"):
        geometry_run(run.ds, directions=found.assign_attrs(site="mlp_out"), **options)
    other = found.assign_coords(pool=np.array(["last_prompt"], dtype=object))
    with pytest.raises(InvalidInputError, match=r"of the pools \['last_prompt'\], and the run is"):
        geometry_run(run.ds, directions=other, **options)
    record = directions_record(found, "diff_means", "mean_response", layer=0)
    for change, words in (
        ({"site": "mlp_out"}, "reads mlp_out_mean_response, which the run lacks"),
        ({"pool": "last_prompt"}, "reads resid_post_last_prompt, which the run lacks"),
        ({"layer": 7}, "at layer 7"),
        ({"model": "other"}, "a direction reads its own model"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            score_direction(run.ds, record.model_copy(update=change))
