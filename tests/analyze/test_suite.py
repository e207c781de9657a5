from __future__ import annotations

from collections import Counter
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from zarr.storage import MemoryStore, WrapperStore

from actlake.analyze import pca_run, probe_run
from actlake.analyze.auroc import auroc
from actlake.analyze.parts import paired_rows
from actlake.analyze.probes import fit_diff_means
from actlake.analyze.schedule import run_tasks
from actlake.analyze.splits import group_folds, pair_table
from actlake.schemas import (
    BagOfWordsSpec,
    InvalidInputError,
    NotFoundError,
    PcaSpec,
    ProbeSpec,
    RandomSpec,
    ResultRow,
)

CEILING = "ceiling: this dataset cannot separate semantic from lexical evidence"
POOLS = ("mean_response", "last_prompt")


def probes(run, *, methods=("diff_means", "logistic"), scheduler="synchronous", **spec):
    spec = {"n_bootstrap": 60, "c_grid": (1e-2, 1.0)} | spec
    return probe_run(
        run.ds,
        run.texts,
        spec=ProbeSpec(methods=methods, **spec),
        random=RandomSpec(n_directions=99),
        bow=BagOfWordsSpec(),
        scheduler=scheduler,
    )


@pytest.fixture(scope="module")
def typical(synthetic_run):
    """Two pools, three layers of which the last has the signal, two designed subsets."""

    def late_signal(x, texts):
        x[[t.arm == "positive" for t in texts], 2, 0] += 2.0
        return x

    return synthetic_run(
        n_layers=3,
        pools=POOLS,
        strength=0.0,
        n_neutral=5,
        n_test_scenarios=2,
        activations=late_signal,
    )


@pytest.fixture(scope="module")
def result(typical):
    return probes(typical)


