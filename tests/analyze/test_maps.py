"""Maps between models: oracles O7 and O8."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group
from sklearn.linear_model import Ridge

from actlake.analyze.maps import (
    AnchorMaps,
    Basis,
    carry_probe,
    carry_vector,
    fit_map,
    random_orthogonal_map,
)
from actlake.analyze.probes import LinearProbe
from actlake.schemas import InvalidInputError

GRID = (1e-4, 1e-2, 1.0, 100.0)
METHODS = ("procrustes", "ridge", "cca")


def maps(x, y, *, n_folds=5, n_components=64, groups=None):
    names = np.array([f"g{i // 2}" for i in range(len(x))]) if groups is None else groups
    return AnchorMaps(x, y, groups=names, n_folds=n_folds, n_components=n_components, seed=0)


def grid(method):
    return (1e-3, 0.1, 0.5) if method == "cca" else GRID


def unit(v):
    return v / np.linalg.norm(v)


@given(st.integers(0, 500), st.floats(0.1, 10))
def test_an_orthogonal_map_is_found_and_carries_vectors_and_covectors_alike(seed, scale):
    """O7: the two agree for orthogonal maps."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, 6)) * np.linspace(1, 3, 6) + 5
    turn = ortho_group.rvs(6, random_state=seed)
    y = scale * x @ turn.T - 2
    there, back = maps(x, y), maps(y, x)
    forward = there.fit("procrustes", penalty=0)
    np.testing.assert_allclose(forward.matrix, scale * turn, atol=1e-8 * scale)
    np.testing.assert_allclose(forward.apply(x), y, atol=1e-6)
    probe = LinearProbe(rng.standard_normal(6), 0.7)
    carried = carry_probe(back.fit("procrustes", penalty=0), probe)
    as_vector = carry_vector(forward, probe.weight)
    assert unit(carried.weight) @ unit(as_vector) == pytest.approx(1)
    np.testing.assert_allclose(carried.score(y), probe.score(x), atol=1e-8)


