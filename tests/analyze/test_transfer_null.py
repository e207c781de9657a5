"""O5 for transfers: p of a carried probe where nothing separates the classes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from actlake.analyze.transfer_run import transfer_run
from actlake.schemas import TransferSpec

N_RANDOM = 19


def second_model(ds, rng):
    """A wider model whose states are a linear image of the first one's, with noise."""
    x = ds["resid_post_mean_response"].values
    mixing = rng.standard_normal((10, x.shape[2]))
    y = x @ mixing.T + 0.3 * rng.standard_normal((*x.shape[:2], 10))
    ds = ds.drop_vars("resid_post_mean_response")
    return ds.assign(resid_post_mean_response=(("text", "layer", "hidden"), y.astype(np.float32)))


def carried(synthetic_run, *, anchors, n, strength=0.0):
    """Return AUROC and p of the probe that is carried from one model to another, of n data sets."""
    spec = TransferSpec(
        maps=("ridge",), anchors=anchors, n_permuted=1, n_random=N_RANDOM, n_bootstrap=0,
        ridge_grid=(1e-3, 1e-1),
    )  # fmt: skip
    found = []
    for seed in range(n):
        run = synthetic_run(
            n_scenarios=6, pairs_per_scenario=6, n_layers=1, hidden=6, n_neutral=24,
            n_test_scenarios=3, strength=strength, subsets=("none",), chunked=False, seed=seed,
        )  # fmt: skip
        other = second_model(run.ds, np.random.default_rng(10_000 + seed))
        runs = {"a": run.ds.assign_attrs(run="a"), "b": other.assign_attrs(run="b")}
        drawn = spec.model_copy(update={"seed": 20_000 + seed})  # not the numbers of the data
        table = transfer_run(runs, spec=drawn, scheduler="synchronous")
        rows = table[(table.run == "b") & (table.metric == "auroc") & table.control.isna()]
        (row,) = rows[rows["map"] == "ridge"].itertuples()
        found.append((row.estimate, row.p_value))
    return np.array(found).T


@pytest.mark.slow
def test_p_of_a_carried_probe_is_uniform_where_nothing_is_there(synthetic_run):
    """Random directions are read either way: p is uniform above one half, and 1 below it.

    By the map that undoes what lies between the models. Through one that stretches the stream,
    random directions crowd around its longest axis, and a probe need not be one of them.
    """
    area, p = carried(synthetic_run, anchors="train", n=240)
    above = area > 0.5
    assert abs(above.mean() - 0.5) < 3 * 0.5 / np.sqrt(p.size)
    spread = p[above] - np.random.default_rng(0).random(above.sum()) / (N_RANDOM + 1)
    assert kstest(spread, "uniform").pvalue > 0.01
    assert (p[~above] == 1).all()
    for level in (0.05, 0.1, 0.2):
        assert abs((p <= level).mean() - level / 2) < 3 * np.sqrt(level / 2 / p.size)


def test_p_over_held_out_scenarios_is_never_too_small(synthetic_run):
    area, p = carried(synthetic_run, anchors="neutral", n=60)
    for level in (0.05, 0.1, 0.2):
        assert (p <= level).mean() <= level + 2 * np.sqrt(level * (1 - level) / p.size)
    assert (p[area <= 0.5] == 1).all()


def test_p_of_what_is_there_is_small(synthetic_run):
    area, p = carried(synthetic_run, anchors="train", n=10, strength=4.0)
    assert (area > 0.9).all()
    assert p.mean() < 0.15  # in six dimensions some random directions reach it as well
