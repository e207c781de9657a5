"""One pass over tokens: the same numbers on every scheduler, memory stated, progress, cancel."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from actlake.analyze.kept import load_statistics, save_statistics
from actlake.analyze.schedule import run_tasks
from actlake.analyze.statistics import block_statistics
from actlake.analyze.stream_memory import memory_needed
from actlake.analyze.streamed import repool, streamed_axes, streamed_diff_means, streamed_lda
from actlake.analyze.streaming import (
    LazyRows,
    project_rows,
    spread_over_tokens,
    stream_statistics,
)
from actlake.schemas import CancelledError, CorruptError, InvalidInputError, NotFoundError

N_TEXTS, HIDDEN, N_LAYERS = 24, 6, 2


def tokens(*, chunk=37, seed=0):
    """Tokens of 24 texts, with rows of padding, in uneven Dask chunks."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 15, N_TEXTS)
    text = np.repeat(np.arange(N_TEXTS), lengths)
    text = np.concatenate([text, [-1] * 9])
    values = rng.standard_normal((text.size, N_LAYERS, HIDDEN)).astype(np.float32)
    label = np.arange(N_TEXTS) % 2
    values[..., 0] += 2 * np.where(text >= 0, label[text], 0)[:, None]
    values[text < 0] = np.nan
    array = xr.DataArray(
        values,
        dims=("token", "token_layer", "hidden"),
        coords={"token_layer": [3, 7], "token_text": ("token", text)},
    )
    return array.chunk({"token": chunk, "token_layer": 1}), text, label


