from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from actlake.analyze.auroc import auroc
from actlake.analyze.flips import LINEAR_METHODS, draw_flips, flip_scores
from actlake.analyze.logistic_flips import logistic_flip_scores
from actlake.analyze.nullrun import null_run
from actlake.analyze.nulls import covariance_matched_scores, drawn_aurocs, signal_p_value
from actlake.analyze.probes import Tuning, fit_fold
from actlake.analyze.rowspace import pair_space
from actlake.analyze.splits import generator_folds, pair_table, scenario_folds
from actlake.schemas import InvalidInputError, NullSpec, ProbeSpec, ResultRow

SHAPES = [(5, 4, 7), (4, 5, 60)]  # scenarios, pairs of each, hidden


def flipped(x, sign):
    """The activations with the texts of some pairs exchanged: what a refit would be given."""
    return np.where(sign[None, :, None] < 0, x[::-1], x)


@pytest.fixture(scope="module")
def case(synthetic_run):
    def make(n_scenarios, pairs, hidden, **fields):
        run = synthetic_run(
            n_scenarios=n_scenarios, pairs_per_scenario=pairs, hidden=hidden, **fields
        )
        table = pair_table(run.ds)
        x = run.ds["resid_post_mean_response"].values[:, 0][table.rows].astype(float)
        return table, x

    return make


@pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide"])
@pytest.mark.parametrize("method", LINEAR_METHODS)
@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
def test_every_draw_has_the_scores_of_a_refit(case, shape, method, shrinkage):
    """Penalties tuned again, shrinkage estimated again, thresholds of the training folds."""
    table, x = case(*shape, strength=1.5)
    folds = scenario_folds(table, max_folds=100, seed=0).folds
    signs = draw_flips(table.n_pairs, n_draws=6, seed=3)
    tuning = Tuning(lambda_grid=(1e-3, 0.1, 10.0), shrinkage=shrinkage)
    space = pair_space(x)
    found = flip_scores(
        space.points, folds, signs, methods=[method], tuning=tuning, hidden=shape[2]
    )[method]
    for draw in range(7):
        relabelled = flipped(x, signs[:, draw])
        for fold in folds:
            probe = fit_fold(relabelled, fold, method=method, tuning=tuning).probe
            expected = probe.score(relabelled[:, fold.test])
            np.testing.assert_allclose(found[:, fold.test, draw], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide"])
def test_every_logistic_draw_has_the_scores_of_a_refit(case, shape):
    """C tuned again in the inner folds of every draw; one draw at a time gives the same."""
    table, x = case(*shape, strength=1.5)
    folds = scenario_folds(table, max_folds=100, seed=0).folds
    signs = draw_flips(table.n_pairs, n_draws=3, seed=3)
    tuning = Tuning(c_grid=(1e-3, 0.1, 10.0))
    found = logistic_flip_scores(x, folds, signs, c_grid=tuning.c_grid)
    for draw in range(4):
        relabelled = flipped(x, signs[:, draw])
        for fold in folds:
            probe = fit_fold(relabelled, fold, method="logistic", tuning=tuning).probe
            expected = probe.score(relabelled[:, fold.test])
            np.testing.assert_allclose(found[:, fold.test, draw], expected, rtol=1e-3, atol=1e-3)
    alone = logistic_flip_scores(x, folds, signs[:, 2:3], c_grid=tuning.c_grid)
    np.testing.assert_allclose(alone[..., 0], found[..., 2], rtol=1e-6, atol=1e-6)


def test_pairs_that_no_fold_holds_out_train_nothing_and_score_nothing(case):
    table, x = case(3, 6, 9)
    generator = table.generator.copy()
    generator[:2] = "mixed"
    table = type(table)(**(vars(table) | {"generator": generator}))
    folds = generator_folds(table, max_folds=9, seed=0)
    signs = draw_flips(table.n_pairs, n_draws=4, seed=0)
    arguments = {"methods": LINEAR_METHODS, "tuning": Tuning(), "hidden": 9}
    found = flip_scores(x, folds.folds, signs, **arguments)
    spoilt = x.copy()
    spoilt[:, :2] = 1e6
    again = flip_scores(spoilt, folds.folds, signs, **arguments)
    for method in LINEAR_METHODS:
        assert np.isnan(found[method][:, :2]).all()
        np.testing.assert_allclose(again[method][:, 2:], found[method][:, 2:], atol=1e-5)


def test_the_first_draw_is_the_data_as_it_is():
    signs = draw_flips(50, n_draws=200, seed=1)
    assert signs.shape == (50, 201)
    assert (signs[:, 0] == 1).all()
    assert abs(signs[:, 1:].mean()) < 0.05
    np.testing.assert_array_equal(signs, draw_flips(50, n_draws=200, seed=1))


def simulate(method, *, repeats, n_draws=99, n_layers=6, strength=0.0):
    """p of the best layer of noise, alone and by the maximum over layers."""
    from types import SimpleNamespace

    rng = np.random.default_rng(0)
    scenario = np.repeat([f"s{i}" for i in range(4)], 5)
    table = SimpleNamespace(
        n_pairs=20, scenario=scenario, pair=np.array([f"p{i:02d}" for i in range(20)])
    )
    folds = scenario_folds(table, max_folds=9, seed=0).folds
    alone, corrected = [], []
    for repeat in range(repeats):
        signs = draw_flips(20, n_draws=n_draws, seed=repeat)
        shared = rng.standard_normal((2, 20, 12))  # layers of one model are not independent
        areas = []
        for _ in range(n_layers):
            x = shared + rng.standard_normal((2, 20, 12))
            x[0, :, 0] += strength
            if method == "logistic":
                scores = logistic_flip_scores(x, folds, signs, c_grid=(0.01, 1.0))
            else:
                scores = flip_scores(
                    x, folds, signs, methods=[method], tuning=Tuning(lambda_grid=(0.1, 1.0)),
                    hidden=12,
                )[method]  # fmt: skip
            areas.append(drawn_aurocs(scores, members=[np.arange(20)])[0])
        stacked = np.stack(areas)
        best = int(stacked[:, 0].argmax())
        alone.append(signal_p_value(stacked[best, 0], stacked[best, 1:]))
        corrected.append(signal_p_value(stacked[best, 0], stacked[:, 1:].max(axis=0)))
    return np.array(alone), np.array(corrected)


def uniform(p, n_draws):
    """Whether p-values on the grid 1/(B + 1) … 1 are uniform, by Kolmogorov and Smirnov."""
    rng = np.random.default_rng(0)
    return kstest(p - rng.random(p.size) / (n_draws + 1), "uniform").pvalue > 0.01


def test_p_of_a_selected_layer_is_uniform_with_the_maximum_and_not_without():
    """O5."""
    alone, corrected = simulate("diff_means", repeats=250)
    assert uniform(corrected, 99)
    assert (corrected <= 0.05).mean() <= 0.09
    assert not uniform(alone, 99)
    assert (alone <= 0.05).mean() >= 0.12


@pytest.mark.slow
def test_p_of_logistic_refits_is_uniform_under_the_null():
    """O5, the probe without a closed form: fewer draws and layers, since each is a fit."""
    alone, corrected = simulate("logistic", repeats=150, n_draws=19, n_layers=3)
    assert uniform(corrected, 19)
    assert (alone <= 0.05).mean() >= (corrected <= 0.05).mean()


@pytest.mark.slow
@pytest.mark.parametrize("method", LINEAR_METHODS)
def test_p_is_uniform_under_the_null_for_every_method(method):
    """O5, every probe, more repeats."""
    alone, corrected = simulate(method, repeats=600)
    assert uniform(corrected, 99)
    assert 0.03 <= (corrected <= 0.05).mean() <= 0.07
    assert not uniform(alone, 99)


def test_signal_is_found_by_refits_in_every_repeat():
    _, corrected = simulate("diff_means", repeats=20, strength=3.0)
    assert (corrected == 1 / 100).all()


def test_covariance_matched_draws_are_the_readouts_of_random_combinations():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 10, 30)) + 4
    space = pair_space(x)
    found = covariance_matched_scores(space.points, n_draws=3, seed=2)
    rows = x.reshape(-1, 30)
    centred = rows - rows.mean(axis=0)
    g = np.random.default_rng(2).standard_normal((20, 3))
    np.testing.assert_allclose(found.reshape(20, 3), centred @ (centred.T @ g), atol=1e-8)


@pytest.fixture(scope="module")
def typical(synthetic_run):
    def late_signal(x, texts):
        x[[t.arm == "positive" for t in texts], 2, 0] += 2.0
        return x

    return synthetic_run(n_layers=3, hidden=40, strength=0.0, activations=late_signal)


@pytest.fixture(scope="module")
def result(typical):
    return null_run(
        typical.ds,
        typical.texts,
        spec=NullSpec(n_draws=99),
        probe=ProbeSpec(methods=("diff_means", "ridge", "logistic")),
        scheduler="synchronous",
    )


def test_each_null_is_named_beside_every_layer_and_subset(result):
    rows = result.rows[result.rows.layer.notna()]
    keys = ["layer", "method", "subset", "null"]
    assert (rows.groupby(keys).size() == 1).all()
    assert len(rows) == 3 * 2 * 3 * 3
    assert set(rows.null) == {"label_flip_refit", "isotropic", "covariance_matched"}
    for record in rows.astype(object).where(rows.notna(), None).to_dict("records"):
        ResultRow.model_validate(record)


