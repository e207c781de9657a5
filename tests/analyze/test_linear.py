from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr
from sklearn.covariance import ledoit_wolf, oas
from sklearn.linear_model import Ridge

from actlake.analyze.auroc import auroc
from actlake.analyze.linear import (
    pair_component,
    press_errors,
    ridge_penalties,
    shrinkage_intensity,
    train_scatter,
)
from actlake.analyze.probes import (
    Tuning,
    fit_diff_means,
    fit_fold,
    fit_lda,
    fit_pca_diff,
    fit_ridge,
)
from actlake.analyze.rowspace import pair_space
from actlake.analyze.splits import pair_table, scenario_folds

SHAPES = [(40, 7), (12, 60)]
CLOSED = ("diff_means", "lda", "ridge", "pca_diff")


def pairs(n, hidden, *, delta=0.7, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, n, hidden)) * np.geomspace(0.5, 4, hidden) + 3
    x[0, :, 0] += delta
    return x


def within(x):
    """The rows about the mean of their own class."""
    return (x - x.mean(axis=1, keepdims=True)).reshape(-1, x.shape[-1])


@pytest.mark.parametrize(("n", "hidden"), SHAPES, ids=["tall", "wide"])
@pytest.mark.parametrize(
    ("method", "theirs"), [("ledoit_wolf", ledoit_wolf), ("oas", oas)], ids=["lw", "oas"]
)
def test_lda_is_the_inverse_of_the_covariance_that_sklearn_shrinks(n, hidden, method, theirs):
    x = pairs(n, hidden)
    scatter = train_scatter(x)
    found, mean = shrinkage_intensity(
        scatter, scatter.delta[:, None], scatter.signs[:, None], method=method
    )
    covariance, intensity = theirs(within(x), assume_centered=True)
    assert found[0] == pytest.approx(intensity, rel=1e-9)
    assert mean[0] == pytest.approx((within(x) ** 2).mean(), rel=1e-9)
    delta = x[0].mean(axis=0) - x[1].mean(axis=0)
    expected = np.linalg.solve(covariance, delta)
    probe = fit_lda(x, shrinkage=method)
    np.testing.assert_allclose(probe.weight, expected, rtol=1e-6, atol=1e-9)
    assert probe.score(x.mean(axis=(0, 1))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("n", "hidden"), SHAPES, ids=["tall", "wide"])
def test_ridge_is_that_of_sklearn_on_labels_of_plus_and_minus_one(n, hidden):
    x = pairs(n, hidden)
    rows, labels = x.reshape(-1, hidden), np.repeat([1.0, -1.0], n)
    alpha = ridge_penalties(train_scatter(x), [0.3])[0]
    theirs = Ridge(alpha=alpha, tol=1e-12).fit(rows, labels)
    probe = fit_ridge(x, penalty=0.3)
    np.testing.assert_allclose(probe.weight, theirs.coef_, rtol=1e-6, atol=1e-9)
    assert probe.bias == pytest.approx(theirs.intercept_)
    assert probe.scale == pytest.approx(
        theirs.coef_ @ (rows[:n].mean(axis=0) - rows[n:].mean(axis=0))
    )


@pytest.mark.parametrize(("n", "hidden"), SHAPES, ids=["tall", "wide"])
def test_leave_group_out_errors_are_those_of_refits(n, hidden):
    x = pairs(n, hidden)
    rows, labels = x.reshape(-1, hidden), np.repeat([1.0, -1.0], n)
    groups = np.tile(np.arange(n) % 4, 2)
    scatter = train_scatter(x)
    found = press_errors(scatter, groups, labels[:, None], penalty=2.5)[:, 0]
    for name in range(4):
        fit = Ridge(alpha=2.5, tol=1e-12).fit(rows[groups != name], labels[groups != name])
        mine = groups == name
        np.testing.assert_allclose(found[mine], labels[mine] - fit.predict(rows[mine]), atol=1e-7)


def test_lda_reaches_phi_of_half_the_mahalanobis_distance():
    """O6: Δ² = δᵀΣ⁻¹δ, AUROC = Φ(Δ/√2), where the difference of means stays below it."""
    rng = np.random.default_rng(0)
    root = np.array([[1.0, 0, 0], [0.9, 0.4, 0], [0, 0.5, 2.0]])
    covariance, delta = root @ root.T, np.array([0.8, -0.2, 0.5])

    def draw():
        x = rng.standard_normal((2, 20_000, 3)) @ root.T
        x[0] += delta
        return x

    train, test = draw(), draw()
    labels = np.repeat([1, 0], test.shape[1])
    distance = math.sqrt(delta @ np.linalg.solve(covariance, delta))
    found = auroc(fit_lda(train).score(test.reshape(-1, 3)), labels)
    assert found == pytest.approx(ndtr(distance / math.sqrt(2)), abs=0.01)
    plain = auroc(fit_diff_means(train).score(test.reshape(-1, 3)), labels)
    expected = ndtr(delta @ delta / math.sqrt(2 * delta @ covariance @ delta))
    assert plain == pytest.approx(expected, abs=0.01)
    assert plain < found - 0.05


