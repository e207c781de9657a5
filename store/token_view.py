"""The token axis as a reader sees it: the tokens and nothing else, without reading any."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ..schemas import RunPlan, TokenAxis

__all__ = ["block_token_chunks", "drop_padding", "take_blocks", "take_texts"]


def drop_padding(dataset: xr.Dataset, axis: TokenAxis) -> xr.Dataset:
    """Return the dataset without the rows of the token axis that hold no token.

    Dask chunks are cut where they hold padding, and stay what they are everywhere else.
    """
    blocks = range(len(axis.chunk_edges) - 1)
    return _take_rows(dataset, [axis.rows(block) for block in blocks])


def take_blocks(
    dataset: xr.Dataset, plan: RunPlan, blocks: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> xr.Dataset:
    """Return the texts of some blocks with their tokens; token arrays have no padding any more.

    Of a run without token arrays the tokens are left out: ``token_offset`` counts those of all
    texts.
    """
    rows = np.flatnonzero(np.repeat(blocks, plan.rows_per_block)[: plan.n_texts])
    axis = plan.token_axis
    if axis is None:
        return dataset.isel(text=rows).drop_dims(["text_edge", "token"], errors="ignore")
    lengths = np.diff(dataset["token_offset"].values)[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    text = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
    kept = [axis.tokens(block) for block in np.flatnonzero(blocks).tolist()]
    shown = _take_rows(dataset.drop_dims("text_edge"), kept).isel(text=rows)
    return shown.assign_coords(token_offset=("text_edge", offsets), token_text=("token", text))


def take_texts(dataset: xr.Dataset, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> xr.Dataset:
    """Return the texts ``rows``, in that order, with their tokens; lazily.

    The dataset has no padding. ``token_offset`` and ``token_text`` count the texts that are left.
    """
    if "token_offset" not in dataset.variables or "token" not in dataset.dims:
        return dataset.drop_dims(["text_edge", "token"], errors="ignore").isel(text=rows)
    edges = dataset["token_offset"].values
    lengths = np.diff(edges)[rows]
    spans = [slice(int(edges[row]), int(edges[row + 1])) for row in rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    shown = _take_rows(dataset.drop_dims("text_edge"), spans).isel(text=rows)
    shown = shown.assign_coords(token_offset=("text_edge", offsets))
    if "token_text" not in dataset.variables:
        return shown
    text = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
    return shown.assign_coords(token_text=("token", text))


def block_token_chunks(axis: TokenAxis) -> tuple[int, ...]:
    """Return Dask chunks of the stored token axis: those of a block together, its padding apart."""
    sizes = []
    for block in range(len(axis.chunk_edges) - 1):
        rows = axis.rows(block)
        stop = axis.chunk_edges[block + 1] * axis.rows_per_chunk
        sizes += [rows.stop - rows.start, stop - rows.stop]
    return tuple(size for size in sizes if size)


def _take_rows(dataset: xr.Dataset, spans: Sequence[slice]) -> xr.Dataset:
    """Return the dataset with only the ``spans`` of its token axis, in their order."""
    merged: list[slice] = []
    for span in spans:
        if merged and merged[-1].stop == span.start:
            merged[-1] = slice(merged[-1].start, span.stop)
        elif span.start < span.stop:
            merged.append(span)
    if merged == [slice(0, dataset.sizes["token"])]:
        return dataset
    taken = {
        name: _take(variable, merged)
        for name, variable in dataset.variables.items()
        if "token" in variable.dims
    }
    rest = dataset.drop_dims("token")
    coords = {name: taken[name] for name in taken if name in dataset.coords}
    arrays = {name: taken[name] for name in taken if name not in dataset.coords}
    return rest.assign(arrays).assign_coords(coords)


def _take(variable: xr.Variable, spans: list[slice]) -> xr.Variable:
    """Return rows of a variable whose first dim is ``token``; lazily, whatever holds its data."""
    if not spans:
        return variable.isel(token=slice(0, 0))
    if len(spans) == 1:
        return variable.isel(token=spans[0])
    if not variable.chunks:
        return variable.isel(token=np.concatenate([np.arange(s.start, s.stop) for s in spans]))
    import dask.array as da

    parts = [variable.data[span] for span in spans]
    joined = da.concatenate(parts)  # type: ignore[no-untyped-call]
    return xr.Variable(variable.dims, joined, variable.attrs)
