"""The forward passes of a sweep: counted, run, and kept condition by condition."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..extract import LoadedModel, TokenRow
from ..schemas import digest_json
from .costs import PatchCost, weigh_rows
from .generated_directions import digest_array
from .kept import KeptRows
from .scoring import Condition, ScoreEngine, condition_batches, score_rows
from .sweep_arms import SweepPlan

__all__ = ["measure_sweep", "weigh_conditions"]

_KEY = ["condition", "pair_digest"]
_BATCHES_PER_PART = 8  # what an interruption can lose; a part ends with a batch that is not full


def _wanted(rows: Sequence[TokenRow], plan: SweepPlan) -> pd.DataFrame:
    """Return one line per direction, strength and pair, with the digests they are known by."""
    pairs = [
        hashlib.sha256(
            b"".join(np.ascontiguousarray(part, dtype="<i4").tobytes() for part in
                     (row.ids, row.response, other.ids, other.response))
        ).hexdigest()[:16]
        for row, other in zip(rows[::2], rows[1::2], strict=True)
    ]  # fmt: skip
    vectors = [digest_array(vector, "<f4") for vector in plan.vectors]
    conditions = [
        (d, a, digest_json([plan.layers, vector, alpha])[7:23])
        for d, vector in enumerate(vectors)
        for a, alpha in enumerate(plan.alphas)
    ]
    return pd.DataFrame(
        [
            {"direction": d, "alpha": a, "pair": p, "condition": digest, "pair_digest": of_pair}
            for d, a, digest in conditions
            for p, of_pair in enumerate(pairs)
        ]
    )


def _kept(
    loaded: LoadedModel, folder: Path | None, *, positions: str, read_only: bool = False
) -> KeptRows | None:
    if folder is None:
        return None
    made_with = {"model": loaded.info.model_dump(mode="json"), "positions": positions}
    return KeptRows(folder, key=_KEY, made_with=made_with, noun="conditions", read_only=read_only)


def _conditions(todo: pd.DataFrame, plan: SweepPlan) -> list[Condition]:
    """Return the completions to score, positive and negative by turns."""
    return [
        Condition(2 * p + arm, d, plan.alphas[a])
        for d, a, p in zip(todo["direction"], todo["alpha"], todo["pair"], strict=True)
        for arm in (0, 1)
    ]


def measure_sweep(
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    plan: SweepPlan,
    *,
    positions: str,
    batch_tokens: int,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    engine: ScoreEngine | None = None,
) -> np.ndarray:
    """Return positive minus negative completion, (direction, alpha, pair), in nats per token.

    ``rows`` are the completions of the pairs, positive and negative by turns. With a folder
    conditions are committed as they are measured, and those that are there are not run.

    Raises
    ------
    InvalidInputError
        If the folder holds conditions of another model or positions.
    """
    wanted = _wanted(rows, plan)
    kept = _kept(loaded, folder, positions=positions)
    values = wanted.assign(difference=np.nan)
    if kept is not None:
        done = kept.read()
        if len(done):
            values = wanted.merge(done[[*_KEY, "difference"]], on=_KEY, how="left")
    todo = values[values["difference"].isna()]
    per_part = _part_size(loaded, rows, todo, batch_tokens=batch_tokens)
    total, n_done = len(values), len(values) - len(todo)
    for start in range(0, len(todo), per_part):
        part = todo.iloc[start : start + per_part]
        scores = score_rows(
            loaded,
            rows,
            _conditions(part, plan),
            directions=plan.vectors,
            layer=plan.layers,
            positions=positions,
            batch_tokens=batch_tokens,
            engine=engine,
        ).reshape(-1, 2)
        values.loc[part.index, "difference"] = scores[:, 0] - scores[:, 1]
        if kept is not None:
            kept.commit(values.loc[part.index, [*_KEY, "difference"]].drop_duplicates(_KEY))
        n_done += len(part)
        if progress is not None:
            progress(n_done, total)
    shape = (len(plan.names), len(plan.alphas), len(rows) // 2)
    return values["difference"].to_numpy(dtype=np.float64).reshape(shape)


def _part_size(
    loaded: LoadedModel, rows: Sequence[TokenRow], todo: pd.DataFrame, *, batch_tokens: int
) -> int:
    """Return how many conditions are committed at a time."""
    if not len(todo):
        return 1
    conditions = [Condition(row, 0, 0.0) for row in range(len(rows))]
    n_batches = len(condition_batches(loaded, rows, conditions * 8, batch_tokens=batch_tokens))
    per_batch = 8 * len(rows) / 2 / n_batches
    return max(1, math.ceil(_BATCHES_PER_PART * per_batch))


def weigh_conditions(
    loaded: LoadedModel,
    rows: Sequence[TokenRow],
    plan: SweepPlan,
    *,
    positions: str,
    folder: Path | None,
    batch_tokens: int,
    engine: ScoreEngine | None = None,
) -> PatchCost:
    """Return what :func:`measure_sweep` would run."""
    todo = _wanted(rows, plan)
    kept = _kept(loaded, folder, positions=positions, read_only=True)
    if kept is not None:
        todo = kept.missing(todo)
    conditions = _conditions(todo, plan)
    return weigh_rows(
        loaded, rows, conditions, batch_tokens=batch_tokens, layer=plan.layers, engine=engine
    )
