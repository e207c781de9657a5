from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from actlake.analyze.geometry import _mixed_axes, effective_rank, principal_axes
from actlake.schemas import InvalidInputError


@pytest.mark.parametrize(("n", "hidden"), [(50, 8), (9, 40)], ids=["tall", "wide"])
def test_axes_and_variance_equal_sklearn_up_to_sign(n, hidden):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, hidden)) * np.linspace(5, 0.5, hidden) + 3
    found = principal_axes(x, n_components=5)
    model = PCA(5, svd_solver="full").fit(x)
    np.testing.assert_allclose(found.variance, model.explained_variance_, rtol=1e-9)
    np.testing.assert_allclose(found.explained, model.explained_variance_ratio_, rtol=1e-9)
    signs = np.sign((found.axes * model.components_).sum(axis=1))
    np.testing.assert_allclose(found.axes, signs[:, None] * model.components_, atol=1e-8)
    np.testing.assert_allclose(found.project(x), signs * model.transform(x), atol=1e-8)


@given(st.integers(0, 1000), st.booleans())
def test_an_axis_points_where_its_largest_entry_is_positive(seed, wide):
    shape = (6, 20) if wide else (20, 6)
    axes = principal_axes(np.random.default_rng(seed).standard_normal(shape), n_components=4).axes
    largest = np.abs(axes).argmax(axis=1)
    assert (axes[np.arange(len(axes)), largest] > 0).all()


def test_effective_rank_of_equal_variances_is_their_number():
    assert effective_rank(np.full(7, 2.5)) == pytest.approx(7)
    assert effective_rank(np.array([1.0, 0, 0])) == pytest.approx(1)
    x = np.random.default_rng(1).standard_normal((20_000, 12))
    assert principal_axes(x, n_components=1).effective_rank == pytest.approx(12, rel=0.01)


def test_there_are_no_more_axes_than_directions_with_variance():
    rng = np.random.default_rng(2)
    flat = rng.standard_normal((30, 2)) @ rng.standard_normal((2, 9)) + 100
    assert principal_axes(flat, n_components=6).axes.shape == (2, 9)
    assert principal_axes(np.full((8, 4), 0.1), n_components=3).axes.shape == (0, 4)


def cloud(decay, *, massive=0.0, offset=3.0, n=260, hidden=700):
    """Rows in float32 whose spectrum falls by a power, with one coordinate far larger."""
    rng = np.random.default_rng(4)
    strength = (1 + np.arange(n)) ** -decay
    x = offset + (rng.standard_normal((n, n)) * strength) @ rng.standard_normal((n, hidden))
    x[:, 5] += massive * rng.standard_normal(n)
    return x.astype(np.float32)


@pytest.mark.parametrize(
    ("options", "single"),
    [
        ({"decay": 0.3}, True),
        ({"decay": 0.7}, True),
        ({"decay": 0.7, "offset": 3000.0}, True),
        ({"decay": 1.5}, False),
        ({"decay": 0.7, "massive": 3000.0}, False),
    ],
)
def test_single_precision_is_used_where_it_costs_no_digits(options, single):
    x = cloud(**options)
    mean = x.mean(axis=0, dtype=np.float64)
    assert (_mixed_axes(x, mean, n_components=30) is not None) == single
    found = principal_axes(x, n_components=30)
    _, exact, axes = np.linalg.svd(x - mean, full_matrices=False)
    np.testing.assert_allclose(np.sqrt(found.variance * (len(x) - 1)), exact[:30], rtol=1e-5)
    np.testing.assert_allclose(np.abs((found.axes * axes[:30]).sum(axis=1)), 1, atol=1e-5)
    coordinates = (x - mean) @ found.axes.T
    np.testing.assert_allclose(found.project(x), coordinates, atol=1e-5 * exact[0])
    assert found.effective_rank == pytest.approx(effective_rank(exact**2), rel=1e-5)
    assert found.total_variance == pytest.approx((exact**2).sum() / (len(x) - 1), rel=1e-6)


def test_one_text_is_refused():
    with pytest.raises(InvalidInputError, match="two texts or more"):
        principal_axes(np.ones((1, 3)), n_components=2)
