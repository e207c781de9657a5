"""Statistics of blocks: equal to direct computation, in whatever order they are merged."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from dask.sizeof import sizeof
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from actlake.analyze.geometry import principal_axes
from actlake.analyze.inner_products import oas_shrinkage
from actlake.analyze.statistics import (
    STEP_ROWS,
    Statistics,
    block_statistics,
    merge_statistics,
)
from actlake.analyze.streamed import (
    repool,
    streamed_axes,
    streamed_diff_means,
    streamed_lda,
    streamed_ridge,
)
from actlake.schemas import InvalidInputError


def data(n=300, hidden=7, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n)
    x = rng.standard_normal((n, hidden)) * np.linspace(1, 3, hidden) + offset
    x[:, 0] += 1.5 * label
    return x, label.astype(float)[:, None], rng.integers(0, 4, n), rng.integers(0, 9, n)


def direct(x, y):
    centred, of_y = x - x.mean(axis=0), y - y.mean(axis=0)
    return centred.T @ centred, centred.T @ of_y


def check(found, x, y, *, rtol=1e-9):
    scatter, cross = direct(x, y)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.full_scatter(), scatter, rtol=rtol, atol=1e-7)
    np.testing.assert_allclose(found.cross, cross, rtol=rtol, atol=1e-7)
    assert found.trace == pytest.approx(np.trace(scatter))
    assert found.squared == pytest.approx((scatter**2).sum())
    assert found.n == len(x)


def same(a, b, *, atol=1e-9):
    np.testing.assert_array_equal(a.cells, b.cells)
    np.testing.assert_array_equal(a.cell_counts, b.cell_counts)
    np.testing.assert_allclose(a.cell_means, b.cell_means, atol=atol)
    assert a.parts.keys() == b.parts.keys()
    for name in a.parts:
        one, other = a.parts[name], b.parts[name]
        assert one.n == other.n
        for field in ("mean", "target_mean", "target_scatter", "cross"):
            np.testing.assert_allclose(getattr(one, field), getattr(other, field), atol=atol)
        np.testing.assert_allclose(one.full_scatter(), other.full_scatter(), atol=atol)


@given(
    st.lists(st.integers(0, 60), min_size=3, max_size=3),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1e3]),
)
@settings(max_examples=60)
def test_merging_is_associative_commutative_and_equal_to_one_block(sizes, seed, offset):
    x, y, parts, cells = data(sum(sizes), seed=seed, offset=offset)
    edges = np.cumsum([0, *sizes])
    blocks = [
        block_statistics(x[a:b], parts=parts[a:b], cells=cells[a:b], targets=y[a:b])
        for a, b in pairwise(edges)
    ]
    left = merge_statistics(merge_statistics(blocks[0], blocks[1]), blocks[2])
    right = merge_statistics(blocks[0], merge_statistics(blocks[1], blocks[2]))
    turned = reduce(merge_statistics, blocks[::-1])
    whole = block_statistics(x, parts=parts, cells=cells, targets=y)
    for other in (right, turned, whole):
        same(left, other, atol=1e-7)
    for name, part in left.parts.items():
        check(part, x[parts == name], y[parts == name], rtol=1e-7)


def test_blocks_longer_than_a_step_equal_direct_computation():
    x, y, parts, cells = data(2 * STEP_ROWS + 77, hidden=5)
    found = block_statistics(x.astype(np.float32), parts=parts * 0, cells=cells, targets=y)
    exact = x.astype(np.float32).astype(np.float64)
    check(found.parts[0], exact, y)
    for cell in range(9):
        np.testing.assert_allclose(found.cell_means[cell], exact[cells == cell].mean(axis=0))


def test_a_large_common_offset_loses_no_digits():
    """Sums of squares would: 1e6² of 1e12 leaves four digits of a variance of one."""
    x, y, parts, _ = data(4000, offset=1e6)
    halves = [block_statistics(x[s], parts=parts[s] * 0, targets=y[s]) for s in
              (slice(0, 1500), slice(1500, None))]  # fmt: skip
    found = merge_statistics(*halves).total()
    scatter, _ = direct(x, y)
    np.testing.assert_allclose(found.full_scatter(), scatter, rtol=1e-7, atol=1e-5)


def test_merging_leaves_what_it_merges_as_it_was_unless_it_may_reuse_it():
    x, y, parts, cells = data()
    a, b = (
        block_statistics(x[s], parts=parts[s], cells=cells[s], targets=y[s])
        for s in (slice(0, 100), slice(100, None))
    )
    before = [part.scatter.copy() for part in (*a.parts.values(), *b.parts.values())]
    merged = merge_statistics(a, b)
    after = [part.scatter for part in (*a.parts.values(), *b.parts.values())]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    same(merge_statistics(a, b, reuse=True), merged)


def test_rows_of_no_part_and_no_cell_are_left_out():
    x, y, parts, cells = data()
    parts[:50], cells[:30] = -1, -1
    broken = x.copy()
    broken[:30] = np.nan  # padding
    found = block_statistics(broken, parts=parts, cells=cells, targets=y)
    check(found.total(), x[50:], y[50:])
    assert found.cell_counts.sum() == 270
    with pytest.raises(InvalidInputError, match="of the block has NaN or infinite"):
        block_statistics(np.where(np.arange(300)[:, None] < 70, np.nan, x), parts=parts)


def test_a_scheduler_learns_what_statistics_weigh():
    x, y, parts, cells = data()
    found = block_statistics(x, parts=parts, cells=cells, targets=y)
    arrays = [found.cell_means, *(part.scatter for part in found.parts.values())]
    assert sizeof(found) >= found.n_bytes >= sum(array.nbytes for array in arrays)


def test_rows_of_all_sizes_and_orders_are_the_same_statistics():
    x, y, parts, cells = data(2500)
    x = x.astype(np.float32) * 10 + 100
    found = block_statistics(x, parts=parts, cells=cells, targets=y)
    for part, moments in found.parts.items():
        check(moments, x[parts == part].astype(np.float64), y[parts == part])
    for name, mean in zip(found.cells, found.cell_means, strict=True):
        np.testing.assert_allclose(mean, x[cells == name].mean(axis=0, dtype=np.float64))


def test_infinite_values_of_both_signs_are_refused_without_a_warning():
    x, y, parts, _ = data()
    x[3, 1], x[4, 1] = np.inf, -np.inf
    with pytest.raises(InvalidInputError, match="row 3 of the block has NaN or infinite"):
        block_statistics(x, parts=parts * 0, targets=y)


def test_a_fold_is_all_parts_but_one():
    x, y, parts, _ = data()
    found = block_statistics(x, parts=parts, targets=y)
    for fold in range(4):
        check(found.total(without=fold), x[parts != fold], y[parts != fold])
    with pytest.raises(InvalidInputError, match="no rows are left"):
        Statistics(7).total()


@pytest.mark.parametrize(("n", "hidden"), [(200, 6), (9, 20)], ids=["tall", "wide"])
def test_components_equal_those_of_the_rows(n, hidden):
    x, y, parts, _ = data(n, hidden)
    found = streamed_axes(block_statistics(x, parts=parts * 0, targets=y).total(), n_components=4)
    exact = principal_axes(x, n_components=4)
    np.testing.assert_allclose(found.variance, exact.variance, rtol=1e-9)
    np.testing.assert_allclose(found.axes, exact.axes, atol=1e-7)
    np.testing.assert_allclose(found.explained, exact.explained, rtol=1e-9)
    np.testing.assert_allclose(
        found.explained, PCA(4, svd_solver="full").fit(x).explained_variance_ratio_
    )
    assert found.effective_rank == pytest.approx(exact.effective_rank)
    np.testing.assert_allclose(found.project(x), exact.project(x), atol=1e-7)


def test_difference_of_means_ridge_and_lda_equal_direct_computation():
    x, y, parts, _ = data(400, offset=5.0)
    label = y[:, 0].astype(bool)
    moments = block_statistics(x, parts=parts, targets=y).total()
    plus, minus = x[label].mean(axis=0), x[~label].mean(axis=0)
    means = streamed_diff_means(moments)
    np.testing.assert_allclose(means.weight, plus - minus, atol=1e-9)
    np.testing.assert_allclose(means.score(np.stack([plus, minus])), [0.5, -0.5], atol=1e-9)

    scatter, _ = direct(x, y)
    kappa = 0.3 * np.trace(scatter) / x.shape[1]
    model = Ridge(alpha=kappa).fit(x, y[:, 0])
    ridge = streamed_ridge(moments, penalty=0.3)
    np.testing.assert_allclose(ridge.weight, model.coef_, rtol=1e-8)
    np.testing.assert_allclose(x @ ridge.weight + ridge.bias, model.predict(x) - 0.5, atol=1e-9)

    residual = np.where(label[:, None], x - plus, x - minus)
    intensity, target = oas_shrinkage(residual, n_freedom=398)
    within = (1 - intensity) * residual.T @ residual / 398 + intensity * target * np.eye(7)
    expected = np.linalg.solve(within, plus - minus)
    lda = streamed_lda(moments)
    np.testing.assert_allclose(lda.weight, expected, rtol=1e-7)
    middle = (plus + minus) / 2
    assert middle @ lda.weight + lda.bias == pytest.approx(0, abs=1e-9)


def test_labels_that_are_not_binary_and_one_class_are_refused():
    x, y, parts, _ = data()
    with pytest.raises(InvalidInputError, match="labels must be 0 or 1"):
        streamed_lda(block_statistics(x, parts=parts, targets=y * 2).total())
    with pytest.raises(InvalidInputError, match="labels must be 0 or 1"):
        streamed_ridge(block_statistics(x, parts=parts, targets=x[:, :1]).total(), penalty=1)
    with pytest.raises(InvalidInputError, match="one class: 0 of"):
        streamed_diff_means(block_statistics(x, parts=parts, targets=y * 0).total())
    with pytest.raises(InvalidInputError, match="needs one target"):
        streamed_diff_means(block_statistics(x, parts=parts).total())
    with pytest.raises(InvalidInputError, match="rows that vary"):
        streamed_axes(block_statistics(x[:1], parts=parts[:1]).total(), n_components=2)


@given(st.integers(0, 300), st.integers(1, 3))
def test_repooling_is_the_mean_of_the_tokens_that_are_kept(seed, n_marks):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((80, 3))
    text, mark = np.sort(rng.integers(0, 6, 80)), rng.integers(0, n_marks, 80)
    blocks = [
        block_statistics(x[s], parts=text[s] * 0 - 1, cells=text[s] * n_marks + mark[s])
        for s in (slice(0, 33), slice(33, 80))
    ]
    found = merge_statistics(*blocks)
    for drop in range(n_marks):
        dropped = {drop} if n_marks > 1 else set()
        pooled = repool(found, n_marks=n_marks, drop=dropped)
        for at, name in enumerate(pooled.texts):
            kept = (text == name) & ~np.isin(mark, list(dropped))
            np.testing.assert_allclose(pooled.values[at], x[kept].mean(axis=0), atol=1e-12)
            assert pooled.counts[at] == kept.sum()
    with pytest.raises(InvalidInputError, match="marks are 0 to"):
        repool(found, n_marks=n_marks, drop={n_marks})
