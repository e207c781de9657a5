from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from actlake.analyze import random_run
from actlake.analyze.nulls import isotropic_directions
from actlake.analyze.splits import pair_table
from actlake.schemas import InvalidInputError, RandomSpec


def test_aurocs_are_those_of_sklearn_on_every_layer_and_subset(synthetic_run):
    run = synthetic_run(n_layers=2, hidden=300, offset=2.0)
    found = random_run(run.ds, spec=RandomSpec(n_directions=5, seed=3), scheduler="synchronous")
    assert found.aurocs.dims == ("subset", "pool", "layer", "draw")
    table = pair_table(run.ds)
    directions = isotropic_directions(5, 300, seed=3).astype(float)
    for subset in ("all", "plain", "balanced"):
        pairs = table.members(subset)
        labels = np.repeat([1, 0], pairs.size)
        for layer in range(2):
            x = run.ds["resid_post_mean_response"].values[:, layer].astype(float)
            scores = x[table.rows[:, pairs].ravel()] @ directions
            theirs = [roc_auc_score(labels, column) for column in scores.T]
            mine = found.aurocs.sel(subset=subset, pool="mean_response", layer=layer)
            np.testing.assert_allclose(mine.values, theirs, atol=1e-3)


def test_a_massive_mean_costs_no_digits(synthetic_run):
    """A coordinate thousands of times as large as the rest, as attention sinks have."""

    def sink(x, _texts):
        x[..., 3] += 3000.0
        return x

    spec = RandomSpec(n_directions=50)
    plain = random_run(synthetic_run(hidden=200).ds, spec=spec).aurocs
    massive = random_run(synthetic_run(hidden=200, activations=sink).ds, spec=spec).aurocs
    np.testing.assert_allclose(massive, plain, atol=2e-3)


def test_bands_stand_per_layer_and_for_the_maximum_over_them(synthetic_run):
    run = synthetic_run(n_layers=4, hidden=50)
    found = random_run(run.ds, spec=RandomSpec(n_directions=200), scheduler="threads")
    bands = found.bands[found.bands.subset == "all"]
    assert bands.layer.dropna().tolist() == [0, 1, 2, 3]
    (maximum,) = bands[bands.layer.isna()].to_dict("records")
    assert maximum["null"] == "max_over_layers (isotropic)"
    assert maximum["mean"] > bands[bands.layer.notna()]["mean"].max() + 0.02
    assert maximum["max"] == bands[bands.layer.notna()]["max_folded"].max()
    assert (bands.n_draws == 200).all()


def test_rows_with_nan_are_named_and_one_pair_is_refused(synthetic_run):
    run = synthetic_run(chunked=False)
    row = int(np.flatnonzero(run.ds["text"].values == "neg-0007")[0])
    run.ds["resid_post_mean_response"][row, 1, 3] = np.nan
    with pytest.raises(InvalidInputError, match=r"layer 1: 1 of 96 rows .*'neg-0007'"):
        random_run(run.ds, spec=RandomSpec(n_directions=3))
    single = synthetic_run(n_scenarios=1, pairs_per_scenario=1)
    with pytest.raises(InvalidInputError, match="two pairs or more"):
        random_run(single.ds, spec=RandomSpec(n_directions=3))


def test_constant_features_leave_every_direction_at_one_half(synthetic_run):
    run = synthetic_run(activations=lambda x, _texts: np.full_like(x, 7.3))
    found = random_run(run.ds, spec=RandomSpec(n_directions=20), scheduler="synchronous")
    assert (found.aurocs == 0.5).all()


def test_texts_outside_pairs_change_nothing_whether_few_or_many(synthetic_run):
    spec = RandomSpec(n_directions=30)
    alone, few, many = (
        random_run(synthetic_run(n_neutral=n, hidden=64).ds, spec=spec).aurocs for n in (0, 5, 200)
    )
    assert alone.shape == few.shape == many.shape
    for n_neutral in (5, 200):
        run = synthetic_run(n_neutral=n_neutral, hidden=64, chunked=False)
        expected = random_run(run.ds, spec=spec).aurocs
        neutral = np.flatnonzero(run.ds["label"].values == -1)
        run.ds["resid_post_mean_response"][neutral] = np.nan
        np.testing.assert_allclose(random_run(run.ds, spec=spec).aurocs, expected, atol=2e-3)
