"""Claiming a run id: the plan that lies under it, and whether stored bytes mean the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..schemas import AlreadyExistsError, RunPlan
from .codec import decode_chunk
from .layout import METADATA_NAME, to_bytes

if TYPE_CHECKING:
    from .store import Store

__all__ = ["OBJECT_BYTES", "claim_run", "means_the_same"]

OBJECT_BYTES = 2**31  # blosc's own limit
_LAYOUT_FIELDS = ("shape", "data_type", "chunk_grid", "codecs", "dimension_names")


def claim_run(store: Store, plan: RunPlan) -> tuple[RunPlan, str, bool]:
    """Create ``plan.json``, or check that the one there is this plan.

    Returns the plan as stored, its id, and whether this call created it.
    """
    key = store.keys(plan.run).plan
    is_new = store.create(key, to_bytes(plan.to_dict()))
    there, plan_id = store.read_plan_and_id(plan.run)
    if there != plan:
        differences = list(_differences(there.to_dict(), plan.to_dict()))
        shown = "; ".join(differences[:4]) + ("; ..." if len(differences) > 4 else "")
        msg = (
            f"{store.url} holds another plan under run {plan.run!r}: {shown}. "
            "Give the run another id, or repeat the settings it was planned with"
        )
        raise AlreadyExistsError(msg)
    return there, plan_id, is_new


def _differences(old: object, new: object, *, path: str = "") -> Iterable[str]:
    """Yield ``key (stored 1, got 2)`` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            below = f"{path}.{key}" if path else key
            yield from _differences(old.get(key), new.get(key), path=below)
    elif old != new:
        stored, got = (json.dumps(v, ensure_ascii=False)[:60] for v in (old, new))
        yield f"{path} (stored {stored}, got {got})"


def means_the_same(stored: bytes, data: bytes, *, dtype: str, key: str) -> bool:
    """Return whether two objects hold the same, though another version compressed one of them."""
    if key.endswith(METADATA_NAME):
        try:
            old, new = json.loads(stored), json.loads(data)
        except ValueError:
            return False
        return all(old.get(name) == new.get(name) for name in _LAYOUT_FIELDS)
    old_values, new_values = (
        decode_chunk(part, dtype=dtype, max_bytes=OBJECT_BYTES) for part in (stored, data)
    )
    return bool(np.array_equal(old_values, new_values))