def test_signal_on_one_layer_is_significant_there_alone(result):
    rows = result.rows[(result.rows.null == "label_flip_refit") & (result.rows.subset == "all")]
    rows = rows[rows.layer.notna()]
    assert (rows[rows.layer == 2].p_value_max == 0.01).all()
    assert (rows[rows.layer != 2].p_value_max > 0.05).all()
    assert (rows.p_value_max >= rows.p_value).all()


def test_observed_aurocs_are_those_of_the_probes(typical, result):
    from actlake.analyze import probe_run
    from actlake.schemas import BagOfWordsSpec, RandomSpec

    spec = ProbeSpec(methods=("diff_means", "ridge"), n_bootstrap=0, n_reliability=0)
    probes = probe_run(
        typical.ds, typical.texts, spec=spec, random=RandomSpec(n_directions=9),
        bow=BagOfWordsSpec(), scheduler="synchronous",
    ).rows  # fmt: skip
    keys = ["layer", "method", "subset"]
    theirs = probes[(probes.analysis == "probe") & (probes.metric == "auroc")]
    mine = result.rows[(result.rows.null == "isotropic") & result.rows.layer.notna()]
    merged = mine.merge(theirs, on=keys, suffixes=("", "_probe"))
    assert len(merged) == len(mine) == 18
    np.testing.assert_allclose(merged.estimate, merged.estimate_probe, atol=1e-12)
    for column in ("dataset_digest", "split_digest", "cv"):
        assert (merged[column] == merged[f"{column}_probe"]).all()


def test_the_logistic_probe_says_why_it_has_no_refits(result):
    (row,) = result.rows[result.rows.method == "logistic"].to_dict("records")
    assert pd.isna(row["estimate"])
    assert "ridge is its counterpart" in row["reason"]


def test_logistic_refits_that_were_asked_for_are_counted_in_their_rows(synthetic_run):
    run = synthetic_run(n_layers=2, n_scenarios=4, pairs_per_scenario=4, strength=3.0)
    found = null_run(
        run.ds, run.texts, spec=NullSpec(n_draws=19, logistic_draws=9),
        probe=ProbeSpec(methods=("ridge", "logistic"), c_grid=(0.01, 1.0)),
        scheduler="synchronous",
    )  # fmt: skip
    rows = found.rows[found.rows.subset == "all"]
    logistic = rows[rows.method == "logistic"].set_index(["null", "layer"])
    assert (logistic.loc["label_flip_refit"].n_draws == 9).all()
    assert (logistic.loc["label_flip_refit"].p_value == 0.1).all()
    assert (logistic.loc["isotropic"].n_draws == 19).all()
    assert logistic.estimate.notna().all()
    bands = found.bands[found.bands.method == "logistic"]
    assert set(bands.n_draws) == {9}


def test_bands_describe_every_layer_and_the_maximum_over_them(result):
    bands = result.bands
    refit = bands[(bands.null == "label_flip_refit") & (bands.subset == "all")]
    assert len(refit) == 2 * 3
    maximum = bands[bands.null == "max_over_layers (label_flip_refit)"]
    assert len(maximum) == 2 * 3
    assert maximum.layer.isna().all()
    for _, row in maximum[maximum.subset == "all"].iterrows():
        of_layers = refit[refit.method == row.method]
        assert row["max"] == of_layers["max"].max()
        assert row["mean"] > of_layers["mean"].max()


def test_refits_without_signal_centre_on_one_half(result):
    bands = result.bands
    refit = bands[bands.null.eq("label_flip_refit") & bands.subset.eq("all")]
    assert refit["mean"].between(0.42, 0.58).all()


def test_a_run_with_one_scenario_is_refused(synthetic_run):
    run = synthetic_run(n_scenarios=1)
    with pytest.raises(InvalidInputError, match="two scenarios or more"):
        null_run(run.ds, run.texts, spec=NullSpec(), probe=ProbeSpec())


def test_auroc_of_the_data_is_that_of_its_scores(case):
    table, x = case(5, 6, 8, strength=1.0)
    folds = scenario_folds(table, max_folds=9, seed=0).folds
    signs = draw_flips(table.n_pairs, n_draws=2, seed=0)
    scores = flip_scores(x, folds, signs, methods=["diff_means"], tuning=Tuning(), hidden=8)[
        "diff_means"
    ]
    areas = drawn_aurocs(scores, members=[np.arange(table.n_pairs)])[0]
    assert areas[0] == pytest.approx(auroc(scores[..., 0].ravel(), table.labels))