def keys(text, label):
    mark = np.arange(text.size) % 3
    return {
        "parts": spread_over_tokens(np.arange(N_TEXTS) // 2 % 3, text),
        "cells": np.where(text < 0, -1, text * 3 + mark),
        "targets": spread_over_tokens(label.astype(float), text)[:, None],
    }


def summary(statistics):
    total = statistics.total()
    axes = streamed_axes(total, n_components=3)
    fold = streamed_diff_means(statistics.total(without=1))
    pooled = repool(statistics, n_marks=3, drop={1})
    return axes.variance, axes.axes, streamed_lda(total).weight, fold.weight, pooled.values


def equal(a, b, **tolerance):
    for one, other in zip(a, b, strict=True):
        if tolerance:
            np.testing.assert_allclose(one, other, **tolerance)
        else:
            np.testing.assert_array_equal(one, other)


def test_a_pass_equals_the_whole_array_at_once():
    array, text, label = tokens()
    found = stream_statistics(array, **keys(text, label), task_bytes=2000, scheduler="threads")
    assert list(found) == [3, 7]
    for k, statistics in enumerate(found.values()):
        whole = block_statistics(array.values[:, k], **keys(text, label))
        equal(summary(statistics), summary(whole), rtol=1e-7, atol=1e-9)
        assert statistics.total().n == (text >= 0).sum()


@pytest.mark.parametrize("scheduler", ["synchronous", "processes"])
def test_every_local_scheduler_adds_up_the_same_numbers(scheduler):
    array, text, label = tokens()
    options = {**keys(text, label), "then": summary, "task_bytes": 1500}
    one = stream_statistics(array, **options, scheduler="threads")
    other = stream_statistics(array, **options, scheduler=scheduler)
    assert list(one) == list(other) == [3, 7]
    for layer in one:
        equal(one[layer], other[layer])


def test_arrays_without_dask_are_read_block_by_block():
    array, text, label = tokens()
    options = {**keys(text, label), "then": summary, "scheduler": "synchronous"}
    lazy, eager = stream_statistics(array, **options), stream_statistics(array.compute(), **options)
    assert list(lazy) == list(eager) == [3, 7]
    for layer in lazy:
        equal(lazy[layer], eager[layer], rtol=1e-7, atol=1e-9)


def test_coordinates_may_have_chunks_of_their_own_as_those_of_a_run_have():
    array, text, label = tokens()
    lazy = array.assign_coords(token_text=("token", text)).chunk({"token": 37})
    lazy = lazy.assign_coords(token_text=lazy["token_text"].chunk({"token": 11}))
    with pytest.raises(ValueError, match="inconsistent chunks"):
        _ = lazy.chunksizes
    options = {**keys(text, label), "then": summary, "task_bytes": 1500, "scheduler": "threads"}
    found, plain = stream_statistics(lazy, **options), stream_statistics(array, **options)
    assert list(found) == list(plain) == [3, 7]
    for layer in plain:
        equal(found[layer], plain[layer])


def test_what_a_job_read_is_not_kept(tmp_path):
    array, text, label = tokens()
    array.drop_vars("token_text").to_dataset(name="x").to_zarr(
        tmp_path / "x.zarr", zarr_format=3, consolidated=False
    )
    lazy = xr.open_zarr(tmp_path / "x.zarr", chunks=None, consolidated=False)["x"]
    part = lazy.variable.isel(token=slice(0, 50), token_layer=1)
    block = LazyRows(part)
    np.testing.assert_array_equal(block.read(), array.values[:50, 1])
    assert not part._in_memory
    options = {**keys(text, label), "then": summary}
    stored = stream_statistics(lazy, **options, task_bytes=1500, scheduler="threads")
    held = stream_statistics(array, **options, task_bytes=1500, scheduler="threads")
    for layer in held:
        equal(stored[layer], held[layer], rtol=1e-7, atol=1e-9)
    assert not lazy.variable._in_memory


def test_no_job_reads_more_than_it_may_and_blocks_stay_whole():
    array, text, label = tokens(chunk=10)
    seen: list[tuple[int, int]] = []
    reading = array.copy()

    def note(block, block_info=None):
        start, stop = block_info[0]["array-location"][0]
        seen.append((start, stop))
        return block

    reading.data = array.data.map_blocks(note, dtype=array.dtype, meta=array.data._meta)
    limit = 25 * HIDDEN * 4
    progress: list[tuple[int, int]] = []
    stream_statistics(
        reading, **keys(text, label), task_bytes=limit, scheduler="synchronous",
        progress=lambda *at: progress.append(at),
    )  # fmt: skip
    n_chunks = -(-text.size // 10)
    assert len(seen) == n_chunks * N_LAYERS  # every object once
    done, total = zip(*progress, strict=True)
    assert done == tuple(range(1, total[0] + 1))
    assert total[0] >= -(-n_chunks // 2) * N_LAYERS  # two chunks to a job


def test_projections_give_every_repooling():
    array, text, label = tokens()
    rng = np.random.default_rng(1)
    directions = {3: rng.standard_normal((HIDDEN, 4))}
    found = project_rows(array, directions, task_bytes=1500, scheduler="threads")[3]
    np.testing.assert_allclose(found, array.values[:, 0] @ directions[3], rtol=1e-5, atol=1e-5)
    statistics = stream_statistics(array, **keys(text, label), layers=[3])[3]
    for drop in range(3):
        pooled = repool(statistics, n_marks=3, drop={drop})
        kept = (text >= 0) & (np.arange(text.size) % 3 != drop)
        mean = np.stack([found[kept & (text == name)].mean(axis=0) for name in pooled.texts])
        np.testing.assert_allclose(pooled.values @ directions[3], mean, atol=1e-5)


def test_memory_is_stated_before_anything_is_read():
    need = memory_needed(hidden=4096, rows_per_job=2048, n_workers=2)
    scatter = 4096 * 4096 * 8
    assert need.job >= 2048 * 4096 * 4 + 2 * scatter
    assert need.total == 2 * need.job + 4 * scatter
    assert need.total < 2 * 2**30
    assert "MiB" in need.sentence()
    many = memory_needed(hidden=4096, rows_per_job=2048, n_workers=64)
    assert many.n_workers == 4  # lanes bound what runs at once
    array, text, label = tokens()

    def unread(block):
        pytest.fail("a block was read")

    closed = array.copy()
    closed.data = array.data.map_blocks(unread, dtype=array.dtype, meta=array.data._meta)
    with pytest.raises(InvalidInputError, match=r"needs 0 MiB: \d jobs at once .* limit of 0 MiB"):
        stream_statistics(closed, **keys(text, label), memory_limit=1000)


def test_a_cancelled_pass_stops_and_goes_on_from_what_was_kept(tmp_path):
    array, text, label = tokens()
    cancel = threading.Event()
    options = {
        **keys(text, label), "then": summary, "cache": tmp_path, "identity": "digest name",
        "task_bytes": 1500, "scheduler": "synchronous",
    }  # fmt: skip

    def progress(done, total):
        if list(tmp_path.glob("*.npz")):
            cancel.set()

    with pytest.raises(CancelledError, match=r"cancelled after \d+ of \d+ tasks"):
        stream_statistics(array, **options, progress=progress, cancel=cancel)
    assert len(list(tmp_path.glob("*.npz"))) == 1
    counts: list[int] = []
    found = stream_statistics(array, **options, progress=lambda _, total: counts.append(total))
    fresh = stream_statistics(array, **{**options, "cache": None})
    for layer in found:
        equal(found[layer], fresh[layer])
    again: list[int] = []
    stream_statistics(array, **options, progress=lambda _, total: again.append(total))
    assert again[0] < counts[0]
    other = {**options, "identity": "another run"}
    stream_statistics(array, **other)
    assert len(list(tmp_path.glob("*.npz"))) == 4
    with pytest.raises(InvalidInputError, match="identity of what is read"):
        stream_statistics(array, **{**options, "identity": ""})


def test_a_pass_goes_on_from_the_lanes_of_an_unfinished_layer(tmp_path):
    array, text, label = tokens()
    cancel = threading.Event()
    options = {
        **keys(text, label), "then": summary, "cache": tmp_path, "identity": "digest name",
        "task_bytes": 500, "scheduler": "synchronous", "layers": [3],
    }  # fmt: skip

    def progress(done, total):
        if len(list(tmp_path.glob("*-lane-*.npz"))) == 2:
            cancel.set()

    with pytest.raises(CancelledError):
        stream_statistics(array, **options, progress=progress, cancel=cancel)
    assert len(list(tmp_path.glob("*.npz"))) == 2
    read = []

    def note(block):
        read.append(block.shape)
        return block

    noted = array.copy()
    noted.data = array.data.map_blocks(note, dtype=array.dtype, meta=array.data._meta)
    found = stream_statistics(noted, **options)
    assert 0 < len(read) < array.data.numblocks[0]
    equal(found[3], stream_statistics(array, **{**options, "cache": None})[3])
    assert [path.name for path in tmp_path.glob("*-lane-*")] == []
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_statistics_survive_their_file(tmp_path):
    array, text, label = tokens()
    found = stream_statistics(array, **keys(text, label), layers=[7])[7]
    save_statistics(found, tmp_path / "s.npz")
    back = load_statistics(tmp_path / "s.npz")
    equal(summary(found), summary(back))
    assert back.n_bytes == found.n_bytes
    Path(tmp_path / "s.npz").write_bytes(b"no")
    with pytest.raises(CorruptError, match="holds no statistics"):
        load_statistics(tmp_path / "s.npz")


def test_what_does_not_fit_is_refused():
    array, text, label = tokens()
    good = keys(text, label)
    with pytest.raises(InvalidInputError, match="a part, a cell and targets for"):
        stream_statistics(array, **{**good, "parts": good["parts"][:-1]})
    with pytest.raises(NotFoundError, match=r"no layers \[5\]; it has \[3, 7\]"):
        stream_statistics(array, **good, layers=[5])
    with pytest.raises(InvalidInputError, match="expected an array with dims"):
        stream_statistics(array.isel(token_layer=0), **good)
    nan = np.where(np.arange(text.size) == 4, 0, good["parts"])
    nan[text < 0] = 0
    with pytest.raises(
        InvalidInputError, match=r"layer [37], rows \d+ to \d+: row \d+ of the block"
    ):
        stream_statistics(array, **{**good, "parts": nan}, scheduler="threads")
    with pytest.raises(InvalidInputError, match="names text 24, there are 24"):
        spread_over_tokens(np.zeros(24), np.array([24]))


def test_a_cancelled_list_of_tasks_runs_no_more_of_them():
    from dask.delayed import delayed

    cancel, ran = threading.Event(), []

    def work(k):
        ran.append(k)
        cancel.set()

    tasks = [delayed(work)(k) for k in range(20)]
    with pytest.raises(CancelledError):
        run_tasks(tasks, scheduler="synchronous", cancel=cancel)
    assert len(ran) == 1