def test_lda_and_ridge_become_the_difference_of_means_when_spherical_or_stiff():
    """O6."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 30_000, 5))
    x[0, :, 2] += 1.0
    assert fit_lda(x).unit @ fit_diff_means(x).unit > 0.9995
    narrow = pairs(10, 40)
    assert fit_ridge(narrow, penalty=1e6).unit @ fit_diff_means(narrow).unit > 0.99999


def test_the_principal_axis_of_differences_finds_the_concept_along_their_largest_spread():
    rng = np.random.default_rng(2)
    concept = np.zeros(20)
    concept[3] = 1.0
    base = rng.standard_normal((50, 20))
    x = np.stack([base + 2 * concept, base - 2 * concept]) + 0.3 * rng.standard_normal((2, 50, 20))
    probe = fit_pca_diff(x)
    assert probe.unit @ concept > 0.99
    assert probe.norm == pytest.approx(4.0, rel=0.05)
    turned = fit_pca_diff(x[::-1])
    np.testing.assert_allclose(turned.weight, -probe.weight, atol=1e-9)


@pytest.mark.parametrize(("n", "hidden"), SHAPES, ids=["tall", "wide"])
def test_the_principal_axis_is_the_first_singular_vector_of_uncentred_differences(n, hidden):
    x = pairs(n, hidden)
    differences = x[0] - x[1]
    expected = np.linalg.svd(np.vstack([differences, -differences]))[2][0]
    assert abs(pair_component(differences) @ expected) == pytest.approx(1)


@pytest.mark.parametrize("method", CLOSED)
@pytest.mark.parametrize(("n", "hidden"), SHAPES, ids=["tall", "wide"])
def test_coordinates_of_the_row_space_give_the_probe_of_the_activations(
    synthetic_run, method, n, hidden
):
    run = synthetic_run(n_scenarios=4, pairs_per_scenario=n // 4, hidden=hidden)
    table = pair_table(run.ds)
    x = run.ds["resid_post_mean_response"].values[:, 0][table.rows].astype(float) + 5
    fold = scenario_folds(table, max_folds=100, seed=0).folds[1]
    direct = fit_fold(x, fold, method=method, tuning=Tuning())
    space = pair_space(x)
    there = fit_fold(space.points, fold, method=method, tuning=Tuning(), hidden=hidden)
    lifted = space.lift(there.probe)
    np.testing.assert_allclose(lifted.weight, direct.probe.weight, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(
        there.probe.score(space.points), direct.probe.score(x), rtol=1e-6, atol=1e-7
    )
    assert there.inner_auroc == direct.inner_auroc
    assert there.inner_d_prime == pytest.approx(direct.inner_d_prime)
    assert there.penalty == pytest.approx(direct.penalty, nan_ok=True)
    other = np.random.default_rng(4).standard_normal((6, hidden))
    np.testing.assert_allclose(
        there.probe.score(space.coordinates(other)), lifted.score(other), atol=1e-7
    )


def test_inner_scores_of_ridge_are_those_of_a_loop_over_scenarios(synthetic_run):
    run = synthetic_run(n_scenarios=5, pairs_per_scenario=4, hidden=9, strength=1.5)
    table = pair_table(run.ds)
    x = run.ds["resid_post_mean_response"].values[:, 0][table.rows].astype(float)
    fold = scenario_folds(table, max_folds=100, seed=0).folds[0]
    train = x[:, fold.train]
    tuning = Tuning(lambda_grid=(0.1, 10.0))
    fit = fit_fold(x, fold, method="ridge", tuning=tuning)
    losses, areas = {}, {}
    labels = np.repeat([1.0, -1.0], fold.train.size)
    for penalty in tuning.lambda_grid:
        alpha = ridge_penalties(train_scatter(train), [penalty])[0]
        predicted = np.full(train.shape[:2], np.nan)
        for name in range(4):
            held = fold.inner_scenario == name
            rest = train[:, ~held]
            model = Ridge(alpha=alpha, tol=1e-12)
            model.fit(rest.reshape(-1, 9), np.repeat([1.0, -1.0], rest.shape[1]))
            predicted[:, held] = model.predict(train[:, held].reshape(-1, 9)).reshape(2, -1)
        losses[penalty] = ((predicted.ravel() - labels) ** 2).sum()
        areas[penalty] = auroc(predicted.ravel(), labels > 0)
    assert fit.penalty == min(losses, key=lambda name: losses[name])
    assert fit.inner_auroc == pytest.approx(areas[fit.penalty])


@pytest.mark.parametrize("method", CLOSED)
def test_equal_activations_give_no_direction_and_even_scores(synthetic_run, method):
    table = pair_table(synthetic_run().ds)
    x = np.full((2, table.n_pairs, 6), 3.3)
    fold = scenario_folds(table, max_folds=100, seed=0).folds[0]
    space = pair_space(x)
    fit = fit_fold(space.points, fold, method=method, tuning=Tuning(), hidden=6)
    assert fit.probe.norm == 0
    np.testing.assert_array_equal(fit.probe.score(space.points), 0)
    assert fit.inner_auroc == 0.5


@given(st.integers(0, 10_000), st.sampled_from(["ledoit_wolf", "oas"]))
def test_shrinkage_lies_between_zero_and_one(seed, method):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, rng.integers(2, 12), rng.integers(1, 20)))
    x = x * 10.0 ** rng.integers(-8, 8)
    scatter = train_scatter(x)
    found, mean = shrinkage_intensity(
        scatter, scatter.delta[:, None], scatter.signs[:, None], method=method
    )
    assert 0 <= found[0] <= 1
    assert mean[0] >= 0
    assert np.isfinite(fit_lda(x, shrinkage=method).weight).all()
