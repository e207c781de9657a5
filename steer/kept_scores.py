"""Scores of steered completions that are kept one by one, so that a sweep can be interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..extract import LoadedModel, TokenRow
from .costs import PatchCost, weigh_rows
from .generated_directions import digest_array
from .kept import KeptRows
from .scoring import Condition, score_rows

__all__ = ["score_conditions", "weigh_conditions"]

_KEY = ["row_digest", "condition"]
_ROWS_PER_PART = 1024  # what an interruption can lose


def score_conditions(
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    conditions: Sequence[Condition],
    *,
    directions: np.ndarray,
    layer: int,
    positions: str,
    batch_tokens: int,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Return what :func:`~actlake.steer.score_rows` returns, (condition,).

    With a folder, scores are committed part by part (:class:`~actlake.steer.KeptRows`); those that
    are there are not run again.

    Parameters
    ----------
    progress
        Called with the conditions that are done and all of them.

    Raises
    ------
    InvalidInputError
        If the folder holds scores of another model.
    StorageError
        If a part cannot be written.
    """
    given = {
        "directions": directions,
        "layer": layer,
        "positions": positions,
        "batch_tokens": batch_tokens,
    }
    if folder is None:
        return score_rows(loaded, rows, conditions, **given)  # type: ignore[arg-type]
    kept = _kept(loaded, folder)
    names = _names(rows, conditions, directions=directions, layer=layer, positions=positions)
    known = _read(kept)
    todo = _todo(rows, conditions, [name in known for name in names])
    for start in range(0, len(todo), _ROWS_PER_PART):
        if progress is not None:
            progress(len(conditions) - len(todo) + start, len(conditions))
        chosen = todo[start : start + _ROWS_PER_PART]
        scores = score_rows(loaded, rows, [conditions[i] for i in chosen], **given)  # type: ignore[arg-type]
        records = [
            {**dict(zip(_KEY, names[i], strict=True)), "score": float(score)}
            for i, score in zip(chosen, scores, strict=True)
        ]
        kept.commit(pd.DataFrame.from_records(records))
        known |= {names[i]: float(score) for i, score in zip(chosen, scores, strict=True)}
    if progress is not None:
        progress(len(conditions), len(conditions))
    return np.array([known[name] for name in names])


def weigh_conditions(
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    conditions: Sequence[Condition],
    *,
    directions: np.ndarray,
    layer: int,
    positions: str,
    batch_tokens: int,
    folder: Path | None,
) -> PatchCost:
    """Return what :func:`score_conditions` would run, less what a folder holds."""
    todo = list(range(len(conditions)))
    if folder is not None:
        names = _names(rows, conditions, directions=directions, layer=layer, positions=positions)
        known = _read(_kept(loaded, folder, read_only=True))
        todo = _todo(rows, conditions, [name in known for name in names])
    per_part = _ROWS_PER_PART if folder is not None else len(conditions)
    cost = PatchCost(n_conditions=len(todo), n_kept=len(conditions) - len(todo))
    for start in range(0, len(todo), per_part):
        part = [conditions[i] for i in todo[start : start + per_part]]
        cost += weigh_rows(loaded, rows, part, batch_tokens=batch_tokens, layer=layer)
    return cost


def _todo(
    rows: Sequence[TokenRow], conditions: Sequence[Condition], is_known: Sequence[bool]
) -> list[int]:
    """Return which conditions are to be run, in an order whose parts have rows of like length.

    Rows of one length share batches: parts of long and short ones would be batches of both.
    """
    todo = [i for i, known in enumerate(is_known) if not known]
    return sorted(todo, key=lambda i: (rows[conditions[i].row].n_tokens, conditions[i].row))


def _kept(loaded: LoadedModel, folder: Path, *, read_only: bool = False) -> KeptRows:
    made_with = {"model": loaded.info.model_dump(mode="json")}
    return KeptRows(folder, key=_KEY, made_with=made_with, noun="scores", read_only=read_only)


def _read(kept: KeptRows) -> dict[tuple[str, str], float]:
    table = kept.read()
    if table.empty:
        return {}
    columns = table[[*_KEY, "score"]].itertuples(index=False, name=None)
    return {(digest, name): float(score) for digest, name, score in columns}


def _names(
    rows: Sequence[TokenRow],
    conditions: Sequence[Condition],
    *,
    directions: np.ndarray,
    layer: int,
    positions: str,
) -> list[tuple[str, str]]:
    """Return what tells every condition from all others: the tokens, and what is added where."""
    of_row = [
        digest_array(row.ids, "<i4") + digest_array(row.response, "<u1") + f"/{row.n_prompt}"
        for row in rows
    ]
    of_direction = [digest_array(vector, "<f4") for vector in directions]
    return [
        (
            of_row[c.row],
            # Without strength the direction says nothing.
            json.dumps([layer, positions, of_direction[c.direction] if c.alpha else "", c.alpha]),
        )
        for c in conditions
    ]
