"""The analyses of a stored run as a whole: one reading, kept parts, commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from click.testing import CliRunner

from actlake.analysis import JOBS, analyze_stage, stage_name, summarise_analysis
from actlake.analyze import (
    PARTS,
    analyze_run,
    confound_run,
    load_part,
    null_run,
    probe_run,
    random_run,
    save_part,
)
from actlake.cli import cli
from actlake.corpus import corpus_info
from actlake.schemas import (
    AnalyzeSpec,
    ArraySpec,
    CaptureSpec,
    EnvironmentInfo,
    InvalidInputError,
    ModelInfo,
    NotFoundError,
    ProbeSpec,
    ResultRow,
    RunPlan,
    TokenizerInfo,
    digest_json,
)
from actlake.stages import Results
from actlake.store import create_store, open_run
from tests.analyze.left_out import without_ablation

ARRAY = "resid_post_mean_response"
SPEC = AnalyzeSpec.parse(
    {
        "probe": {"methods": ["diff_means", "ridge", "logistic"], "n_bootstrap": 20,
                  "c_grid": [0.01, 1.0], "lambda_grid": [0.1, 10.0], "n_reliability": 3},
        "random": {"n_directions": 19},
        "nulls": {"n_draws": 19},
    }
)  # fmt: skip


def store_run(store, run, name, *, seed_model="made/up"):
    """Write a synthetic run with its corpus into a store, and seal it."""
    values = run.ds[ARRAY].values
    n_texts, n_layers, hidden = values.shape
    store.write_corpus(corpus_info("made-up", run.texts), run.texts)
    plan = RunPlan(
        run=name, corpus="made-up", corpus_digest=digest_json("corpus"),
        model=ModelInfo(
            name=seed_model, architecture="LlamaForCausalLM", n_layers=n_layers,
            hidden_size=hidden, n_parameters=1, dtype="float32", attn_implementation="eager",
        ),
        tokenizer=TokenizerInfo(digest=digest_json("tokenizer"), vocab_size=9),
        capture=CaptureSpec(pools=("mean_response",)), layers=tuple(range(n_layers)),
        n_texts=n_texts, n_tokens=n_texts, rows_digest=digest_json("rows"), rows_per_block=50,
        batch_tokens=10,
        arrays=(ArraySpec(name=ARRAY, dims=("text", "layer", "hidden"), shape=values.shape),),
    )  # fmt: skip
    writer = store.create_run(
        plan,
        coords={n: run.ds[n].values for n in run.ds.coords if n != "layer"},
        environment=EnvironmentInfo(actlake="0", python="3", platform="test"),
    )
    for block in range(plan.n_blocks):
        writer.write_block(block, {ARRAY: values[plan.block_rows(block)]})
    writer.seal()


@pytest.fixture(scope="module")
def stored(synthetic_run, tmp_path_factory):
    """A store with two runs over one corpus, of which the second has one layer of signal."""
    store = create_store(tmp_path_factory.mktemp("store"))
    kinds = {"one": 2.0, "two": 0.4}
    runs = {}
    for name, strength in kinds.items():
        run = synthetic_run(
            n_layers=3, hidden=40, strength=strength, n_neutral=3, n_test_scenarios=1
        )
        store_run(store, run, name)
        runs[name] = run
    return store, runs


@pytest.fixture(scope="module")
def opened(stored):
    store, runs = stored
    return open_run(store, "one", chunks="job"), runs["one"].texts


@pytest.fixture(scope="module")
def everything(opened):
    ds, texts = opened
    return analyze_run(ds, texts, spec=SPEC, scheduler="threads")


def same(one, two):
    """Frames are equal but for rounding."""
    pd.testing.assert_frame_equal(one, two, rtol=1e-7, atol=1e-9)


def test_together_they_give_what_each_gives_alone(opened, everything):
    ds, texts = opened
    assert list(everything) == list(PARTS)
    alone = probe_run(ds, texts, spec=SPEC.probe, random=SPEC.random, bow=SPEC.bow)
    same(everything["probe"].rows, alone.rows)
    by_generator = SPEC.probe.model_copy(update={"groups": "generator", "n_reliability": 0})
    other = probe_run(ds, texts, spec=by_generator, random=SPEC.random, bow=SPEC.bow)
    same(everything["generators"].rows, other.rows)
    same(everything["random"].bands, random_run(ds, spec=SPEC.random).bands)
    nulls = null_run(ds, texts, spec=SPEC.nulls, probe=SPEC.probe)
    same(everything["nulls"].rows, nulls.rows)
    same(everything["nulls"].bands, nulls.bands)
    confounds = confound_run(ds, texts, spec=SPEC.confounds, probe=SPEC.probe, bow=SPEC.bow)
    same(everything["confounds"].rows, confounds.rows)


def test_every_row_is_a_record_with_its_origin_and_no_number_is_missing_without_reason(everything):
    needed = (
        "run", "model", "cv", "groups", "n_pairs", "n_scenarios", "n_generators", "dtype",
        "dataset_digest", "split_digest", "seed", "code_version", "store_url", "content_digest",
    )  # fmt: skip
    for part in ("probe", "generators", "nulls", "confounds"):
        rows = everything[part].rows
        assert not (rows.estimate.isna() & rows.reason.isna()).any(), part
        for name in needed:
            assert rows[name].notna().all(), (part, name)
        whole = rows.ci_low.notna() | rows.reason.notna() | rows.ci_method.notna()
        assert (whole | (rows.metric == "selected_layer")).all(), part
        for record in rows.astype(object).where(rows.notna(), None).to_dict("records"):
            ResultRow.model_validate(record)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_comes_back_as_it_was_saved(everything, part, tmp_path):
    folder = save_part(everything[part], tmp_path / part)
    back = load_part(part, folder)
    for name in ("rows", "bands", "null", "scores"):
        if hasattr(back, name):
            pd.testing.assert_frame_equal(getattr(back, name), getattr(everything[part], name))
    if part == "random":
        xr.testing.assert_allclose(back.aurocs, everything[part].aurocs)
    for table in folder.glob("*.parquet"):
        if table.stem != "scores":
            assert len(pd.read_csv(table.with_suffix(".csv"))) == len(pd.read_parquet(table))
    with pytest.raises(NotFoundError):
        load_part(part, tmp_path / "elsewhere")


def test_comparisons_stand_beside_the_probes(everything, tmp_path):
    save_part(everything["probe"], tmp_path)
    found = pd.read_parquet(tmp_path / "comparisons.parquet")
    assert set(found.between) == {"method", "layer"}
    assert len(found[found.between == "method"]) == 3 * 3
    assert found.reason.notna().all()


def test_unknown_parts_are_named(opened):
    ds, texts = opened
    with pytest.raises(InvalidInputError, match=r"'null'\] \(did you mean 'nulls'\?\)"):
        analyze_run(ds, texts, spec=SPEC, parts=["null"])
    with pytest.raises(InvalidInputError, match="expected some of"):
        analyze_run(ds, texts, spec=SPEC, parts=[])


# -- stages


def reads(monkeypatch):
    """Count the openings of runs."""
    import actlake.store as store_room

    seen = []
    real = store_room.open_run
    monkeypatch.setattr(store_room, "open_run", lambda *a, **k: seen.append(a[1]) or real(*a, **k))
    return seen


def test_a_second_run_reads_what_is_there_and_computes_what_is_not(stored, tmp_path, monkeypatch):
    store, _ = stored
    results = Results(tmp_path)
    seen = reads(monkeypatch)

    def analyse(parts, spec=SPEC):
        outcome = analyze_stage(store, "one", results, spec=spec, parts=parts)
        return outcome.parts

    assert analyse(["random"]) == {"random": "done"}
    assert analyse(["random", "nulls"]) == {"random": "was done", "nulls": "done"}
    assert len(seen) == 2
    assert analyse(["random", "nulls"]) == {"random": "was done", "nulls": "was done"}
    assert len(seen) == 2
    fewer = SPEC.model_copy(update={"nulls": SPEC.nulls.model_copy(update={"n_draws": 9})})
    assert analyse(["random", "nulls"], fewer) == {"random": "was done", "nulls": "done"}
    bands = load_part("nulls", results.stage("one", stage_name("nulls"))).bands
    assert set(bands.n_draws) == {9}


def test_an_interrupted_analysis_leaves_whole_parts_only(stored, tmp_path, monkeypatch):
    store, _ = stored
    results = Results(tmp_path)
    import actlake.analyze as room

    real = room.save_part

    def breaks(result, folder):
        if "random" in str(folder):
            raise KeyboardInterrupt
        return real(result, folder)

    monkeypatch.setattr(room, "save_part", breaks)
    with pytest.raises(KeyboardInterrupt):
        analyze_stage(store, "one", results, spec=SPEC, parts=["nulls", "random"])
    assert results.key("one", stage_name("nulls")) is not None
    assert results.key("one", stage_name("random")) is None
    monkeypatch.undo()
    found = analyze_stage(store, "one", results, spec=SPEC, parts=["nulls", "random"])
    assert found.parts == {"nulls": "was done", "random": "done"}
    assert not list(tmp_path.glob("one/.analyze-*"))


def test_a_run_of_one_generator_is_analysed_without_that_axis(synthetic_run, tmp_path):
    run = synthetic_run(n_layers=1)
    run.texts = [t.model_copy(update={"generator": "only"}) for t in run.texts]
    run.ds["generator"] = ("text", np.full(run.ds.sizes["text"], "only"))
    store = create_store(tmp_path / "store")
    store_run(store, run, "single")
    spec = SPEC.model_copy(update={"probe": ProbeSpec(methods=("diff_means",), n_bootstrap=0)})
    found = analyze_stage(
        store, "single", Results(tmp_path / "results"), spec=spec, parts=["probe", "generators"]
    )
    assert found.parts == {
        "probe": "done", "generators": "left out: the run has one generator",
    }  # fmt: skip
    (row,) = summarise_analysis(Results(tmp_path / "results"), "single")
    assert row["other_generator"] is None


# -- commands


@pytest.fixture(scope="module")
def commanded(stored, tmp_path_factory):
    """The folder of `analyze all` over the whole store, and what it printed."""
    store, _ = stored
    out = tmp_path_factory.mktemp("results")
    done = run_command("all", store.url, "--out", out, "--draws", 19, "--methods",
                       "diff_means,ridge", "--json")  # fmt: skip
    return store, out, json.loads(done.stdout)


def run_command(*words, code=0):
    done = CliRunner().invoke(cli, ["analyze", *map(str, words)], catch_exceptions=True)
    assert done.exit_code == code, done.output
    return done


def test_all_analyses_every_run_of_a_store(commanded):
    _, out, printed = commanded
    assert [of["run"] for of in printed["runs"]] == ["one", "two"]
    for of in printed["runs"]:
        assert set(without_ablation(of["parts"]).values()) == {"done"}
        for folder in of["folders"].values():
            assert (Path(folder) / "stage.json").is_file()
            assert json.loads((Path(folder) / "provenance.json").read_text())["run"] == of["run"]
    strong = next(r for r in printed["summary"] if (r["run"], r["method"]) == ("one", "ridge"))
    assert strong["auroc"] > 0.8
    assert strong["p_max"] == 0.05
    assert strong["ci_low"] < strong["auroc"] <= strong["ci_high"]
    for name in ("bow", "surface", "other_generator", "residualised"):
        assert 0 <= strong[name] <= 1
    assert "bag of words" in strong["verdict"]
    assert {p.name for p in (out / "one").iterdir()} == {
        "geometry", JOBS, *(stage_name(part) for part in PARTS),
    }  # fmt: skip


def test_again_it_reads_and_computes_nothing(commanded):
    store, out, printed = commanded
    done = run_command("all", store.url, "--out", out, "--draws", 19, "--methods",
                       "diff_means,ridge", "--json")  # fmt: skip
    again = json.loads(done.stdout)
    states = [without_ablation(of["parts"]) for of in again["runs"]]
    assert {state for parts in states for state in parts.values()} == {"was done"}
    assert again["summary"] == printed["summary"]
    assert "was done" in done.stderr


def test_one_part_of_one_run_prints_a_table_or_where_it_lies(commanded):
    store, out, _ = commanded
    shown = run_command("probe", store.url, "one", "--out", out, "--methods", "diff_means,ridge",
                        "--pools", "mean_response")  # fmt: skip
    assert shown.stdout.splitlines()[0].split()[:4] == ["run", "pool", "method", "layer"]
    where = run_command("random", store.url, "two", "--out", out, "--directions", 7)
    assert str(out / "two" / "analyze-random") in where.stdout


def test_models_are_compared_from_kept_scores(commanded):
    _, out, _ = commanded
    done = run_command("compare", out, "--between", "run", "--method", "ridge", "--json",
                       "--bootstrap", 50)  # fmt: skip
    (row,) = json.loads(done.stdout)
    assert (row["first"], row["second"]) == ("one", "two")
    assert row["ci_low"] < row["delta"] < row["ci_high"]
    assert row["delta"] > 0
    assert (out / "comparisons" / "run.parquet").is_file()
    layers = run_command("compare", out, "one", "--between", "layer", "--method", "ridge")
    assert len(layers.stdout.splitlines()) == 3


def test_bad_words_and_empty_folders_are_errors_without_traceback(stored, tmp_path):
    store, _ = stored
    done = CliRunner().invoke(
        cli, ["analyze", "probe", store.url, "one", "--out", str(tmp_path), "--methods", "svm"]
    )
    assert isinstance(done.exception, InvalidInputError)
    assert "probe.methods.0" in str(done.exception)
    done = CliRunner().invoke(cli, ["analyze", "compare", str(tmp_path)])
    assert isinstance(done.exception, NotFoundError)
    assert "no analysed run here" in str(done.exception)
    done = CliRunner().invoke(cli, ["analyze", "nulls", store.url, "three", "--out", str(tmp_path)])
    assert isinstance(done.exception, NotFoundError)
