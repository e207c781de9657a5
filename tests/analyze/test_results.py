from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from actlake.analyze import (
    directions_record,
    load_pca_result,
    load_probe_result,
    pca_run,
    probe_run,
    save_pca_result,
    save_probe_result,
)
from actlake.schemas import (
    BagOfWordsSpec,
    CorruptError,
    InvalidInputError,
    NotFoundError,
    PcaSpec,
    ProbeSpec,
    RandomSpec,
)


@pytest.fixture(scope="module")
def run(synthetic_run):
    def one_flat_layer(x, _texts):
        x[:, 0] = 1.0
        return x

    return synthetic_run(n_test_scenarios=1, n_neutral=4, activations=one_flat_layer)


@pytest.fixture(scope="module")
def probes(run):
    return probe_run(
        run.ds,
        run.texts,
        spec=ProbeSpec(n_bootstrap=20, c_grid=(0.01, 1.0)),
        random=RandomSpec(n_directions=19),
        bow=BagOfWordsSpec(),
        scheduler="synchronous",
    )


@pytest.fixture(scope="module")
def components(run):
    return pca_run(run.ds, spec=PcaSpec(n_components=4), scheduler="synchronous")


def test_a_probe_result_comes_back_as_it_was_saved(probes, tmp_path):
    folder = save_probe_result(probes, tmp_path / "probe")
    back = load_probe_result(folder)
    for name in ("rows", "null", "scores"):
        pd.testing.assert_frame_equal(getattr(back, name), getattr(probes, name))
    xr.testing.assert_identical(back.directions, probes.directions)
    assert back.selected_layer == probes.selected_layer
    assert {path.name for path in folder.iterdir()} == {
        "probe.parquet", "probe.csv", "null.parquet", "null.csv", "scores.parquet", "scores.csv",
        "directions.zarr",
    }  # fmt: skip


def test_saving_twice_replaces(probes, tmp_path):
    save_probe_result(probes, tmp_path)
    save_probe_result(probes, tmp_path)
    assert len(load_probe_result(tmp_path).rows) == len(probes.rows)


def test_directions_are_zarr_v3_that_plain_xarray_opens(probes, tmp_path):
    save_probe_result(probes, tmp_path)
    path = tmp_path / "directions.zarr"
    assert json.loads((path / "zarr.json").read_text())["zarr_format"] == 3
    plain = xr.open_zarr(path, consolidated=False)
    assert plain.attrs["method_names"] == ["diff_means", "logistic"]
    assert plain.attrs["run"] == "synthetic"
    np.testing.assert_array_equal(plain["vector"], probes.directions["vector"])


def test_a_missing_or_foreign_folder_is_said(probes, tmp_path):
    with pytest.raises(NotFoundError, match=r"no probe\.parquet"):
        load_probe_result(tmp_path)
    save_probe_result(probes, tmp_path)
    xr.Dataset(attrs={"encoding-type": "other"}).to_zarr(
        tmp_path / "directions.zarr", mode="w", zarr_format=3, consolidated=False
    )
    with pytest.raises(CorruptError, match="'other', expected 'actlake-directions'"):
        load_probe_result(tmp_path)


def test_a_direction_record_decides_as_the_probe_does(run, probes):
    record = directions_record(probes.directions, "logistic", "mean_response", layer=1)
    assert (record.site, record.layer, record.pool) == ("resid_post", 1, "mean_response")
    assert (record.fitted_on, record.run) == ("split=train", "synthetic")
    scores = probes.scores
    scores = scores[(scores.method == "logistic") & (scores.layer == 1) & (scores.fold == "test")]
    x = run.ds["resid_post_mean_response"].sel(layer=1, text=scores.text.to_numpy()).values
    decided = record.norm * (x @ np.array(record.vector)) + record.bias
    at = probes.directions.sel({"method": "logistic", "pool": "mean_response", "layer": 1})
    in_separations = decided / (record.norm * float(at["separation"]))
    np.testing.assert_allclose(in_separations, scores.score, rtol=1e-5, atol=1e-6)


def test_directions_that_do_not_exist_are_refused(probes):
    with pytest.raises(NotFoundError, match=r"no direction with layer 9; .*\[0, 1\]"):
        directions_record(probes.directions, "logistic", "mean_response", layer=9)
    with pytest.raises(InvalidInputError, match="layer 0 has no direction"):
        directions_record(probes.directions, "diff_means", "mean_response", layer=0)


def test_components_come_back_as_they_were_saved(components, tmp_path):
    back = load_pca_result(save_pca_result(components, tmp_path))
    pd.testing.assert_frame_equal(back.rows, components.rows)
    pd.testing.assert_frame_equal(back.points, components.points)


def test_components_describe_the_training_pairs(run, components):
    from sklearn.decomposition import PCA

    ds = run.ds
    train = (ds["split"].values == "train") & (ds["label"].values >= 0)
    x = ds["resid_post_mean_response"].sel(layer=1).values[train].astype(float)
    rows = components.rows[components.rows.layer == 1]
    model = PCA(4, svd_solver="full").fit(x)
    np.testing.assert_allclose(
        rows.explained_variance_ratio, model.explained_variance_ratio_, rtol=1e-9
    )
    label = ds["label"].values[train]
    difference = x[label == 1].mean(axis=0) - x[label == 0].mean(axis=0)
    cosines = model.components_ @ difference / np.linalg.norm(difference)
    np.testing.assert_allclose(rows.cosine_with_probe.abs(), np.abs(cosines), atol=1e-9)
    assert set(rows.fitted_on) == {"split=train"}


def test_every_original_text_is_a_point_with_its_coordinates(run, components):
    points = components.points[components.points.layer == 1]
    assert points.text.tolist() == run.ds["text"].values.tolist()
    assert points.arm.tolist() == run.ds["arm"].values.tolist()
    assert {"pc1", "pc2", "pc3", "scenario", "category", "subset", "split"} <= set(points)
    assert np.isfinite(points[["pc1", "pc2", "pc3"]]).all(axis=None)


def test_a_layer_without_variance_has_a_reason(components):
    row = components.rows[components.rows.layer == 0]
    assert row.reason.tolist() == ["no variance"]
    assert row.explained_variance_ratio.isna().all()
