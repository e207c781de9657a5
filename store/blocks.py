"""The objects of a block: their keys, their shapes, and what each of them holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..schemas import ArraySpec, RunPlan

__all__ = [
    "ChunkPlace",
    "block_bytes",
    "block_chunks",
    "block_keys",
    "chunk_rows",
    "chunk_shape",
    "place_of_key",
    "rows_of_key",
    "spec_keys",
]

FLOAT_BYTES = 4


def chunk_rows(plan: RunPlan) -> int:
    """Return the rows of a chunk: those of a block, or all rows of a run that has fewer."""
    return min(plan.rows_per_block, plan.n_texts)


def chunk_shape(plan: RunPlan, spec: ArraySpec) -> tuple[int, ...]:
    """Return the shape of the chunks of an array that blocks write."""
    n_rows = chunk_rows(plan)
    if spec.is_tokens and plan.token_axis is not None:
        n_rows = plan.token_axis.rows_per_chunk
    return (n_rows, 1, spec.shape[2]) if len(spec.shape) == 3 else (n_rows, spec.shape[1])


def block_bytes(plan: RunPlan) -> int:
    """Return the bytes of the largest block, before compression."""
    n_texts, n_tokens = chunk_rows(plan), 0
    if plan.token_axis is not None:
        n_tokens = max(b - a for a, b in pairwise(plan.token_axis.token_edges))
    return sum(
        FLOAT_BYTES * math.prod(spec.shape[1:]) * (n_tokens if spec.is_tokens else n_texts)
        for spec in plan.arrays
    )


@dataclass(frozen=True)
class ChunkPlace:
    """What an object that a block wrote holds.

    Parameters
    ----------
    spec
        The array.
    block
        The block that wrote it.
    layer
        Index on the layer axis, None where the object holds all layers.
    start, n_rows
        The first of the block's rows (texts or tokens) in it, and how many; the rest is padding.
    """

    spec: ArraySpec
    block: int
    layer: int | None
    start: int
    n_rows: int


def block_keys(plan: RunPlan, block: int) -> list[str]:
    """Return the keys below ``data.zarr`` of the objects of ``block``.

    They are in the order of the plan's arrays; of one array by chunk, then by layer.
    """
    return [key for spec in plan.arrays for key, _, _ in spec_keys(plan, spec, block)]


def block_chunks(
    plan: RunPlan, block: int, arrays: Mapping[str, np.ndarray[Any, Any]]
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield (key, values of the whole chunk) of ``block``; rows past the end are NaN.

    ``arrays`` hold the block's rows, dims (row, layer, hidden) or (row, layer), float32; the rows
    of token arrays are the tokens of the block's texts. Arrays that are not among them are left
    out.
    """
    for spec in plan.arrays:
        if spec.name not in arrays:
            continue
        values = arrays[spec.name]
        n_rows = chunk_shape(plan, spec)[0]
        for key, layer, start in spec_keys(plan, spec, block):
            part = values[start : start + n_rows]
            part = part if layer is None else part[:, layer : layer + 1]
            if len(part) < n_rows:
                padded = np.full((n_rows, *part.shape[1:]), np.nan, dtype=part.dtype)
                padded[: len(part)] = part
                part = padded
            yield key, part


def place_of_key(plan: RunPlan, key: str) -> ChunkPlace | None:
    """Return what an object holds, None where no block of the plan writes such a key."""
    name, _, rest = key.partition("/c/")
    spec = next((spec for spec in plan.arrays if spec.name == name), None)
    if spec is None or not rest:
        return None
    chunk, *inner = (int(part) for part in rest.split("/"))
    axis = plan.token_axis if spec.is_tokens else None
    n_chunks = axis.chunk_edges[-1] if axis else plan.n_blocks
    if chunk >= n_chunks or len(inner) != len(spec.shape) - 1:
        return None
    block, start, rows = chunk, 0, plan.block_rows(chunk)
    if axis is not None:
        block = axis.block_of_chunk(chunk)
        start, rows = (chunk - axis.chunk_edges[block]) * axis.rows_per_chunk, axis.rows(block)
    n_rows = min(chunk_shape(plan, spec)[0], rows.stop - rows.start - start)
    return ChunkPlace(spec, block, inner[0] if len(inner) == 2 else None, start, n_rows)


def rows_of_key(plan: RunPlan, key: str) -> tuple[int, int] | None:
    """Return (first, stop) of the texts of an object's block, None where it holds no block."""
    place = place_of_key(plan, key)
    if place is None:
        return None
    rows = plan.block_rows(place.block)
    return rows.start, rows.stop


def spec_keys(plan: RunPlan, spec: ArraySpec, block: int) -> Iterator[tuple[str, int | None, int]]:
    """Yield (key, layer index, first row within the block) of the chunks of an array and block."""
    chunks, n_rows = range(block, block + 1), 0
    if spec.is_tokens and plan.token_axis is not None:
        chunks = range(*plan.token_axis.chunk_edges[block : block + 2])
        n_rows = plan.token_axis.rows_per_chunk
    for chunk in chunks:
        start = (chunk - chunks.start) * n_rows
        if len(spec.shape) == 2:
            yield f"{spec.name}/c/{chunk}/0", None, start
            continue
        for layer in range(spec.shape[1]):
            yield f"{spec.name}/c/{chunk}/{layer}/0", layer, start
