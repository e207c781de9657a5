"""Opening a run as a lazy dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
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
from .blocks import block_keys, chunk_rows
from .commits import check_commit
from .committed import CommittedStore
from .documents import Documents, chunk_limits, read_documents, static_chunk_keys
from .joining import join_parts
from .layout import METADATA_NAME, RunKeys, to_bytes
from .metadata import STATIC_KEY
from .partial import LeftOut, coverage_of, read_pulled
from .parts import check_part, existing_parts, sealed_parts
from .store import Store, open_store
from .token_view import block_token_chunks, drop_padding, take_blocks

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
        (dims (text,), bool) says which rows are there; of token arrays ``token_committed``
        (dims (token,), bool).
    pulled_only
        Of a partial copy (see ``pull``) show only the arrays, layers and rows that are here.
        Otherwise it has its full shape, and reading what was left out raises NotPulledError.
    chunks
        Dask chunks; ``{}`` is one task per stored object, so that layers are never mixed;
        ``"job"`` is several row-blocks of one layer per task, 64 to 128 MiB where the run is that
        large: fewer tasks, whose objects are fetched at the same time. A task of a token array
        has all tokens of one row-block, so that no text is cut. None reads without Dask, but for
        a run with appended texts.

    Returns
    -------
    xarray.Dataset
        Arrays ``<site>_<pool>`` with dims (text, layer, hidden) and ``<site>_norm`` with dims
        (text, layer), float32; coordinates over ``text`` are in memory. Where the run has them,
        ``<site>_tokens`` with dims (token, token_layer, hidden): the tokens of text *i* are
        ``token_offset[i]`` to ``token_offset[i + 1]``, and the coordinates ``token_text`` (row on
        ``text``), ``token_position`` (in the text) and ``token_id`` say of each what it is.
        ``token_layer`` are its layers, some of ``layer`` or all. Texts that were appended to the
        run follow its own; the attribute ``parts`` then names the run and what was appended.

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
    options: dict[str, Any] = {"allow_partial": allow_partial, "pulled_only": pulled_only}
    with ThreadPoolExecutor(1) as pool:  # most runs have no parts: asking costs no time
        asked = pool.submit(existing_parts if allow_partial else sealed_parts, store, run_id)
        parts = _open_pulled(store, run_id, chunks=chunks, **options)
        names = asked.result()
    if len(names) > 1:
        if chunks is None:  # rows of several groups are one after another only in Dask
            chunks, parts = {}, _open_pulled(store, run_id, chunks={}, **options)
        for name in names[1:]:
            parts += _open_pulled(store, name, chunks=chunks, **options)
    found = [part for part in parts if isinstance(part, xr.Dataset)]
    if not found:
        raise next(part for part in parts if isinstance(part, NotPulledError))
    return join_parts(found)


def _open_pulled(store: Store, name: str, **options: Any) -> list[xr.Dataset | NotPulledError]:  # noqa: ANN401
    """Return one part of a run, or why there is nothing to see of it."""
    try:
        return [_open_part(store, name, **options)]
    except NotPulledError as err:
        return [err]


def _open_part(
    store: Store,
    run_id: str,
    *,
    allow_partial: bool,
    pulled_only: bool,
    chunks: Mapping[str, int] | str | int | None,
) -> xr.Dataset:
    """Return one part of a run as a lazy dataset; see :func:`open_run`."""
    plan, plan_id = store.read_plan_and_id(run_id)
    manifest = store.read_manifest(run_id)
    if manifest.plan_id != plan_id:
        msg = f"run.json of {run_id!r} in {store.url} is of plan {manifest.plan_id}, not {plan_id}"
        raise CorruptError(msg)
    check_part(store, plan)
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
    if plan.token_axis is not None:
        dataset = drop_padding(dataset, plan.token_axis)
    dataset = widen_bits(dataset)
    if allow_partial:
        dataset = _mark_committed(dataset, plan, view.committed)
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


def _mark_committed(
    dataset: xr.Dataset, plan: RunPlan, committed: np.ndarray[Any, np.dtype[np.bool_]]
) -> xr.Dataset:
    """Return the dataset with the coordinates that say which rows are there."""
    dataset = dataset.assign_coords(committed=("text", committed))
    axis = plan.token_axis
    if axis is None:
        return dataset
    by_block = committed[[plan.block_rows(block).start for block in range(plan.n_blocks)]]
    marks = np.repeat(by_block, np.diff(axis.token_edges))
    return dataset.assign_coords(token_committed=("token", marks))


def _chunk_for_jobs(dataset: xr.Dataset, plan: RunPlan, *, identity: str) -> xr.Dataset:
    """Return the dataset with Dask chunks of several row-blocks of one layer."""
    chunked = {}
    for spec in plan.arrays:
        array = dataset[spec.name]
        token = f"{identity} {spec.name}"
        if spec.is_tokens and plan.token_axis is not None:
            whole = block_token_chunks(plan.token_axis)
            chunked[spec.name] = array.chunk({"token": whole, "token_layer": 1}, token=token)
            continue
        n_rows = chunk_rows(plan)
        row_bytes = array.dtype.itemsize * (
            spec.shape[2] if len(spec.shape) == 3 else spec.shape[1]
        )
        most = max(1, JOB_BYTES // (n_rows * row_bytes))
        n_tasks = -(-plan.n_blocks // most)
        sizes = {"text": n_rows * -(-plan.n_blocks // n_tasks), **dict.fromkeys(spec.dims[1:], -1)}
        if len(spec.shape) == 3:
            sizes["layer"] = 1
        chunked[spec.name] = array.chunk(sizes, token=token)
    rest = [name for name in dataset.data_vars if name not in chunked]
    return dataset.assign(chunked).assign({name: dataset[name].chunk() for name in rest})


def _only_pulled(dataset: xr.Dataset, left_out: LeftOut) -> xr.Dataset:
    """Return the arrays, layers and rows of a partial copy that can all be read."""
    plan = left_out.plan
    inner = {spec.name: str(spec.dims[1]) for spec in plan.arrays if len(spec.shape) == 3}
    there = {name: mask for name, mask in left_out.held.items() if mask.any()}
    layers: dict[str, np.ndarray] = {}  # by axis, those of which every array has something
    for name in there.keys() & inner.keys():
        some = np.asarray(there[name].any(axis=1))
        layers[inner[name]] = layers.get(inner[name], some) & some
    parts = [mask[layers[inner[n]]] if n in inner else mask for n, mask in there.items()]
    blocks = np.logical_and.reduce([mask.all(axis=0) for mask in parts])
    if not there or not np.any(blocks) or not all(mask.any() for mask in layers.values()):
        msg = (
            f"run {plan.run!r} in {left_out.where}: no layer and block was pulled of all of "
            f"{sorted(there) or 'its arrays'}; {left_out.hint()}"
        )
        raise NotPulledError(msg)
    shown = dataset.drop_vars([name for name in left_out.held if name not in there])
    for axis, mask in layers.items():
        if not mask.all():
            shown = shown.isel({axis: np.flatnonzero(mask)})
    return shown if blocks.all() else take_blocks(shown, plan, blocks)


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
        if coord.dims not in {("text",), ("layer",), ("token_layer",)}:
            continue
        values = coord.values
        if values.dtype.kind in "OT":
            values = _fixed_width(values.tolist())
        settled[name] = (coord.dims, values, coord.attrs)
    return dataset.assign_coords(settled)
