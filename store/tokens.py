"""The token axis: how many rows a chunk has, which rows are padding, what stands in each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from ..schemas import InvalidInputError, RunPlan, TokenAxis
from .blocks import FLOAT_BYTES
from .layout import DEFAULT_CHUNK_BYTES

__all__ = ["PADDING", "plan_token_axis", "rows_within_bytes", "to_stored_rows", "token_places"]

PADDING = -1  # of token_text, token_position and token_id, where a row holds no token
_CANDIDATES = 1024


def rows_within_bytes(lengths: Sequence[int], *, token_bytes: int, block_bytes: int) -> int:
    """Return the most rows of a block whose token arrays stay within a size.

    Tokens take far more than pools, and all objects of a block are in one commit record and lost
    with a writer that is killed: where token arrays are asked for, use the smaller of this and
    ``rows_per_block``. At least 1. Memory is no reason: ``RunWriter.add_tokens`` takes tokens as
    they come.

    Parameters
    ----------
    lengths
        Tokens of each text, in row order.
    token_bytes
        Bytes of one token in all token arrays together: 4 times arrays, layers and hidden size.
    block_bytes
        The bound; no ``rows_within_bytes`` consecutive texts take more, wherever a block begins.

    Raises
    ------
    InvalidInputError
        If there are no texts or a size is not positive.
    """
    if not len(lengths) or token_bytes < 1 or block_bytes < 1:
        got = f"{len(lengths)} texts, token_bytes={token_bytes}, block_bytes={block_bytes}"
        msg = f"expected texts and positive sizes to choose the rows of a block, got {got}"
        raise InvalidInputError(msg)
    edges = np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))])

    def fits(rows: int) -> bool:
        return int((edges[rows:] - edges[:-rows]).max()) * token_bytes <= block_bytes

    low, high = 1, len(lengths)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def plan_token_axis(
    lengths: Sequence[int],
    *,
    layers: Sequence[int],
    hidden: int,
    rows_per_block: int,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    rows: int | None = None,
) -> TokenAxis:
    """Return how the tokens of a run are laid out on the token axis.

    Each block has whole chunks of its own, so that blocks are independent and no chunk is ever
    written twice. Of the chunk sizes between half of ``chunk_bytes`` and all of it the one with
    the least padding is taken; a run whose largest block has fewer tokens has one chunk per
    block.

    Parameters
    ----------
    lengths
        Tokens of each text, in row order.
    layers
        Block indices of the model that token arrays hold.
    hidden
        Values per token of one layer, 4 bytes each.
    rows_per_block
        Texts per block.
    chunk_bytes
        The largest uncompressed size of an object.
    rows
        An explicit number of tokens per chunk; wins over ``chunk_bytes``.

    Raises
    ------
    InvalidInputError
        If there are no tokens, a length is negative, or a size is not positive.
    """
    given = {"hidden": hidden, "rows_per_block": rows_per_block, "chunk_bytes": chunk_bytes}
    wrong = {k: v for k, v in {**given, "rows": rows}.items() if v is not None and v < 1}
    if wrong or sum(lengths) < 1 or min(lengths) < 0 or not layers:
        shown = wrong or f"{len(lengths)} texts of {sum(lengths)} tokens, layers {list(layers)}"
        msg = f"expected tokens, layers and positive sizes for the token axis, got {shown}"
        raise InvalidInputError(msg)
    counts = [sum(lengths[i : i + rows_per_block]) for i in range(0, len(lengths), rows_per_block)]
    size = rows or _least_padding(counts, most=max(1, chunk_bytes // (FLOAT_BYTES * hidden)))
    return TokenAxis(
        layers=tuple(layers),
        rows_per_chunk=size,
        token_edges=(0, *accumulate(counts)),
        chunk_edges=(0, *accumulate(-(-count // size) for count in counts)),
    )


def _least_padding(counts: Sequence[int], *, most: int) -> int:
    """Return the chunk size from ``most`` / 2 to ``most`` that pads ``counts`` the least."""
    most = min(most, max(counts))
    sizes = np.unique(np.linspace(-(-most // 2), most, _CANDIDATES).astype(np.int64))[::-1]
    blocks = np.asarray(counts, dtype=np.int64)
    padding = [int((-blocks % size).sum()) for size in sizes]
    return int(sizes[int(np.argmin(padding))])  # of equal ones the largest: fewer objects


def to_stored_rows(
    axis: TokenAxis, values: np.ndarray[Any, Any], *, fill: int
) -> np.ndarray[Any, Any]:
    """Return ``values`` of the tokens (token,) as they are stored, with ``fill`` between."""
    stored = np.full(axis.n_rows, fill, dtype=values.dtype)
    for block in range(len(axis.chunk_edges) - 1):
        stored[axis.rows(block)] = values[axis.tokens(block)]
    return stored


def token_places(
    plan: RunPlan, offsets: np.ndarray[Any, Any], *, start: int, stop: int
) -> Iterator[tuple[slice, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Yield where tokens stand among the stored rows ``start`` to ``stop``; the rest is padding.

    Yields (rows relative to ``start``, text of each, position in its text of each): a span per
    block that has rows there.

    Parameters
    ----------
    offsets
        ``token_offset``: the first token of each text, and the number of all.
    """
    axis = plan.token_axis
    if axis is None or start >= stop:
        return
    first = axis.block_of_chunk(start // axis.rows_per_chunk)
    last = axis.block_of_chunk((stop - 1) // axis.rows_per_chunk)
    for block in range(first, last + 1):
        rows = axis.rows(block)
        low, high = max(rows.start, start), min(rows.stop, stop)
        if low < high:
            tokens = np.arange(low, high, dtype=np.int64) - rows.start + axis.token_edges[block]
            text = np.searchsorted(offsets, tokens, side="right") - 1
            span = slice(low - start, high - start)
            yield span, text.astype(np.int32), (tokens - offsets[text]).astype(np.int32)
