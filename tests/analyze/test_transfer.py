"""Transfer of probes between made-up models whose relation is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from actlake.analyze.depth import compare_by_depth, depth_curves
from actlake.analyze.suite import probe_run
from actlake.analyze.transfer_run import transfer_run
from actlake.schemas import (
    BagOfWordsSpec,
    InvalidInputError,
    NotFoundError,
    ProbeSpec,
    RandomSpec,
    TransferRow,
    TransferSpec,
)

SPEC = TransferSpec(n_permuted=8, n_random=60, n_bootstrap=200, n_components=10)


def second_model(run, *, hidden=16, related=True, seed=1):
    """A wider model: a linear image of the first with noise, or one of its own."""
    rng = np.random.default_rng(seed)
    x = run.ds["resid_post_mean_response"].values
    mixing = rng.standard_normal((hidden, x.shape[2]))
    y = x @ mixing.T if related else rng.standard_normal((*x.shape[:2], hidden)) * 3
    if not related:
        y[..., :2] += 3.0 * (run.ds["label"].values == 1)[:, None, None]
    y = y + 0.2 * rng.standard_normal(y.shape) + 4
    ds = run.ds.drop_vars("resid_post_mean_response")
    ds = ds.assign(resid_post_mean_response=(("text", "layer", "hidden"), y.astype(np.float32)))
    return ds.assign_attrs(run="b", model="made/b", hidden_size=hidden)


@pytest.fixture(scope="module")
def related(synthetic_run):
    run = synthetic_run(n_neutral=80, hidden=10, strength=1.5, n_test_scenarios=2)
    return run, {"a": run.ds.assign_attrs(run="a"), "b": second_model(run)}


@pytest.fixture(scope="module")
def table(related):
    run, runs = related
    return transfer_run(runs, run.texts, spec=SPEC, scheduler="synchronous")


def pick(table, **where):
    for name, value in where.items():
        table = table[table[name].isna() if value is None else table[name] == value]
    return table


def test_a_probe_keeps_its_auroc_through_the_right_map(table):
    found = pick(table, metric="auroc", map="ridge", control=None)
    assert len(found) == 4  # two directions, two layers
    at_home = pick(table, control="target_trained").set_index(["run", "layer"]).estimate
    for _, row in found.iterrows():
        assert row.estimate == pytest.approx(at_home[row.source_run, row.layer], abs=0.03)
        assert row.ceiling_estimate == at_home[row.run, row.layer]
    assert (found.estimate > 0.7).all()
    assert (found.map_r2 > 0.8).all()
    assert (found.ci_low < found.estimate).all()
    assert (found.ceiling_delta_ci_low <= found.ceiling_delta).all()
    assert (found.p_value < 0.2).all()


def test_permuted_anchors_lose_the_relation(table):
    """O8: held-out R² ≤ 0 and AUROC about one half, far below the map's own."""
    for name in ("procrustes", "ridge", "cca"):
        found = pick(table, metric="auroc", map=name, control="permuted_anchors")
        assert (found.map_r2 <= 0).all()
    every = pick(table, metric="auroc", control="permuted_anchors")
    assert every.estimate.mean() == pytest.approx(0.5, abs=0.12)


def test_every_control_stands_beside_the_transfer(table):
    controls = set(table.control.dropna())
    assert controls == {
        "target_trained", "bag_of_words", "mean_only", "random_orthogonal", "random_source",
        "permuted_anchors",
    }  # fmt: skip
    assert (pick(table, control="mean_only").estimate == 0.5).all()
    assert (pick(table, control="mean_only").map_r2 == 0).all()
    random = pick(table, metric="auroc", control="random_source").estimate
    assert random.mean() == pytest.approx(0.5, abs=0.12)
    assert pick(table, metric="auroc", control=None).bow_delta.notna().all()
    assert (table.n_anchors == 80).all()
    assert (
        table[["split_digest", "dataset_digest", "content_digest", "code_version"]]
        .notna()
        .all(axis=None)
    )
    assert (table.anchor_groups == "text").all()  # the neutral texts have one scenario


def test_models_of_one_width_have_the_identity_as_a_control(related):
    run, runs = related
    same = {"a": runs["a"], "c": second_model(run, hidden=10, related=False)}
    found = transfer_run(same, spec=SPEC, scheduler="synchronous")
    assert len(pick(found, control="mean_shift")) == 4
    assert found.bow_estimate.isna().all()
    assert "bag_of_words" not in set(found.control.dropna())


