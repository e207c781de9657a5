from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from scipy.special import expit, ndtr
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from actlake.analyze.auroc import auroc
from actlake.analyze.logistic import row_space, solve_logistic
from actlake.analyze.probes import Tuning, d_prime, fit_diff_means, fit_fold, fit_logistic
from actlake.analyze.splits import pair_table, scenario_folds
from actlake.schemas import ProbeMethod


def pairs(rng, n, hidden, *, delta, spread=1.0):
    x = spread * rng.standard_normal((2, n, hidden))
    x[0] += delta
    return x


def both(x):
    return x.reshape(-1, x.shape[-1]), np.repeat([1, 0], x.shape[1])


def test_diff_of_means_reaches_phi_of_delta_over_root_two_when_spherical():
    """O6."""
    rng = np.random.default_rng(0)
    for length in (0.5, 1.5):
        delta = np.zeros(6)
        delta[2] = length
        probe = fit_diff_means(pairs(rng, 20_000, 6, delta=delta))
        rows, labels = both(pairs(rng, 20_000, 6, delta=delta))
        expected = ndtr(length / math.sqrt(2))
        assert auroc(probe.score(rows), labels) == pytest.approx(expected, abs=0.01)


def test_diff_of_means_is_the_lda_direction_when_spherical():
    """O6."""
    rng = np.random.default_rng(1)
    x = pairs(rng, 50_000, 5, delta=np.array([1.0, -0.5, 0, 0, 0.3]))
    rows, labels = both(x)
    lda = LinearDiscriminantAnalysis().fit(rows, labels).coef_[0]
    assert fit_diff_means(x).unit @ lda / np.linalg.norm(lda) > 0.9995


def test_diff_of_means_puts_the_class_means_at_plus_and_minus_one_half():
    x = pairs(np.random.default_rng(2), 30, 4, delta=2.0)
    probe = fit_diff_means(x)
    np.testing.assert_allclose(probe.score(x.mean(axis=1)), [0.5, -0.5], atol=1e-12)
    assert probe.norm == pytest.approx(np.linalg.norm(x[0].mean(0) - x[1].mean(0)))


@pytest.mark.parametrize(("n", "hidden"), [(60, 12), (20, 90)], ids=["tall", "wide"])
@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0])
def test_logistic_equals_sklearn_on_standardised_features(n, hidden, c):
    rng = np.random.default_rng(3)
    scale = np.geomspace(0.1, 50, hidden)
    x = pairs(rng, n, hidden, delta=0.4) * scale + 7.0
    rows, labels = both(x)
    scaler = StandardScaler().fit(rows)
    model = LogisticRegression(C=c, tol=1e-10, max_iter=20_000)
    model.fit(scaler.transform(rows), labels)
    fresh = pairs(rng, n, hidden, delta=0.4) * scale + 7.0
    expected = model.decision_function(scaler.transform(both(fresh)[0]))
    probe = fit_logistic(x, c=c)
    found = both(fresh)[0] @ probe.weight + probe.bias
    np.testing.assert_allclose(found, expected, atol=3e-3 * np.abs(expected).max())


@pytest.mark.parametrize("c", [1e-4, 1.0])
def test_scores_are_in_class_separations_of_the_training_pairs(c):
    x = pairs(np.random.default_rng(9), 60, 8, delta=0.7)
    for probe in (fit_diff_means(x), fit_logistic(x, c=c)):
        positive, negative = probe.score(x).mean(axis=1)
        assert positive - negative == pytest.approx(1.0)


def test_logistic_raw_weight_is_sklearns_weight_over_the_scale():
    rng = np.random.default_rng(4)
    x = pairs(rng, 80, 6, delta=0.5) * np.array([1, 10, 100, 0.1, 3, 1.0])
    rows, labels = both(x)
    scaler = StandardScaler().fit(rows)
    model = LogisticRegression(C=1.0, tol=1e-10).fit(scaler.transform(rows), labels)
    weight = model.coef_[0] / scaler.scale_
    probe = fit_logistic(x, c=1.0)
    assert probe.unit @ weight / np.linalg.norm(weight) > 0.99999
    assert probe.norm == pytest.approx(np.linalg.norm(weight), rel=1e-2)


def test_constant_features_get_no_weight_and_change_nothing():
    x = pairs(np.random.default_rng(5), 40, 5, delta=0.8)
    padded = np.concatenate([x, np.full((2, 40, 2), 1234.567)], axis=-1)
    for fit in (fit_diff_means, lambda values: fit_logistic(values, c=1.0)):
        plain, wide = fit(x), fit(padded)
        np.testing.assert_allclose(wide.weight[5:], 0, atol=1e-9)
        np.testing.assert_allclose(wide.score(padded), plain.score(x), atol=1e-6)


