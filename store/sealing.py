"""Sealing a run: the manifest of all its objects, and the digests over it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..schemas import (
    BlockCommit,
    CorruptError,
    IncompleteError,
    ObjectInfo,
    RunPlan,
    Seal,
    StorageError,
    digest_json,
)
from .catalog import write_catalog
from .clock import now
from .commits import check_commit, object_info
from .deciding import sweep_run
from .layout import METADATA_NAME

if TYPE_CHECKING:
    from .store import Store

__all__ = ["commits_digest", "objects_digest", "seal_run", "tree_digest"]


def objects_digest(objects: Iterable[ObjectInfo]) -> str:
    """Return the digest over (key, sha256) of ``objects``, sorted by key."""
    return digest_json(sorted([info.key, info.sha256] for info in objects))


def tree_digest(plan_id: str, objects: Iterable[ObjectInfo]) -> str:
    """Return the digest over the plan id and (key, sha256) of all objects."""
    return digest_json([plan_id, sorted([info.key, info.sha256] for info in objects)])


def commits_digest(commits: Iterable[BlockCommit]) -> str:
    """Return the digest over the commit records in block order."""
    return digest_json([commit.fingerprint() for commit in commits])


def seal_run(
    store: Store, plan: RunPlan, *, plan_id: str, static: list[ObjectInfo], group: bytes
) -> Seal:
    """Write the consolidated metadata, ``seal.json`` and the catalog; return the seal.

    Parameters
    ----------
    static
        The metadata and coordinate objects, without the group's own metadata.
    group
        The group's consolidated metadata.
    """
    seal = store.read_seal(plan.run)
    if seal is None:
        seal = _new_seal(store, plan, plan_id=plan_id, static=static, group=group)
    elif seal.plan_id != plan_id:
        msg = f"the seal of run {plan.run!r} in {store.url} is of another plan: {seal.plan_id}"
        raise CorruptError(msg)
    sweep_run(store, plan.run)
    write_catalog(store)
    return seal


def _new_seal(
    store: Store, plan: RunPlan, *, plan_id: str, static: list[ObjectInfo], group: bytes
) -> Seal:
    commits = store.read_commits(plan.run)
    n_missing = len(set(range(plan.n_blocks)) - {commit.block for commit in commits})
    if n_missing:
        msg = (
            f"run {plan.run!r} in {store.url} cannot be sealed: {n_missing} of {plan.n_blocks} "
            "blocks are not committed; run the same command again to resume"
        )
        raise IncompleteError(msg)
    for commit in commits:
        check_commit(plan, commit, plan_id=plan_id, where=store.url)
    blocks = [info for commit in commits for info in commit.objects]
    _check_presence(store, plan.run, [*static, *blocks])
    root = object_info(METADATA_NAME, group)
    keys = store.keys(plan.run)
    store.backend.put(keys.object(METADATA_NAME), group)
    objects = sorted([*static, *blocks, root], key=lambda info: info.key)
    seal = Seal(
        plan_id=plan_id,
        n_blocks=len(commits),
        n_objects=len(objects),
        n_bytes=sum(info.n_bytes for info in objects),
        objects=tuple(objects),
        commits_digest=commits_digest(commits),
        data_digest=objects_digest(blocks),
        tree_digest=tree_digest(plan_id, objects),
        sealed_at=now(),
    )
    if store.create(keys.seal, seal.to_json(indent=None).encode()):
        return seal
    there = store.read_seal(plan.run)
    if there is None or there.tree_digest != seal.tree_digest:
        msg = f"run {plan.run!r} in {store.url} was sealed meanwhile with other objects; verify it"
        raise StorageError(msg)
    return there


def _check_presence(store: Store, run: str, objects: list[ObjectInfo]) -> None:
    """Raise CorruptError where an object is missing or has another size, by one listing."""
    folder = store.keys(run).data
    sizes = {key.removeprefix(folder + "/"): size for key, size in store.backend.walk(folder)}
    for info in objects:
        if sizes.get(info.key) != info.n_bytes:
            got = f"{sizes[info.key]} bytes" if info.key in sizes else "nothing"
            msg = (
                f"run {run!r} in {store.url}: {info.key} was stored with {info.n_bytes} bytes, "
                f"now there is {got}; delete the commit record of its block and run again"
            )
            raise CorruptError(msg)