def test_a_map_that_is_not_orthogonal_carries_vectors_and_covectors_apart():
    """O7: a probe through Nᵀ keeps its scores, through M it does not."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 5))
    shear = rng.standard_normal((8, 5)) * np.array([5, 1, 1, 0.2, 1])
    y = x @ shear.T + 3
    back, there = maps(y, x), maps(x, y)
    probe = LinearProbe(rng.standard_normal(5), -0.3)
    carried = carry_probe(back.fit("ridge", penalty=1e-9), probe)
    np.testing.assert_allclose(carried.score(y), probe.score(x), atol=1e-5)
    as_vector = carry_vector(there.fit("ridge", penalty=1e-9), probe.weight)
    np.testing.assert_allclose(as_vector, shear @ probe.weight, atol=1e-5)
    assert unit(carried.weight) @ unit(as_vector) < 0.9
    wrong = LinearProbe(as_vector, 0.0)
    assert np.corrcoef(wrong.score(y), probe.score(x))[0, 1] < 0.9


@pytest.mark.parametrize(("n", "hidden"), [(60, 9), (20, 50)], ids=["tall", "wide"])
def test_ridge_equals_sklearn(n, hidden):
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((n, hidden)) + 4, rng.standard_normal((n, 7)) - 1
    basis = Basis.of(x)
    fitted = fit_map(basis, Basis.of(y), method="ridge", penalty=0.3, n_components=1)
    model = Ridge(alpha=0.3 * basis.power.mean()).fit(x, y)
    fresh = rng.standard_normal((10, hidden))
    np.testing.assert_allclose(fitted.apply(fresh), model.predict(fresh), atol=1e-8)
    np.testing.assert_allclose(fitted.offset, model.intercept_, atol=1e-8)


def test_procrustes_without_its_scale_is_scipys():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((50, 6))
    y = x @ ortho_group.rvs(6, random_state=0) + rng.standard_normal((50, 6))
    mine = maps(x, y).fit("procrustes", penalty=0).matrix
    theirs, _ = orthogonal_procrustes(x - x.mean(axis=0), y - y.mean(axis=0))
    np.testing.assert_allclose(mine / np.linalg.norm(mine, 2), theirs.T, atol=1e-8)


def test_unpenalised_cca_of_all_components_is_least_squares():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((60, 5))
    y = x @ rng.standard_normal((5, 4)) + rng.standard_normal((60, 4))
    wide = np.concatenate([y, rng.standard_normal((60, 1))], axis=1)
    fitted = maps(x, wide).fit("cca", penalty=0.0)
    expected = np.linalg.lstsq(x - x.mean(axis=0), wide - wide.mean(axis=0), rcond=None)[0]
    np.testing.assert_allclose(fitted.matrix, expected.T, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_related_models_have_held_out_r2_and_independent_ones_do_not(method):
    """70 anchors of independent data would give an in-sample R² near 1 (SCIENCE §5)."""
    rng = np.random.default_rng(5)
    latent = rng.standard_normal((70, 4))
    x = latent @ rng.standard_normal((4, 100)) + 0.1 * rng.standard_normal((70, 100))
    y = latent @ rng.standard_normal((4, 80)) + 0.1 * rng.standard_normal((70, 80))
    related = maps(x, y, n_components=4)
    assert related.held_out_r2(method, grid(method)) > (0.3 if method == "procrustes" else 0.9)
    noise = rng.standard_normal((70, 100)), rng.standard_normal((70, 80))
    apart = maps(*noise, n_components=64)
    assert apart.held_out_r2(method, grid(method)) < 0.02
    if method == "ridge":
        fitted = apart.fit("ridge", penalty=1e-4)
        error = ((noise[1] - fitted.apply(noise[0])) ** 2).sum()
        assert 1 - error / ((noise[1] - noise[1].mean(axis=0)) ** 2).sum() > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_permuted_anchors_have_no_held_out_r2(method):
    """O8."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((80, 30))
    y = x @ rng.standard_normal((30, 40))
    found = maps(x, y, n_components=20)
    penalty = found.choose_penalty(method, grid(method))
    permuted = [found.permuted_r2(method, penalty=penalty, rng=rng) for _ in range(20)]
    assert np.mean(permuted) <= 0
    assert found.held_out_r2(method, grid(method)) > np.max(permuted) + 0.1


def test_groups_are_never_divided_between_training_and_held_out_anchors():
    rng = np.random.default_rng(7)
    # Twins: the same text under two ids. Held out apart from its twin it cannot be looked up.
    x = np.repeat(rng.standard_normal((30, 40)), 2, axis=0)
    y = np.repeat(rng.standard_normal((30, 40)), 2, axis=0)
    twins = np.repeat([f"g{i}" for i in range(30)], 2)
    together = maps(x, y, groups=twins).held_out_r2("ridge", GRID)
    leaking = maps(x, y, groups=np.array([f"t{i}" for i in range(60)])).held_out_r2("ridge", GRID)
    assert together < 0.02
    assert leaking > 0.2


def test_a_random_rotation_keeps_lengths_in_the_anchors_space():
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((40, 6)), rng.standard_normal((40, 6))
    random = random_orthogonal_map(Basis.of(x), Basis.of(y), n_components=6, rng=rng)
    np.testing.assert_allclose(random.matrix @ random.matrix.T, np.eye(6), atol=1e-10)


def test_too_few_anchors_are_refused():
    rng = np.random.default_rng(9)
    with pytest.raises(InvalidInputError, match="6 anchor texts or more"):
        maps(rng.standard_normal((5, 3)), rng.standard_normal((5, 3)))
    with pytest.raises(InvalidInputError, match="in 2;"):
        maps(
            rng.standard_normal((8, 3)),
            rng.standard_normal((8, 3)),
            groups=np.repeat(["a", "b"], 4),
        )
    with pytest.raises(InvalidInputError, match="nothing to map"):
        maps(np.ones((8, 3)), rng.standard_normal((8, 3)))