def test_activations_that_are_all_equal_score_zero():
    x = np.full((2, 6, 4), 3.0)
    for probe in (fit_diff_means(x), fit_logistic(x, c=1.0)):
        assert probe.norm == 0
        np.testing.assert_array_equal(probe.score(x), 0)
        np.testing.assert_array_equal(probe.unit, 0)


def test_classes_with_the_same_points_take_no_weight_and_few_steps(monkeypatch):
    points = np.random.default_rng(0).standard_normal((60, 8)) + 3
    space = row_space(np.vstack([points, points]))
    labels = np.repeat([True, False], 60)
    c = np.array([1e-4, 1.0, 1e4])
    steps = []
    monkeypatch.setattr("actlake.analyze.logistic.expit", lambda z: steps.append(1) or expit(z))
    weights = np.ones((120, 3))
    found = solve_logistic(space, labels, weights=weights, c=c, tolerance=1e-6)
    assert len(steps) < 100
    assert np.abs(found).max() < 1e-6


def test_inner_auroc_of_diff_means_is_that_of_a_plain_inner_loop(synthetic_run):
    run = synthetic_run(n_scenarios=5, pairs_per_scenario=4, hidden=6)
    table = pair_table(run.ds)
    x = run.ds["resid_post_mean_response"].values[:, 0][table.rows].astype(float)
    fold = scenario_folds(table, max_folds=100, seed=0).folds[2]
    scores = np.full((2, table.n_pairs), np.nan)
    for name in set(table.scenario[fold.train]):
        others = fold.train[table.scenario[fold.train] != name]
        held = fold.train[table.scenario[fold.train] == name]
        scores[:, held] = fit_diff_means(x[:, others]).score(x[:, held])
    assert np.isnan(scores[:, fold.test]).all()
    labels = np.repeat([1, 0], fold.train.size)
    fit = fit_fold(x, fold, method="diff_means", tuning=Tuning())
    assert fit.inner_auroc == pytest.approx(auroc(scores[:, fold.train].ravel(), labels))
    assert fit.inner_d_prime == pytest.approx(d_prime(*scores[:, fold.train]))


@pytest.mark.parametrize("method", get_args(ProbeMethod))
def test_a_fold_never_reads_the_pairs_it_holds_out(synthetic_run, method):
    run = synthetic_run(n_scenarios=4, pairs_per_scenario=5, hidden=6)
    table = pair_table(run.ds)
    x = run.ds["resid_post_mean_response"].values[:, 0][table.rows].astype(float)
    fold = scenario_folds(table, max_folds=100, seed=0).folds[1]
    spoilt = x.copy()
    spoilt[:, fold.test] = np.nan
    grid = (1e-2, 1.0)
    clean = fit_fold(x, fold, method=method, tuning=Tuning(grid))
    blind = fit_fold(spoilt, fold, method=method, tuning=Tuning(grid))
    np.testing.assert_array_equal(clean.probe.weight, blind.probe.weight)
    assert clean.inner_auroc == blind.inner_auroc


def test_c_is_tuned_to_the_penalty_that_generalises(synthetic_run):
    """Signal in every coordinate asks for averaging, signal in one for a free fit."""
    rng = np.random.default_rng(6)
    run = synthetic_run(n_scenarios=6, pairs_per_scenario=20, hidden=40)
    fold = scenario_folds(pair_table(run.ds), max_folds=100, seed=0).folds[0]
    spread_out = pairs(rng, 120, 40, delta=0.25)
    # Shared noise hides the signal unless the fit may subtract it: small penalties win.
    noise = 8 * rng.standard_normal((2, 120, 1))
    hidden_signal = np.concatenate([noise, noise + pairs(rng, 120, 1, delta=2.0)], axis=-1)
    grid = (1e-4, 1e-2, 1.0, 1e2)
    assert fit_fold(spread_out, fold, method="logistic", tuning=Tuning(grid)).c in grid[:2]
    tuned = fit_fold(hidden_signal, fold, method="logistic", tuning=Tuning(grid))
    assert tuned.c in grid[2:]
    direct = fit_logistic(hidden_signal[:, fold.train], c=tuned.c)
    assert tuned.probe.unit @ direct.unit > 0.9999


def test_d_prime_of_unit_gaussians_is_their_distance():
    rng = np.random.default_rng(7)
    assert d_prime(rng.normal(1.3, 1, 40_000), rng.normal(0, 1, 40_000)) == pytest.approx(
        1.3, abs=0.03
    )


def test_d_prime_without_spread_is_none():
    assert d_prime(np.ones(4), np.zeros(4)) is None
    assert d_prime(np.ones(1), np.zeros(1)) is None
