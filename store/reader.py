"""Opening a run as a lazy dataset."""

from __future__ import annotations

import hashlib
import json
import math
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
    RunPlan,
    Seal,
    digest_json,
)
from .bits import widen_bits
from .commits import check_commit
from .committed import CommittedStore
from .layout import METADATA_NAME, RunKeys, text_limit, to_bytes
from .metadata import METADATA_BYTES, check_array, coordinate_names, parse_document
from .store import Store, open_store

__all__ = ["open_run"]

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
    chunks
        Dask chunks; ``{}`` is one task per stored object, so that layers are never mixed, None
        reads without Dask.

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
    metadata = _read_metadata(store, plan, seal)
    zarr_store = _committed_store(store, plan, metadata=metadata, view=view)
    if int(zarr.config.get("async.concurrency")) < READ_CONCURRENCY:
        zarr.config.set({"async.concurrency": READ_CONCURRENCY})
    dataset = xr.open_zarr(
        zarr_store,
        chunks=chunks,  # type: ignore[arg-type]
        consolidated=True,
        zarr_format=3,
    )
    dataset = widen_bits(_settle_coordinates(dataset))
    if allow_partial:
        dataset = dataset.assign_coords(committed=("text", view.committed))
    return dataset.assign_attrs(
        content_digest=seal.data_digest if seal else "unsealed", store_url=store.url
    )


def _sealed(store: Store, plan: RunPlan, seal: Seal, plan_id: str) -> _View:
    if seal.plan_id != plan_id or seal.n_blocks != plan.n_blocks:
        msg = f"the seal of run {plan.run!r} in {store.url} is not of its plan {plan_id}"
        raise CorruptError(msg)
    sizes: dict[str, int | None] = {info.key: info.n_bytes for info in seal.objects}
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


def _read_metadata(store: Store, plan: RunPlan, seal: Seal | None) -> dict[str, dict[str, Any]]:
    """Return the checked documents: the group's under "" and every array's by name.

    A sealed run costs one GET, checked against the seal; of an unsealed one every array's own
    document is read.
    """
    keys = RunKeys(plan.run)
    root_key = keys.object(METADATA_NAME)
    data = store.backend.get(root_key, max_bytes=METADATA_BYTES)
    where = f"{root_key} in {store.url}"
    if data is None:
        msg = f"{where} is missing; run the extraction again to resume, or verify the store"
        raise CorruptError(msg)
    group = parse_document(data, where=where, node_type="group")
    names = [*(spec.name for spec in plan.arrays), *coordinate_names(group)]
    if seal is not None:
        expected = next((o.sha256 for o in seal.objects if o.key == METADATA_NAME), None)
        if hashlib.sha256(data).hexdigest() != expected:
            msg = f"{where} is not what was sealed; verify the run and fetch it again"
            raise CorruptError(msg)
        inline = group.pop("consolidated_metadata", {}).get("metadata", {})
        found = [json.dumps(inline.get(name)).encode() for name in names]
    else:
        group.pop("consolidated_metadata", None)

        def read(name: str) -> bytes:
            key = keys.object(f"{name}/{METADATA_NAME}")
            return store.backend.get(key, max_bytes=METADATA_BYTES) or b"null"

        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(read, names))
    documents = {"": group}
    for name, part in zip(names, found, strict=True):
        place = f"{keys.object(name)} in {store.url}"
        documents[name] = parse_document(part, where=place, node_type="array")
        check_array(documents[name], name=name, plan=plan, where=place)
    return documents


def _committed_store(
    store: Store, plan: RunPlan, *, metadata: dict[str, dict[str, Any]], view: _View
) -> CommittedStore:
    """Return the Zarr store of the checked metadata and the committed objects."""
    arrays = {name: document for name, document in metadata.items() if name}
    sizes = dict(view.sizes)
    limits = {}
    for name, document in arrays.items():
        chunk = document["chunk_grid"]["configuration"]["chunk_shape"]
        if document["data_type"] == "string":
            limits[name] = text_limit(chunk[0]) + 4 * (chunk[0] + 1)  # with vlen-utf8's lengths
        else:
            limits[name] = math.prod(chunk) * np.dtype(document["data_type"]).itemsize
        if name not in {spec.name for spec in plan.arrays}:
            n_chunks = -(-document["shape"][0] // chunk[0])
            for index in range(n_chunks):
                sizes.setdefault(f"{name}/c/{index}", None)
    documents = {f"{name}/{METADATA_NAME}": to_bytes(d) for name, d in arrays.items()}
    consolidated = {"kind": "inline", "must_understand": False, "metadata": arrays}
    root = {**metadata[""], "consolidated_metadata": consolidated}
    return CommittedStore(
        store.backend,
        folder=RunKeys(plan.run).data,
        metadata={METADATA_NAME: to_bytes(root), **documents},
        sizes={key: n for key, n in sizes.items() if not key.endswith(METADATA_NAME)},
        decoded_limits=limits,
        codecs={spec.name: plan.codec for spec in plan.arrays},
        identity=f"{store.url} {plan.run} {view.digest}",
    )


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
            values = np.array(values.tolist(), dtype=str)
        settled[name] = (coord.dims, values, coord.attrs)
    return dataset.assign_coords(settled)
