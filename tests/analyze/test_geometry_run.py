"""The geometry of a whole run: tables, pictures, schedulers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from actlake.analyze.embedding import TSNE_CAPTION, tsne_points
from actlake.analyze.geometry_run import geometry_run, save_geometry_result
from actlake.analyze.suite import probe_run
from actlake.schemas import (
    BagOfWordsSpec,
    GeometryRow,
    GeometrySpec,
    InvalidInputError,
    ProbeSpec,
    RandomSpec,
)

SMALL = {"n_permutations": 99, "n_splits": 10, "n_bootstrap": 20}
SPEC = GeometrySpec(**SMALL, n_components=4, tsne_seeds=(0, 1))


@pytest.fixture(scope="module")
def run(synthetic_run):
    return synthetic_run(n_neutral=20, strength=3.0, n_test_scenarios=2)


@pytest.fixture(scope="module")
def result(run):
    return geometry_run(run.ds, spec=SPEC, scheduler="synchronous")


def test_components_are_fitted_on_train_texts_alone(run, result):
    ds = run.ds
    train = (ds["split"].values == "train") & (ds["label"].values >= 0)
    x = ds["resid_post_mean_response"].values[:, 1].astype(np.float64)
    model = PCA(4, svd_solver="full").fit(x[train])
    rows = result.rows[(result.rows.layer == 1)]
    explained = rows[rows.metric == "explained_variance_ratio"].estimate
    np.testing.assert_allclose(explained, model.explained_variance_ratio_, rtol=1e-6)
    assert (rows[rows.metric == "explained_variance_ratio"].n_texts == train.sum()).all()
    points = result.points[result.points.layer == 1]
    mine = points[["pc1", "pc2", "pc3", "pc4"]].to_numpy()
    theirs = model.transform(x)
    np.testing.assert_allclose(np.abs(mine), np.abs(theirs), atol=1e-6)
    assert points.text.tolist() == ds["text"].values.tolist()


def test_the_concept_shows_in_its_component(result):
    rows = result.rows[(result.rows.metric == "component_cosine") & (result.rows.component == 1)]
    assert (rows[rows.contrast == "positive-neutral"].estimate.abs() > 0.7).all()


def test_every_row_is_a_record_and_says_what_a_missing_number_lacks(result):
    for values in result.rows.astype(object).where(result.rows.notna(), None).to_dict("records"):
        GeometryRow.parse(values)
    cosines = result.rows[result.rows.metric == "cosine"]
    assert set(cosines.space) == {"raw", "standardised", "whitened", "outliers_removed"}
    assert (cosines.n_draws == 99).all()
    assert (cosines.n_shared == 0).all()
    assert (
        cosines[["ci_low", "ci_high", "null_sd", "reliability", "p_value"]].notna().all(axis=None)
    )


def test_pictures_come_in_several_seeds_with_their_caption(run, result):
    drawn = result.embedding
    assert set(drawn.seed) == {0, 1}
    assert set(drawn.layer) == {0}  # the nearest two thirds of two layers is the first
    assert set(drawn.caption) == {TSNE_CAPTION} == {drawn.attrs["caption"]}
    assert "not interpretable" in TSNE_CAPTION
    one, two = (drawn[drawn.seed == seed][["x", "y"]].to_numpy() for seed in (0, 1))
    assert not np.allclose(one, two)
    assert len(one) == run.ds.sizes["text"]
    assert not any("tsne" in str(metric) for metric in result.rows.metric)


def test_perplexity_stays_below_a_third_of_the_texts():
    x = np.random.default_rng(0).standard_normal((20, 5))
    _, used = tsne_points(x, seeds=(0,), perplexity=30)
    assert used < 20 / 3
    again, _ = tsne_points(x, seeds=(0,), perplexity=30)
    once, _ = tsne_points(x, seeds=(0,), perplexity=30)
    np.testing.assert_array_equal(again, once)
    with pytest.raises(InvalidInputError, match="7 texts or more"):
        tsne_points(x[:6], seeds=(0,))
    with pytest.raises(InvalidInputError, match="all equal"):
        tsne_points(np.full((9, 3), 0.1), seeds=(0,))


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_schedulers_give_the_same_tables(run, result, scheduler):
    other = geometry_run(run.ds, spec=SPEC, scheduler=scheduler)
    pd.testing.assert_frame_equal(other.rows, result.rows)
    pd.testing.assert_frame_equal(other.embedding, result.embedding)


def test_tables_are_written_and_read_back(result, tmp_path):
    folder = save_geometry_result(result, tmp_path / "out")
    assert len(pd.read_parquet(folder / "geometry.parquet")) == len(result.rows)
    assert len(pd.read_csv(folder / "geometry.csv")) == len(result.rows)
    assert pd.read_parquet(folder / "tsne.parquet").caption.iloc[0] == TSNE_CAPTION


def test_constant_activations_and_nan_rows(synthetic_run):
    flat = synthetic_run(activations=lambda x, texts: np.full_like(x, 0.1), n_neutral=8)
    rows = geometry_run(flat.ds, spec=SPEC, scheduler="synchronous").rows
    assert rows.estimate.isna().all()
    assert rows.reason.notna().all()

    def broken(x, texts):
        x[3, 1] = np.nan
        return x

    with pytest.raises(InvalidInputError, match="layer 1: 1 of 96 rows have NaN"):
        geometry_run(synthetic_run(activations=broken).ds, spec=SPEC, scheduler="synchronous")


def test_a_layer_to_draw_that_is_not_there_is_refused(run):
    with pytest.raises(InvalidInputError, match=r"tsne_layers names the layers \[9\]"):
        geometry_run(run.ds, spec=GeometrySpec(tsne_layers=(9,)), scheduler="synchronous")


def test_finished_directions_are_compared_with_components_and_each_other(run, result):
    found = probe_run(
        run.ds,
        run.texts,
        spec=ProbeSpec(n_bootstrap=0),
        random=RandomSpec(n_directions=1),
        bow=BagOfWordsSpec(),
        scheduler="synchronous",
    ).directions
    rows = geometry_run(run.ds, spec=SPEC, directions=found, scheduler="synchronous").rows
    new = rows[rows.contrast.isin(["diff_means", "logistic"])]
    assert set(new.metric) == {"component_cosine", "cosine"}
    vectors = found["vector"].sel(pool="mean_response", layer=1).values
    row = new[(new.metric == "cosine") & (new.layer == 1)].iloc[0]
    assert row.estimate == pytest.approx(vectors[0] @ vectors[1])
    other = found.assign_attrs(site="mlp_out")
    with pytest.raises(InvalidInputError, match="unlike sites cannot be compared"):
        geometry_run(run.ds, spec=SPEC, directions=other, scheduler="synchronous")
