"""Row order and batches: fixed before the first forward pass."""

from __future__ import annotations

from collections.abc import Sequence

from ..schemas import Text

__all__ = ["group_rows", "order_texts", "pack_batches"]


def order_texts(texts: Sequence[Text]) -> list[Text]:
    """Return texts in the row order of every run: by characters, ties by id.

    Characters, not tokens, so that runs of different models have the same rows.
    """
    return sorted(texts, key=lambda text: (text.n_chars, text.id))


def pack_batches(
    lengths: Sequence[int], *, batch_tokens: int, keeps_order: bool = False
) -> list[list[int]]:
    """Return row indices in batches of like length.

    Rows are taken by length, so padding is small; a batch holds as many rows as fit into
    ``batch_tokens`` = rows x longest row, and at least one. The result depends on the arguments
    alone: a block that is run again gets the same batches, hence the same bits on a CPU.

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
    batches: list[list[int]] = []
    current: list[int] = []
    longest = 0
    rows = range(len(lengths))
    for row in rows if keeps_order else sorted(rows, key=lambda i: (lengths[i], i)):
        longest = max(longest, lengths[row])
        if current and (len(current) + 1) * longest > batch_tokens:
            batches.append(current)
            current = []
            longest = lengths[row]
        current.append(row)
    if current:
        batches.append(current)
    return batches


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