def pick(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


def test_every_pool_layer_method_and_subset_has_one_row_per_metric(result):
    rows = result.rows[(result.rows.analysis == "probe") & (result.rows.metric != "selected_layer")]
    keys = ["pool", "layer", "method", "subset", "metric"]
    counts = rows.groupby(keys, dropna=False).size()
    assert (counts == 1).all()
    # Per layer 6 metrics and the recall beside neutral texts; nested once per pool and over both.
    assert len(counts) == 2 * 3 * (2 * (3 * 7 + 1) + 1)
    assert set(rows.subset) == {"all", "plain", "balanced"}


def test_rows_carry_their_provenance(result):
    row = pick(result.rows, analysis="probe", metric="auroc", subset="all").iloc[0]
    assert row.run == "synthetic"
    assert row.cv == "leave-one-scenario-out (6 folds)"
    assert (row.groups, row.n_pairs, row.n_texts, row.n_scenarios) == ("scenario", 48, 96, 6)
    assert (row.null, row.n_draws) == ("isotropic", 99)
    assert row.depth == pytest.approx(1 / 3)
    for name in ("dataset_digest", "split_digest"):
        assert row[name].startswith("sha256:")
    assert row.code_version
    assert row.store_url == "memory://store"


def test_every_row_is_a_valid_record_and_no_estimate_is_missing_without_reason(result):
    frame = result.rows
    assert not (frame.estimate.isna() & frame.reason.isna()).any()
    for record in frame.astype(object).where(frame.notna(), None).to_dict("records"):
        ResultRow.model_validate(record)


def test_signal_is_found_on_its_layer_and_selected_inside_the_folds(result):
    whole = pick(result.rows, analysis="probe", subset="all", pool="last_prompt")
    for method in ("diff_means", "logistic"):
        curve = pick(whole, metric="auroc", method=method).set_index("layer")
        assert curve.estimate[2] > 0.8
        assert curve.p_value_max[2] <= 0.05
        assert curve.p_value_max[0] > 0.05
        nested = pick(whole, metric="auroc_nested", method=method).iloc[0]
        assert nested.estimate > 0.75
        assert pd.isna(nested.layer)
    assert set(result.selected_layer) == {(p, m) for p in POOLS for m in ("diff_means", "logistic")}
    assert set(result.selected_layer.values()) == {2}
    assert (
        "inner leave-one-scenario-out folds"
        in pick(whole, metric="auroc_nested", method="diff_means").tuned.item()
    )


def test_the_pool_can_be_chosen_inside_the_folds_as_well(result):
    nested = pick(result.rows, analysis="probe", metric="auroc_nested", subset="all")
    free = nested[nested.pool.isna()].set_index("method")
    assert set(free.index) == {"diff_means", "logistic"}
    assert free.tuned["diff_means"] == "pool and layer inside inner leave-one-scenario-out folds"
    assert free.tuned["logistic"] == "pool and layer and C inside 3 inner folds over scenarios"
    # Two pools are more draws to be the best of: the corrected p cannot fall.
    for method in free.index:
        single = nested[(nested.method == method) & nested.pool.notna()]
        assert free.estimate[method] > 0.75
        if free.estimate[method] <= single.estimate.max():
            assert free.p_value_max[method] >= single.p_value_max.min()


def test_out_of_fold_scores_give_the_auroc_of_the_rows(result):
    scores = pick(result.scores, pool="mean_response", method="logistic")
    scores = scores[(scores.layer == 2) & scores.cv.str.startswith("leave")]
    assert scores.text.is_unique
    row = pick(result.rows, analysis="probe", metric="auroc", pool="mean_response", layer=2)
    row = pick(row, method="logistic", subset="all").iloc[0]
    assert auroc(scores.score, scores.label) == pytest.approx(row.estimate)


def test_diff_means_scores_are_those_of_a_plain_loop(typical, result):
    table = pair_table(typical.ds)
    values = typical.ds["resid_post_mean_response"].values[:, 1]
    x = paired_rows(values, table, where="test")
    expected: dict[str, float] = {}
    for name in set(table.scenario):
        held, others = np.flatnonzero(table.scenario == name), table.scenario != name
        scores = fit_diff_means(x[:, others]).score(x[:, held])
        expected |= dict(zip(table.texts[:, held].ravel(), scores.ravel(), strict=True))
    found = pick(result.scores, pool="mean_response", method="diff_means", layer=1)
    found = found[found.cv.str.startswith("leave")].set_index("text").score
    np.testing.assert_allclose(found[list(expected)], list(expected.values()), atol=1e-10)


def test_the_test_split_is_judged_by_the_stored_directions(typical, result):
    ds = typical.ds
    test = (ds["split"].values == "test") & (ds["label"].values >= 0)
    at = result.directions.sel({"method": "diff_means", "pool": "mean_response", "layer": 2})
    x = ds["resid_post_mean_response"].values[test, 2]
    score = float(at["norm"]) * (x @ at["vector"].values) + float(at["bias"])
    rows = pick(result.rows, analysis="probe_test", cv="train→test split", subset="all")
    rows = pick(rows, pool="mean_response", method="diff_means", layer=2, metric="auroc")
    assert rows.estimate.item() == pytest.approx(auroc(score, ds["label"].values[test]))
    assert rows.n_pairs.item() == 16


def test_directions_are_unit_vectors_with_the_separation_of_the_class_means(typical, result):
    directions = result.directions
    assert directions["vector"].dims == ("method", "pool", "layer", "hidden")
    lengths = np.linalg.norm(directions["vector"].values, axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-12)
    at = directions.sel({"method": "diff_means"})
    np.testing.assert_allclose(at["separation"], at["norm"])
    assert directions.attrs["fitted_on"] == "split=train"
    assert directions.attrs["n_neutral_ignored"] == 5


def test_null_bands_stand_beside_every_layer_and_subset(result):
    null = result.null
    assert len(null) == 2 * 3 * 3
    assert (null.n_draws == 99).all()
    assert ((null.q025 < null.q50) & (null.q50 < null.q975) & (null.q975 <= null["max"])).all()
    whole = pick(null, subset="all")
    np.testing.assert_allclose(whole.sd, whole.sd_formula, rtol=0.35)


def test_perfect_words_give_the_ceiling_verdict_on_every_auroc_row(synthetic_run):
    """A planted shortcut: the word alone tells the arm, whatever the activations say."""
    run = synthetic_run(
        responses=lambda arm, k: f"{'help' if arm == 'positive' else 'task'} number {k % 5}"
    )
    rows = probes(run).rows
    compared = rows[rows.metric.str.startswith("auroc") & (rows.analysis == "probe")]
    assert len(compared) > 20
    assert (compared.verdict == CEILING).all()
    assert (compared.bow_estimate >= 0.99).all()
    own = pick(rows, analysis="bow", metric="auroc", subset="all").iloc[0]
    assert own.estimate == 1.0
    assert own.boundary


def test_words_at_chance_leave_a_strong_probe_above_them(synthetic_run):
    run = synthetic_run(n_scenarios=8, pairs_per_scenario=10, strength=3.0)
    rows = pick(probes(run).rows, analysis="probe", metric="auroc", subset="all")
    assert rows.verdict.str.startswith("above the bag of words by").all()


def test_what_predicts_only_inside_a_scenario_gives_chance(synthetic_run):
    """The label is a direction that every scenario draws anew: nothing of it generalises."""

    def own_direction(x, texts):
        rng = np.random.default_rng(9)
        directions = {t.scenario: 3 * rng.standard_normal(x.shape[-1]) for t in texts}
        for row, text in enumerate(texts):
            x[row] += (1 if text.arm == "positive" else -1) * directions[text.scenario]
        return x

    run = synthetic_run(
        n_scenarios=24,
        pairs_per_scenario=6,
        hidden=60,
        n_layers=1,
        strength=0.0,
        activations=own_direction,
    )
    rows = pick(probes(run).rows, analysis="probe", subset="all", metric="auroc")
    assert rows.estimate.between(0.3, 0.7).all()
    # The same data, split so that scenarios leak: the trap that the folds avoid.
    table = pair_table(run.ds)
    values = run.ds["resid_post_mean_response"].values[:, 0]
    x = paired_rows(values, table, where="test")
    leaky = np.full((2, table.n_pairs), np.nan)
    fold = group_folds(table.pair, 6, seed=0)
    for number in range(6):
        probe = fit_diff_means(x[:, fold != number])
        leaky[:, fold == number] = probe.score(x[:, fold == number])
    assert auroc(leaky.ravel(), table.labels) > 0.85


def test_offsets_of_scenarios_do_not_leak_into_pure_noise(synthetic_run):
    run = synthetic_run(n_scenarios=10, pairs_per_scenario=10, n_layers=1, strength=0.0, offset=5.0)
    rows = pick(probes(run).rows, analysis="probe", subset="all")
    for metric in ("auroc", "auroc_within", "auroc_nested"):
        assert pick(rows, metric=metric).estimate.between(0.35, 0.65).all()


class CountingStore(WrapperStore[MemoryStore]):
    """Counts how often each chunk is read; xarray opens a read-only copy, so copies share it."""

    reads: ClassVar[Counter[str]] = Counter()

    async def get(self, key, prototype, byte_range=None):
        if "/c/" in key:
            self.reads[key] += 1
        return await super().get(key, prototype, byte_range)


@pytest.fixture
def counted(synthetic_run):
    run = synthetic_run(n_layers=4, pools=POOLS, n_neutral=2)
    names = [f"resid_post_{pool}" for pool in POOLS]
    memory = MemoryStore()
    arrays = run.ds[names].drop_vars(run.ds.coords).chunk({"text": 40, "layer": 1})
    arrays.to_zarr(memory, zarr_format=3, consolidated=False)
    store = CountingStore(memory)
    lazy = xr.open_zarr(store, chunks={}, consolidated=False)
    run.ds = lazy.assign_coords(run.ds.coords).assign_attrs(run.ds.attrs)
    store.reads.clear()
    run.store = store
    return run


def test_one_layer_reads_its_own_chunks_only(counted):
    counted.ds = counted.ds.isel(layer=[2])
    probes(counted, pools=("last_prompt",), methods=("diff_means",))
    assert counted.store.reads == {f"resid_post_last_prompt/c/{i}/2/0": 1 for i in range(3)}


def test_a_whole_analysis_reads_every_chunk_once(counted):
    probes(counted, scheduler="threads")
    wanted = {
        f"resid_post_{pool}/c/{i}/{layer}/0": 1
        for pool in POOLS
        for i in range(3)
        for layer in range(4)
    }
    assert counted.store.reads == wanted
    counted.store.reads.clear()
    pca_run(counted.ds, spec=PcaSpec(), scheduler="threads")
    assert counted.store.reads == wanted


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_local_schedulers_give_the_same_tables(typical, result, scheduler):
    other = probes(typical, scheduler=scheduler)
    assert_same(other, result)


def test_a_cluster_gives_the_same_tables(typical, result):
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        other = probes(typical, scheduler=cluster.scheduler_address)
    assert_same(other, result)


def assert_same(one, two):
    for name in ("rows", "null", "scores"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(two, name), rtol=1e-6)
    xr.testing.assert_allclose(one.directions, two.directions)


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(InvalidInputError, match=r"'thread' \(did you mean 'threads'\?\)"):
        run_tasks([], scheduler="thread")


def test_a_run_in_memory_gives_the_same_rows_as_a_lazy_one(typical, result):
    typical.ds, lazy = typical.ds.compute(), typical.ds
    try:
        assert_same(probes(typical), result)
    finally:
        typical.ds = lazy


def test_rows_with_nan_are_named(synthetic_run):
    run = synthetic_run(n_neutral=1, chunked=False)
    row = int(np.flatnonzero(run.ds["text"].values == "neg-0007")[0])
    run.ds["resid_post_mean_response"][row, 1, 3] = np.nan
    with pytest.raises(InvalidInputError, match=r"layer 1: 1 of 96 rows .*'neg-0007'"):
        probes(run, scheduler="threads")
    with pytest.raises(InvalidInputError, match=r"layer 1: 1 of 97 rows .*'neg-0007'"):
        pca_run(run.ds, spec=PcaSpec())


def test_nan_in_neutral_rows_does_not_concern_a_probe(synthetic_run):
    run = synthetic_run(n_neutral=1, chunked=False)
    row = int(np.flatnonzero(run.ds["label"].values == -1)[0])
    run.ds["resid_post_mean_response"][row] = np.nan
    assert np.isfinite(probes(run).null["mean"]).all()


def test_missing_sites_pools_and_arrays_are_named(synthetic_run):
    run = synthetic_run()
    with pytest.raises(NotFoundError, match=r"no pool \['last_prompt'\] .* it has \['mean_resp"):
        probes(run, pools=("last_prompt",))
    with pytest.raises(NotFoundError, match=r"no site 'resid_mid'.*it has \['resid_post'\]"):
        pca_run(run.ds, spec=PcaSpec(), site="resid_mid")
    with pytest.raises(NotFoundError, match="no pooled activations"):
        pca_run(run.ds.drop_vars("resid_post_mean_response"), spec=PcaSpec())


def test_a_layer_without_any_difference_has_reasons_and_no_direction(synthetic_run):
    def flat(x, _texts):
        x[:, 0] = 2.5
        return x

    found = probes(synthetic_run(activations=flat))
    rows = pick(found.rows, analysis="probe", layer=0, subset="all")
    assert (pick(rows, metric="auroc").estimate == 0.5).all()
    assert (pick(rows, metric="auroc").p_value == 1.0).all()
    assert (pick(rows, metric="auroc").reason == "all scores are equal").all()
    missing = pick(found.null, layer=0)
    assert missing.sd_formula.isna().all()
    assert (missing.reason == "no within-class variance").all()
    assert (found.directions["norm"].sel(layer=0) == 0).all()


def test_the_bag_of_words_is_judged_on_the_same_folds_and_subsets(result):
    own = result.rows[result.rows.analysis == "bow"]
    assert set(own.subset) == {"all", "plain", "balanced"}
    assert own.layer.isna().all()
    probe = pick(result.rows, analysis="probe", metric="auroc", layer=0, method="diff_means")
    for subset in ("all", "plain", "balanced"):
        expected = pick(own, metric="auroc", subset=subset).estimate.item()
        np.testing.assert_allclose(pick(probe, subset=subset).bow_estimate, expected)


def test_two_scenarios_are_enough(synthetic_run):
    rows = probes(synthetic_run(n_scenarios=2, strength=5.0)).rows
    nested = pick(rows, analysis="probe", metric="auroc_nested", subset="all")
    assert nested.estimate.between(0.8, 1.0).all()
    assert nested.tuned.str.contains("pairs, where one scenario is left").all()


def test_more_scenarios_than_max_folds_are_grouped(synthetic_run):
    rows = probes(synthetic_run(n_scenarios=9, pairs_per_scenario=3), max_folds=4).rows
    assert set(rows[rows.analysis == "probe"].cv) == {
        "stratified group k-fold on scenario (4 folds)"
    }


def test_a_corpus_without_test_split_has_no_test_rows(synthetic_run):
    found = probes(synthetic_run())
    assert set(found.rows.analysis) == {"probe", "bow"}
    assert found.directions.attrs["n_pairs"] == 48


def test_all_five_probes_find_the_signal_and_say_what_they_tuned(typical):
    methods = ("diff_means", "lda", "logistic", "ridge", "pca_diff")
    found = probes(typical, methods=methods, pools=("last_prompt",))
    rows = pick(found.rows, analysis="probe", subset="all", pool="last_prompt")
    curve = pick(rows, metric="auroc", layer=2).set_index("method")
    assert (curve.estimate[["diff_means", "lda", "logistic", "ridge"]] > 0.8).all()
    assert curve.tuned["ridge"] == "lambda inside inner leave-one-scenario-out folds"
    assert curve.tuned[["diff_means", "lda", "pca_diff"]].isna().all()
    nested = pick(rows, metric="auroc_nested").set_index("method")
    assert nested.tuned["ridge"].startswith("layer and lambda inside inner leave-one")
    assert nested.tuned["pca_diff"] == "layer inside 3 inner folds over scenarios"
    penalty = found.directions["penalty"].sel({"pool": "last_prompt", "layer": 2})
    assert 0 < penalty.sel({"method": "lda"}) < 1
    assert np.isfinite(penalty.sel({"method": "ridge"}))
    assert np.isnan(penalty.sel({"method": "diff_means"}))
    recall = pick(rows, metric="recall_at_1pct_fpr", layer=2)
    assert recall.estimate.between(0, 1).all()
    assert recall.ci_method.str.contains("of 5 neutral texts").all()


def test_generators_can_be_the_groups_of_the_outer_folds(typical):
    found = probes(typical, methods=("diff_means",), pools=("last_prompt",), groups="generator")
    row = pick(found.rows, analysis="probe", metric="auroc", layer=2, subset="all").iloc[0]
    assert row.cv == "leave-one-generator-out (2 folds)"
    assert row.groups == "generator"
    assert row.estimate > 0.8
    assert (pick(found.rows, analysis="probe_test").groups == "scenario").all()
    assert set(found.scores[found.scores.cv == row.cv].fold) == {"generator-0", "generator-1"}
