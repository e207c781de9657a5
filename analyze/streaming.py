"""One pass over a (row, layer, hidden) array: Dask jobs per row-block, statistics per layer.

A lane is a chain of jobs over consecutive row-blocks that hands its statistics on, so that the
memory of a pass is that of the jobs that run at once, however long the array is. The number of
lanes is fixed, and not that of the workers: every scheduler adds up the same numbers in the same
order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import xarray as xr
from dask.base import optimize
from dask.delayed import delayed
from dask.system import CPU_COUNT
from numpy.typing import NDArray

from ..schemas import InvalidInputError, NotFoundError, digest_json, parse_size
from .auroc import Floats
from .kept import load_statistics, save_statistics
from .schedule import Progress, one_blas_thread, run_tasks
from .statistics import STEP_ROWS, Statistics, block_statistics, merge_statistics
from .stream_memory import N_LANES, memory_needed

__all__ = [
    "LazyRows",
    "array_dims",
    "lazy_rows",
    "project_rows",
    "row_spans",
    "spread_over_tokens",
    "stream_statistics",
]

Ints = NDArray[np.int64]
DEFAULT_TASK = "32MiB"


def spread_over_tokens(
    values: NDArray[Any], token_text: NDArray[np.integer[Any]], *, fill: float = -1
) -> NDArray[Any]:
    """Return what holds of each text for each of its tokens; ``fill`` where there is no text.

    ``values`` has dims (text, ...), ``token_text`` (token,) the row of each token's text, −1 for
    padding.
    """
    if token_text.size and int(token_text.max()) >= len(values):
        msg = f"token_text names text {int(token_text.max())}, there are {len(values)}"
        raise InvalidInputError(msg)
    spread: NDArray[Any] = np.asarray(values)[np.maximum(token_text, 0)]
    spread[token_text < 0] = fill
    return spread


def stream_statistics(
    array: xr.DataArray,
    *,
    parts: Ints,
    cells: Ints | None = None,
    targets: Floats | None = None,
    layers: Sequence[int] | None = None,
    then: Callable[[Statistics], Any] | None = None,
    scheduler: str | None = None,
    task_bytes: int | str = DEFAULT_TASK,
    n_lanes: int = N_LANES,
    n_workers: int | None = None,
    memory_limit: int | str | None = None,
    cache: str | Path | None = None,
    identity: str = "",
    progress: Progress | None = None,
    cancel: Event | None = None,
) -> dict[int, Any]:
    """Return the statistics of every layer of ``array`` after one pass over it.

    Parameters
    ----------
    array
        dims (row, layer, hidden): tokens or texts, lazy. Rows of NaN padding are fine where
        they belong to no part and no cell.
    parts, cells, targets
        Of every row, see :func:`block_statistics`.
    layers
        Values of the layer coordinate; None is all.
    then
        Turns the statistics of a layer into what is wanted of them, in the job itself, so that
        the scatters of many layers are never held at once. Picklable for processes and clusters.
    scheduler, progress, cancel
        See :func:`run_tasks`.
    task_bytes
        Most that a job reads, as a number or such as ``64MiB``; at least one row-block.
    n_lanes
        Chains of jobs per layer: how many jobs of one layer can run at once.
    n_workers
        Jobs at once, for the statement of memory; None is the number of cores.
    memory_limit
        Refuse before anything is read if :func:`memory_needed` is above it.
    cache
        Folder where the statistics of finished layers, and of finished lanes of an unfinished
        one, are kept and taken from: resuming is running it again. Workers of a cluster must see
        the same folder.
    identity
        What the array holds, such as the run's content digest and the array's name: with the
        parts, cells and targets it keys the cache.

    Raises
    ------
    InvalidInputError
        If the array has other dims, lengths differ, there is a cache and no identity, more
        memory is needed than allowed, or a row has NaN.
    NotFoundError
        If a layer is missing.
    CancelledError
        If ``cancel`` was set; finished layers and lanes are in the cache.
    """
    rows, of_layer, hidden_dim = array_dims(array)
    n_rows, hidden = array.sizes[rows], array.sizes[hidden_dim]
    lengths = {len(parts), n_rows if cells is None else len(cells)}
    lengths.add(n_rows if targets is None else len(targets))
    if lengths != {n_rows}:
        msg = f"expected a part, a cell and targets for {n_rows} rows, got {sorted(lengths)}"
        raise InvalidInputError(msg)
    if cache is not None and not identity:
        msg = "a cache needs the identity of what is read, such as the run's content digest"
        raise InvalidInputError(msg)
    spans = row_spans(array, rows, hidden, task_bytes=task_bytes)
    widest = max(span.stop - span.start for span in spans)
    need = memory_needed(
        hidden=hidden,
        rows_per_job=widest,
        n_workers=n_workers or CPU_COUNT,
        n_parts=max(1, np.unique(parts[parts >= 0]).size),
        n_cells=0 if cells is None else np.unique(cells[cells >= 0]).size,
        itemsize=array.dtype.itemsize,
        n_lanes=n_lanes,
    )
    if memory_limit is not None and need.total > _bytes(memory_limit):
        msg = (
            f"the pass needs {need.sentence()}, more than the limit of "
            f"{_bytes(memory_limit) / 2**20:.0f} MiB; take fewer parts or lanes, smaller tasks, "
            "or fewer workers"
        )
        raise InvalidInputError(msg)
    chosen = _layer_places(array, of_layer, layers)
    groups = [(parts[s], _cut(cells, s), _cut(targets, s)) for s in spans]
    shared = [delayed(group, traverse=False) for group in groups]
    key = _key(identity, parts, cells, targets, n_lanes, [(s.start, s.stop) for s in spans])
    tasks = []
    for layer, at in chosen.items():
        path = None if cache is None else Path(cache) / f"{digest_json([key, layer])[7:39]}.npz"
        if path is not None and path.is_file():
            tasks.append(delayed(_finish_kept)(str(path), then))
            continue
        lanes: list[Any] = []
        kept: list[str] = []
        for at_lane, lane in enumerate(
            np.array_split(np.arange(len(spans)), min(n_lanes, len(spans)))
        ):
            state: Any = None
            if path is not None:
                kept.append(str(path.with_name(f"{path.stem}-lane-{at_lane}.npz")))
                if Path(kept[-1]).is_file():
                    lanes.append(delayed(load_statistics)(kept[-1]))
                    continue
            for k in lane:
                state = delayed(_job)(
                    state,
                    _lazy(array, {rows: spans[k], of_layer: at}),
                    shared[k],
                    where=f"layer {layer}, rows {spans[k].start} to {spans[k].stop - 1}",
                )
            lanes.append(state if path is None else delayed(_keep)(state, kept[-1]))
        merged = lanes[0]
        for lane in lanes[1:]:
            merged = delayed(_merge)(merged, lane)
        tasks.append(delayed(_finish)(merged, then, None if path is None else str(path), kept))
    results = run_tasks(tasks, scheduler=scheduler, progress=progress, cancel=cancel)
    return dict(zip(chosen, results, strict=True))


@dataclass(frozen=True)
class LazyRows:
    """A part of an array (row, hidden) that a job reads by itself: nothing is read ahead."""

    variable: xr.Variable

    def read(self) -> NDArray[Any]:
        """Return the values, dims (row, hidden)."""
        if self.variable.chunks:
            data = self.variable.data.compute(scheduler="synchronous")
            return np.asarray(data)
        # A view of its own: xarray keeps what it reads in the variable that it was read from.
        values: NDArray[Any] = self.variable.isel({self.variable.dims[0]: slice(None)}).values
        return values


def _job(state: Statistics | None, block: LazyRows, groups: Any, *, where: str) -> Statistics:  # noqa: ANN401
    """Read one row-block and add its statistics to those that came before."""
    parts, cells, targets = groups
    with one_blas_thread():
        try:
            found = block_statistics(block.read(), parts=parts, cells=cells, targets=targets)
        except InvalidInputError as err:
            msg = f"{where}: {err}"
            raise InvalidInputError(msg) from err
        return found if state is None else merge_statistics(state, found, reuse=True)


def _merge(a: Statistics, b: Statistics) -> Statistics:
    return merge_statistics(a, b)


def _keep(found: Statistics, path: str) -> Statistics:
    save_statistics(found, path)
    return found


def _finish(
    found: Statistics,
    then: Callable[[Statistics], Any] | None,
    path: str | None,
    lanes: Sequence[str] = (),
) -> Any:  # what ``then`` makes of them  # noqa: ANN401
    if path is not None:
        save_statistics(found, path)
    for lane in lanes:  # the layer has them now
        Path(lane).unlink(missing_ok=True)
    with one_blas_thread():
        return found if then is None else then(found)


def _finish_kept(path: str, then: Callable[[Statistics], Any] | None) -> Any:  # noqa: ANN401
    return _finish(load_statistics(path), then, None)


def _cut(values: NDArray[Any] | None, span: slice) -> NDArray[Any] | None:
    return None if values is None else values[span]


def _bytes(size: int | str) -> int:
    return size if isinstance(size, int) else parse_size(size)


def array_dims(array: xr.DataArray) -> tuple[str, str, str]:
    """Return the dims of rows, layers and hidden; raise InvalidInputError where it has others."""
    if array.ndim != 3 or array.dims[2] != "hidden" or "layer" not in str(array.dims[1]):
        msg = (
            f"expected an array with dims (token, layer, hidden) or (text, layer, hidden), got "
            f"{array.dims}"
        )
        raise InvalidInputError(msg)
    if not array.size:
        msg = f"the array is empty: {dict(array.sizes)}"
        raise InvalidInputError(msg)
    rows, layer, hidden = map(str, array.dims)
    return rows, layer, hidden


def _layer_places(array: xr.DataArray, dim: str, layers: Sequence[int] | None) -> dict[int, int]:
    there = {int(v): k for k, v in enumerate(np.asarray(array[dim].values))}
    missing = [layer for layer in layers or () if layer not in there]
    if missing:
        msg = f"the array has no layers {missing}; it has {list(there)}"
        raise NotFoundError(msg)
    return there if layers is None else {layer: there[layer] for layer in layers}


def row_spans(array: xr.DataArray, rows: str, hidden: int, *, task_bytes: int | str) -> list[slice]:
    """Return the rows of every job: whole row-blocks, as many as ``task_bytes`` allows."""
    n = array.sizes[rows]
    most = max(1, _bytes(task_bytes) // (hidden * array.dtype.itemsize))
    if array.chunks:
        sizes = list(array.variable.chunksizes[rows])  # coordinates may have chunks of their own
    else:
        stored = array.encoding.get("preferred_chunks") or {}
        block = min(int(stored.get(rows) or most), n)
        sizes = [min(block, n - start) for start in range(0, n, block)]
    spans, start, stop = [], 0, 0
    for size in sizes:
        if stop > start and stop + size - start > most:
            spans.append(slice(start, stop))
            start = stop
        stop += size
    return [*spans, slice(start, stop)]


def lazy_rows(array: xr.DataArray, where: Mapping[str, Any]) -> LazyRows:
    """Return a part of ``array`` to be read later, with no more of its graph than it needs."""
    block = array.variable.isel(where)
    if block.chunks:
        block = block.copy(data=optimize(block.data)[0])  # type: ignore[no-untyped-call]
    return LazyRows(block)


def _lazy(array: xr.DataArray, where: Mapping[str, Any]) -> Any:  # noqa: ANN401
    return delayed(lazy_rows(array, where), traverse=False)


def _key(identity: str, *values: object) -> str:
    """Return a digest over what decides the statistics."""
    parts: list[object] = [identity]
    for value in values:
        if isinstance(value, np.ndarray):
            data = np.ascontiguousarray(value)
            parts.append([str(data.dtype), hashlib.sha256(data.tobytes()).hexdigest()])
        else:
            parts.append(value)
    return digest_json(parts)


def project_rows(
    array: xr.DataArray,
    directions: Mapping[int, Floats],
    *,
    scheduler: str | None = None,
    task_bytes: int | str = DEFAULT_TASK,
    progress: Progress | None = None,
    cancel: Event | None = None,
) -> dict[int, NDArray[np.float32]]:
    """Return every row on some directions, dims (row, direction), by layer.

    Pooling is linear: from the projections of the tokens follow the scores of every re-pooling,
    a hundred random ablations included, without another read. ``directions`` are dims
    (hidden, direction) by layer. NaN rows stay NaN.
    """
    rows, of_layer, hidden_dim = array_dims(array)
    spans = row_spans(array, rows, array.sizes[hidden_dim], task_bytes=task_bytes)
    places = _layer_places(array, of_layer, list(directions))
    tasks = [
        delayed(_project)(
            _lazy(array, {rows: span, of_layer: at}),
            delayed(np.asarray(directions[layer], dtype=np.float64), traverse=False),
        )
        for layer, at in places.items()
        for span in spans
    ]
    results = run_tasks(tasks, scheduler=scheduler, progress=progress, cancel=cancel)
    n = len(spans)
    return {layer: np.concatenate(results[k * n : (k + 1) * n]) for k, layer in enumerate(places)}


def _project(block: LazyRows, directions: Floats) -> NDArray[np.float32]:
    values = block.read()
    with one_blas_thread():
        steps = [
            values[start : start + STEP_ROWS].astype(np.float64) @ directions
            for start in range(0, len(values), STEP_ROWS)
        ]
    return np.concatenate(steps).astype(np.float32)
