"""Opening a run as a lazy dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
import zarr

from ..schemas import (
    BlockCommit,
    CorruptError,
    IncompleteError,
    NotPulledError,
    RunPlan,
    Seal,
    digest_json,
)
from .bits import widen_bits
from .commits import check_commit
from .committed import CommittedStore
from .documents import Documents, chunk_limits, read_documents, static_chunk_keys
from .layout import METADATA_NAME, RunKeys, block_keys, chunk_rows, to_bytes
from .metadata import STATIC_KEY
from .partial import LeftOut, coverage_of, read_pulled
from .store import Store, open_store

__all__ = ["open_run"]

JOB_BYTES = 128 * 2**20
CHARACTER_BYTES = 4
FIXED_WIDTH_BYTES = 64 * 2**20
READ_CONCURRENCY = 64  # 160 GETs at 60 ms latency: 0.22 s, with zarr's default of 10 1.0 s


@dataclass(frozen=True)
class _View:
    """What of a run may be seen: the committed rows and the objects that hold them."""

    committed: np.ndarray[Any, np.dtype[np.bool_]]
    sizes: dict[str, int | None]
    digest: str


def open_run(
    url_or_store: str | os.PathLike[str] | Store,
    run_id: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    allow_partial: bool = False,
    pulled_only: bool = False,
    chunks: Mapping[str, int] | str | int | None = {},  # xarray's own spelling
) -> xr.Dataset:
    """Return a run as a lazy dataset; activations are read when they are computed.

    Parameters
    ----------
    url_or_store
        The store, or its folder or URL.
    run_id
        The run.
    storage_options
        Passed to fsspec where a URL is given.
    allow_partial
        Open a run with missing rows too: they are NaN, and the coordinate ``committed``
        (dims (text,), bool) says which rows are there.
    pulled_only
        Of a partial copy (see ``pull``) show only the arrays, layers and rows that are here.
        Otherwise it has its full shape, and reading what was left out raises NotPulledError.
    chunks
        Dask chunks; ``{}`` is one task per stored object, so that layers are never mixed;
        ``"job"`` is several row-blocks of one layer per task, 64 to 128 MiB where the run is that
        large: fewer tasks, whose objects are fetched at the same time; None reads without Dask.

    Returns
    -------
    xarray.Dataset
        Arrays ``<site>_<pool>`` with dims (text, layer, hidden) and ``<site>_norm`` with dims
        (text, layer), float32; coordinates over ``text`` are in memory.

    Raises
    ------
    NotFoundError
        If there is no such store or run.
    IncompleteError
        If rows are missing and ``allow_partial`` is not set.
    NotPulledError
        If ``pulled_only`` is set and nothing was pulled; otherwise when something that a partial
        copy left out is read.
    CorruptError
        If what is stored contradicts the plan. An object that is found missing or damaged
        when it is read raises the same.
    """
    if isinstance(url_or_store, Store):
        store = url_or_store
    else:
        store = open_store(url_or_store, storage_options=storage_options)
    plan, plan_id = store.read_plan_and_id(run_id)
    manifest = store.read_manifest(run_id)
    if manifest.plan_id != plan_id:
        msg = f"run.json of {run_id!r} in {store.url} is of plan {manifest.plan_id}, not {plan_id}"
        raise CorruptError(msg)
    seal = store.read_seal(run_id)
    view = _sealed(store, plan, seal, plan_id) if seal else _unsealed(store, plan, plan_id)
    n_missing = int((~view.committed).sum())
    if n_missing and not allow_partial:
        msg = (
            f"{n_missing} of {plan.n_texts} rows of run {run_id!r} in {store.url} are not "
            "committed yet; run the extraction again to resume, or open it with "
            "allow_partial=True to see the others"
        )
        raise IncompleteError(msg)
    pulled = read_pulled(store, plan, plan_id)
    metadata = read_documents(store, plan, seal, partial=pulled is not None)
    left_out = None
    if pulled is not None:
        held = coverage_of(plan, pulled, where=store.url)
        left_out = LeftOut(plan, held, where=store.url, source=pulled.source)
    zarr_store = _committed_store(store, plan, metadata=metadata, view=view, left_out=left_out)
    if int(zarr.config.get("async.concurrency")) < READ_CONCURRENCY:
        zarr.config.set({"async.concurrency": READ_CONCURRENCY})
    dataset = xr.open_zarr(
        zarr_store,
        chunks=None if chunks == "job" else chunks,  # type: ignore[arg-type]
        consolidated=True,
        zarr_format=3,
    )
    dataset = _settle_coordinates(dataset)
    if chunks == "job":
        dataset = _chunk_for_jobs(dataset, plan, identity=view.digest)
    dataset = widen_bits(dataset)
    if allow_partial:
        dataset = dataset.assign_coords(committed=("text", view.committed))
    if left_out is not None and pulled_only:
        dataset = _only_pulled(dataset, left_out)
    return dataset.assign_attrs(
        content_digest=seal.data_digest if seal else "unsealed", store_url=store.url
    )


def _sealed(store: Store, plan: RunPlan, seal: Seal, plan_id: str) -> _View:
    if seal.plan_id != plan_id or seal.n_blocks != plan.n_blocks:
        msg = f"the seal of run {plan.run!r} in {store.url} is not of its plan {plan_id}"
        raise CorruptError(msg)
    sizes: dict[str, int | None] = {info.key: info.n_bytes for info in seal.objects}
    planned = {key for block in range(plan.n_blocks) for key in block_keys(plan, block)}
    missing = sorted(planned - sizes.keys())
    odd = [key for key in sizes if key not in planned and not STATIC_KEY.fullmatch(key)]
    if missing or odd:  # what is missing Zarr would read as NaN
        wrong = f"does not list {missing[0]}" if missing else f"lists {odd[0][:80]!r}"
        msg = f"the seal of run {plan.run!r} in {store.url} {wrong}; verify the run"
        raise CorruptError(msg)
    return _View(np.ones(plan.n_texts, dtype=bool), sizes, seal.tree_digest)


def _unsealed(store: Store, plan: RunPlan, plan_id: str) -> _View:
    commits: list[BlockCommit] = store.read_commits(plan.run)
    committed = np.zeros(plan.n_texts, dtype=bool)
    sizes: dict[str, int | None] = {}
    for commit in commits:
        check_commit(plan, commit, plan_id=plan_id, where=store.url)
        committed[plan.block_rows(commit.block)] = True
        sizes |= {info.key: info.n_bytes for info in commit.objects}
    return _View(committed, sizes, digest_json([plan_id, [c.fingerprint() for c in commits]]))


def _committed_store(
    store: Store, plan: RunPlan, *, metadata: Documents, view: _View, left_out: LeftOut | None
) -> CommittedStore:
    """Return the Zarr store of the checked metadata and the committed objects."""
    arrays = {name: document for name, document in metadata.items() if name}
    sizes = dict(view.sizes)
    for _, key in static_chunk_keys(plan, metadata):
        sizes.setdefault(key, None)
    documents = {f"{name}/{METADATA_NAME}": to_bytes(d) for name, d in arrays.items()}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": arrays}
    root = {**metadata[""], "consolidated_metadata": consolidated}
    return CommittedStore(
        store.backend,
        folder=RunKeys(plan.run).data,
        metadata={METADATA_NAME: to_bytes(root), **documents},
        sizes={key: n for key, n in sizes.items() if not key.endswith(METADATA_NAME)},
        decoded_limits=chunk_limits(metadata),
        identity=f"{store.url} {plan.run} {view.digest}",
        left_out=left_out,
    )


def _chunk_for_jobs(dataset: xr.Dataset, plan: RunPlan, *, identity: str) -> xr.Dataset:
    """Return the dataset with Dask chunks of several row-blocks of one layer."""
    chunked = {}
    for spec in plan.arrays:
        array = dataset[spec.name]
        n_rows = chunk_rows(plan)
        row_bytes = array.dtype.itemsize * (
            spec.shape[2] if len(spec.shape) == 3 else spec.shape[1]
        )
        most = max(1, JOB_BYTES // (n_rows * row_bytes))
        n_tasks = -(-plan.n_blocks // most)
        sizes = {"text": n_rows * -(-plan.n_blocks // n_tasks), **dict.fromkeys(spec.dims[1:], -1)}
        if len(spec.shape) == 3:
            sizes["layer"] = 1
        chunked[spec.name] = array.chunk(sizes, token=f"{identity} {spec.name}")
    rest = [name for name in dataset.data_vars if name not in chunked]
    return dataset.assign(chunked).assign({name: dataset[name].chunk() for name in rest})


def _only_pulled(dataset: xr.Dataset, left_out: LeftOut) -> xr.Dataset:
    """Return the arrays, layers and rows of a partial copy that can all be read."""
    plan = left_out.plan
    inner = {spec.name for spec in plan.arrays if len(spec.shape) == 3}
    there = {name: mask for name, mask in left_out.held.items() if mask.any()}
    deep = [mask for name, mask in there.items() if name in inner]
    layers = np.logical_and.reduce([mask.any(axis=1) for mask in deep])
    parts = [mask[layers] if name in inner else mask for name, mask in there.items()]
    blocks = np.logical_and.reduce([mask.all(axis=0) for mask in parts])
    if not there or not np.any(blocks) or (deep and not np.any(layers)):
        msg = (
            f"run {plan.run!r} in {left_out.where}: no layer and block was pulled of all of "
            f"{sorted(there) or 'its arrays'}; {left_out.hint()}"
        )
        raise NotPulledError(msg)
    shown = dataset.drop_vars([name for name in left_out.held if name not in there])
    if deep and not layers.all():
        shown = shown.isel(layer=np.flatnonzero(layers))
    if not blocks.all():
        rows = np.flatnonzero(np.repeat(blocks, plan.rows_per_block)[: plan.n_texts])
        shown = shown.isel(text=rows).drop_dims(["text_edge", "token"], errors="ignore")
    return shown


def _fixed_width(values: list[str]) -> np.ndarray[Any, Any]:
    """Return text as numpy's own type, or as objects where one long text would widen them all."""
    n_bytes = CHARACTER_BYTES * len(values) * max(map(len, values), default=0)
    if n_bytes > max(FIXED_WIDTH_BYTES, 16 * sum(map(len, values))):
        return np.array(values, dtype=object)
    return np.array(values, dtype=str)


def _settle_coordinates(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with the coordinates over texts and layers in memory.

    Text becomes numpy's fixed-width type, which every other library knows what to do with.
    """
    settled = {}
    for name, coord in dataset.coords.items():
        if coord.dims not in {("text",), ("layer",)}:
            continue
        values = coord.values
        if values.dtype.kind in "OT":
            values = _fixed_width(values.tolist())
        settled[name] = (coord.dims, values, coord.attrs)
    return dataset.assign_coords(settled)
