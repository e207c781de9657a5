"""What commit records note of how their blocks came about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..schemas import BlockCommit, IncompleteError
from .parts import sealed_parts

if TYPE_CHECKING:
    from .store import Store

__all__ = ["RunNotes", "finite_texts", "nonfinite_rows", "summarise_notes"]


@dataclass(frozen=True)
class RunNotes:
    """Of a run's committed blocks: what was out of the ordinary."""

    nonfinite_texts: int
    halved_batches: int


def nonfinite_rows(commits: Iterable[BlockCommit]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the rows with vectors that were not finite and are stored as NaN, ascending.

    A note that says anything but spans of its own block's rows is ignored: a store may come from
    anybody.
    """
    spans = [span for commit in commits for span in _spans(commit)]
    rows = [np.arange(start, stop, dtype=np.int64) for start, stop in sorted(spans)]
    return np.unique(np.concatenate(rows)) if rows else np.empty(0, dtype=np.int64)


def summarise_notes(commits: Iterable[BlockCommit]) -> RunNotes:
    """Return how many texts have vectors that are not finite, and how many batches were halved."""
    commits = list(commits)
    counts = [commit.notes.get("halved_batches", 0) for commit in commits]
    return RunNotes(
        nonfinite_texts=len(nonfinite_rows(commits)),
        halved_batches=sum(n for n in counts if type(n) is int and n > 0),
    )


def finite_texts(store: Store, run_id: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which texts of a run have only finite values, dims (text,), in row order.

    Texts that were appended follow, as in ``open_run``. The others were extracted with
    ``nonfinite = "record"``: vectors of them are NaN, which analyses refuse.
    ``open_run(...).isel(text=finite_texts(...))`` leaves them out.

    Raises
    ------
    IncompleteError
        If blocks are missing: nothing is known of their texts.
    """
    return np.concatenate([_finite_texts(store, name) for name in sealed_parts(store, run_id)])


def _finite_texts(store: Store, run_id: str) -> np.ndarray[Any, np.dtype[np.bool_]]:
    plan, commits = store.read_plan(run_id), store.read_commits(run_id)
    if len(commits) < plan.n_blocks:
        msg = (
            f"run {run_id!r} in {store.url} has {len(commits)} of {plan.n_blocks} commit records; "
            "which texts are finite is known when all blocks are committed"
        )
        raise IncompleteError(msg)
    finite = np.ones(plan.n_texts, dtype=bool)
    finite[nonfinite_rows(commits)] = False
    return finite


def _spans(commit: BlockCommit) -> Iterator[tuple[int, int]]:
    noted = commit.notes.get("nonfinite")
    found = noted.get("rows") if isinstance(noted, dict) else None
    for span in found if isinstance(found, list) else ():
        if isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span):
            start, stop = span
            if commit.row_start <= start < stop <= commit.row_stop:
                yield start, stop