def test_independent_models_do_not_transfer(related):
    run, runs = related
    apart = {"a": runs["a"], "c": second_model(run, related=False)}
    found = transfer_run(apart, spec=SPEC, scheduler="synchronous")
    ridge = pick(found, metric="auroc", map="ridge", control=None)
    assert (ridge.map_r2 < 0.05).all()
    assert (ridge.ceiling_delta < -0.1).all()


def test_vectors_reach_the_targets_own_direction(table):
    found = pick(table, metric="vector_cosine", map="ridge")
    assert (found.estimate > 0.7).all()
    assert (pick(table, metric="vector_covector_cosine", map="procrustes").estimate > 0.9).all()
    assert (pick(table, metric="vector_covector_cosine", map="ridge").estimate < 0.9).all()


def test_rows_are_records_and_processes_give_the_same(related, table):
    run, runs = related
    for values in table.astype(object).where(table.notna(), None).to_dict("records"):
        TransferRow.parse(values)
    again = transfer_run(runs, run.texts, spec=SPEC, scheduler="processes")
    pd.testing.assert_frame_equal(again, table)


def test_train_anchors_score_the_test_split_alone(related):
    run, runs = related
    spec = SPEC.model_copy(update={"anchors": "train", "maps": ("ridge",)})
    found = transfer_run(runs, run.texts, spec=spec, scheduler="synchronous")
    assert (found.n_pairs == 16).all()
    assert (found.cv == "train→test split").all()
    assert (found.anchor_groups == "scenario").all()
    assert (pick(found, metric="auroc", control=None).ceiling_delta.abs() < 0.15).all()


def test_what_cannot_be_transferred_says_why(related, synthetic_run):
    _, runs = related
    alone = synthetic_run(n_neutral=3, hidden=10).ds
    with pytest.raises(InvalidInputError, match="3 of them in common; expected 6"):
        transfer_run({"a": alone, "b": alone}, spec=SPEC)
    with pytest.raises(InvalidInputError, match="scores pairs of the test split, got 0"):
        transfer_run({"a": alone, "b": alone}, spec=SPEC.model_copy(update={"anchors": "train"}))
    with pytest.raises(NotFoundError, match="run 'b' has no layer 7"):
        transfer_run(runs, spec=SPEC.model_copy(update={"layers": ((0, 7),)}))
    other = runs["b"].assign_coords(text=[f"x{i}" for i in range(runs["b"].sizes["text"])])
    with pytest.raises(InvalidInputError, match="0 texts in common"):
        transfer_run({"a": runs["a"], "b": other}, spec=SPEC)


@pytest.fixture(scope="module")
def probed(related):
    run, runs = related
    return {
        name: probe_run(
            ds, run.texts, spec=ProbeSpec(methods=("diff_means",), n_bootstrap=0),
            random=RandomSpec(n_directions=1), bow=BagOfWordsSpec(), scheduler="synchronous",
        )
        for name, ds in runs.items()
    }  # fmt: skip


def test_curves_meet_the_layers_and_stop_where_they_do(probed):
    rows = pd.concat([result.rows for result in probed.values()])
    curves = depth_curves(rows, grid=(0.25, 0.5, 0.75, 1.0))
    one = curves[(curves.run == "a") & (curves.subset == "all")].set_index("depth")
    mine = probed["a"].rows
    mine = mine[(mine.metric == "auroc") & (mine.analysis == "probe") & (mine.subset == "all")]
    by_depth = mine.set_index("depth").estimate
    assert one.loc[1.0, "estimate"] == pytest.approx(by_depth[1.0])
    assert one.loc[0.75, "estimate"] == pytest.approx((by_depth[0.5] + by_depth[1.0]) / 2)
    assert np.isnan(one.loc[0.25, "estimate"])
    assert one.loc[0.25, "reason"].startswith("no layer reaches it")
    with pytest.raises(InvalidInputError, match="no AUROC by layer"):
        depth_curves(rows[rows.metric == "accuracy"])


def test_runs_are_compared_on_the_same_texts_at_matched_depth(probed):
    found = compare_by_depth(probed)
    chosen = found[(found.cv != "train→test split")]
    assert chosen.layer.tolist() == chosen.other_layer.tolist() == [0, 1]
    areas = {
        name: r.rows[(r.rows.metric == "auroc") & (r.rows.analysis == "probe")
                     & (r.rows.subset == "all") & (r.rows.layer == 1)].estimate.iloc[0]
        for name, r in probed.items()
    }  # fmt: skip
    row = chosen[chosen.layer == 1].iloc[0]
    assert row.estimate == pytest.approx(areas["a"] - areas["b"])
    assert row.ci_low <= row.estimate <= row.ci_high
    assert row.n_texts == 96
