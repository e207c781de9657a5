"""Commit records: what they must say to belong to a plan."""

from __future__ import annotations

import hashlib

from ..schemas import BlockCommit, CorruptError, ObjectInfo, RunPlan
from .backend import Data
from .blocks import block_keys

__all__ = ["check_commit", "object_info"]


def object_info(key: str, data: Data) -> ObjectInfo:
    """Return key, size and hash of an object."""
    return ObjectInfo(key=key, n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def check_commit(plan: RunPlan, commit: BlockCommit, *, plan_id: str, where: str) -> None:
    """Raise CorruptError where a commit record is not one of this plan's."""
    rows = plan.block_rows(commit.block)
    wrong = None
    if commit.block >= plan.n_blocks:
        wrong = f"is not of this plan, which has {plan.n_blocks} blocks"
    elif commit.plan_id != plan_id:
        wrong = f"belongs to plan {commit.plan_id}, expected {plan_id}"
    elif (commit.row_start, commit.row_stop) != (rows.start, rows.stop):
        wrong = f"has rows {commit.row_start} to {commit.row_stop}, expected {rows}"
    elif [info.key for info in commit.objects] != block_keys(plan, commit.block):
        wrong = "lists other objects than the plan"
    if wrong:
        msg = f"the commit record of block {commit.block} of run {plan.run!r} in {where} {wrong}"
        raise CorruptError(msg)
