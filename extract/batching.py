"""Row order and batches: fixed before the first forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..schemas import Text

__all__ = ["PASS_TOKENS", "group_rows", "order_texts", "pack_batches"]

# What a forward pass costs beside its tokens, as tokens. An accelerator reads all weights in the
# time in which it computes some 150 tokens (A100: 312 TFLOP/s over 2.0 TB/s), more or less of it
# while it computes; a CPU takes less.
PASS_TOKENS = 128


def order_texts(texts: Sequence[Text]) -> list[Text]:
    """Return texts in the row order of every run: by characters, ties by id.

    Characters, not tokens, so that runs of different models have the same rows.
    """
    return sorted(texts, key=lambda text: (text.n_chars, text.id))


def pack_batches(
    lengths: Sequence[int], *, batch_tokens: int, keeps_order: bool = False
) -> list[list[int]]:
    """Return row indices in the batches that cost least.

    Rows are taken by length. A batch costs rows x longest row, padding included, and
    ``PASS_TOKENS``; among all ways to cut the rows into batches the cheapest is found by dynamic
    programming over the first row of the last batch. A batch holds at least one row. The result
    depends on the arguments alone: a block that is run again gets the same batches, hence the
    same bits on a CPU.

    Parameters
    ----------
    lengths
        Tokens of each row of one block.
    batch_tokens
        Upper bound of rows x longest row.
    keeps_order
        Take rows as they come, so that their tokens follow one another. Rows are in the order
        of their characters, so lengths are alike even so.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.arange(sizes.size) if keeps_order else np.argsort(sizes, kind="stable")
    sizes = sizes[order]
    least = np.zeros(sizes.size + 1, dtype=np.int64)  # cost of the first so many rows
    first = np.zeros(sizes.size, dtype=np.int64)  # of the batch that ends with this row
    reach = max(1, batch_tokens)  # no batch has more rows
    for last in range(sizes.size):
        back = sizes[max(0, last + 1 - reach) : last + 1][::-1]
        padded = np.maximum.accumulate(back) * np.arange(1, back.size + 1)
        n_fitting = max(1, int(np.searchsorted(padded, batch_tokens, side="right")))
        costs = least[last + 1 - np.arange(1, n_fitting + 1)] + padded[:n_fitting]
        n_rows = int(costs.argmin()) + 1
        first[last] = last + 1 - n_rows
        least[last + 1] = costs[n_rows - 1] + PASS_TOKENS
    batches: list[list[int]] = []
    end = sizes.size
    while end:
        start = int(first[end - 1])
        batches.append(order[start:end].tolist())
        end = start
    return batches[::-1]


def group_rows(lengths: Sequence[int], *, n_tokens: int) -> list[list[int]]:
    """Return row indices in groups of neighbours with ``n_tokens`` or more each, but the last.

    For an engine that makes its own batches.
    """
    groups: list[list[int]] = [[]]
    total = 0
    for row, length in enumerate(lengths):
        if total >= n_tokens:
            groups.append([])
            total = 0
        groups[-1].append(row)
        total += length
    return groups
