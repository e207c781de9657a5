"""Claiming a run id: the plan and manifest under it, and whether stored bytes mean the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from ..schemas import AlreadyExistsError, CorruptError, EnvironmentInfo, RunManifest, RunPlan
from .chunks import chunk_fault, unpack_chunk
from .codec import BLOSC, decoded_size
from .deciding import OBJECT_BYTES, create_or_read
from .layout import METADATA_NAME, to_bytes

if TYPE_CHECKING:
    from .store import Store

__all__ = ["OBJECT_BYTES", "claim_run", "differences", "means_the_same", "new_manifest"]

_LAYOUT_FIELDS = ("shape", "data_type", "chunk_grid", "codecs", "dimension_names")


def claim_run(store: Store, plan: RunPlan) -> tuple[RunPlan, str, bool]:
    """Create ``plan.json``, or check that the one there is this plan.

    Returns the plan as stored, its id, and whether this call created it.
    """
    key = store.keys(plan.run).plan
    data = to_bytes(plan.to_dict())
    is_new = store.create(key, data)
    if not is_new:
        create_or_read(store, key, data)  # refused, so it is there; or it is created now
    there, plan_id = store.read_plan_and_id(plan.run)
    if there != plan:
        found = list(differences(there.to_dict(), plan.to_dict()))
        shown = "; ".join(found[:4]) + ("; ..." if len(found) > 4 else "")
        msg = (
            f"{store.url} holds another plan under run {plan.run!r}: {shown}. "
            "Give the run another id, or repeat the settings it was planned with"
        )
        raise AlreadyExistsError(msg)
    return there, plan_id, is_new


def new_manifest(
    plan: RunPlan, *, plan_id: str, created_at: str, environment: EnvironmentInfo
) -> RunManifest:
    """Return the manifest of a run: what its plan says, who began it, when and on what."""
    return RunManifest(
        run=plan.run,
        plan_id=plan_id,
        corpus=plan.corpus,
        model=plan.model,
        tokenizer=plan.tokenizer,
        capture=plan.capture,
        n_texts=plan.n_texts,
        n_tokens=plan.n_tokens,
        n_layers=len(plan.layers),
        hidden_size=plan.model.hidden_size,
        seed=plan.seed,
        created_at=created_at,
        environment=environment,
    )


def differences(old: object, new: object, *, path: str = "") -> Iterable[str]:
    """Yield ``key (stored 1, got 2)`` for every leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            below = f"{path}.{key}" if path else key
            yield from differences(old.get(key), new.get(key), path=below)
    elif _are_records(old) and _are_records(new) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, path=f"{path}.{index}")
    elif old != new:
        stored, got = (json.dumps(v, ensure_ascii=False)[:60] for v in (old, new))
        yield f"{path} (stored {stored}, got {got})"


def _are_records(value: object) -> TypeGuard[list[dict[str, object]]]:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def means_the_same(stored: bytes, data: bytes, *, dtype: str, key: str) -> bool:
    """Return whether two objects hold the same, though another version compressed one of them."""
    if key.endswith(METADATA_NAME):
        try:
            old, new = json.loads(stored), json.loads(data)
        except (ValueError, RecursionError):
            return False
        is_document = isinstance(old, dict)
        return is_document and all(old.get(name) == new.get(name) for name in _LAYOUT_FIELDS)
    size = 1 if dtype == "string" else np.dtype(dtype).itemsize
    n_bytes = decoded_size(data)
    if chunk_fault(stored, codec=BLOSC, item_size=size, n_bytes=n_bytes, exactly=True):
        return False
    try:
        return unpack_chunk(stored, codec=BLOSC) == unpack_chunk(data, codec=BLOSC)
    except CorruptError:
        return False
