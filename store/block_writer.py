"""Writing one block: claim it, store its objects, have them chosen, commit them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from ..schemas import (
    BlockCommit,
    BlockDecision,
    CorruptError,
    EnvironmentInfo,
    InvalidInputError,
    ObjectInfo,
    RunPlan,
    StorageError,
)
from .backend import NoSpaceError
from .bits import to_bits
from .block_claims import BlockClaimedError, BlockClaims
from .blocks import block_bytes, block_chunks
from .clock import now
from .codec import encode_chunk
from .commits import check_commit, object_info
from .deciding import create_or_read, finish_block, is_ours, read_decision
from .run_claim import OBJECT_BYTES

if TYPE_CHECKING:
    from .store import Store

__all__ = ["BlockWriter"]


class BlockWriter:
    """What writes the blocks of one run. Threads may write different blocks through one."""

    def __init__(
        self,
        store: Store,
        plan: RunPlan,
        *,
        plan_id: str,
        environment: EnvironmentInfo,
        writer: str,
        n_threads: int,
    ) -> None:
        self.store = store
        self.plan = plan
        self.plan_id = plan_id
        self.environment = environment
        self.writer = writer
        self._keys = store.keys(plan.run)
        self.claims = BlockClaims(store, self._keys, plan_id=plan_id, writer=writer)
        self._dtypes = {spec.name: spec.dtype for spec in plan.arrays}
        self._n_threads = n_threads

    def write(
        self,
        block: int,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        *,
        notes: dict[str, Any],
    ) -> BlockCommit:
        """Encode, store and commit a block; return its commit record."""
        created: list[str] = []
        try:
            there = self.claim(block)
            if there is not None:
                return there
            return self._write_claimed(block, arrays, notes=notes, created=created)
        except NoSpaceError as err:
            raise self._no_space(block, err, created=created) from err
        except InvalidInputError:  # a value that its 16-bit type does not have
            self._discard(block, created)
            raise
        finally:
            self.claims.release(block)

    def claim(self, block: int) -> BlockCommit | None:
        """Claim a block; return its commit record where it is committed or only needs finishing."""
        if self.claims.holds(block):
            return None
        try:
            self.claims.acquire(block)
        except BlockClaimedError:
            there = self._read_commit(block)
            if there is None:
                raise
            return there
        there = self._read_commit(block)
        if there is None and self.store.info.create_only:
            decision = read_decision(self.store, self.plan, block, plan_id=self.plan_id)
            if decision is not None:
                there = finish_block(self.store, self.plan, decision)
        if there is not None:
            self.claims.clear(block)
        return there

    def _write_claimed(
        self,
        block: int,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        *,
        notes: dict[str, Any],
        created: list[str],
    ) -> BlockCommit:
        """Store the objects of a claimed block and commit it; ``created`` collects their keys."""
        rows = self.plan.block_rows(block)
        staged_in = f"{block}-{uuid.uuid4().hex}"
        staged: list[str] = []
        record = BlockCommit(
            plan_id=self.plan_id,
            block=block,
            row_start=rows.start,
            row_stop=rows.stop,
            objects=self._store_objects(
                block, arrays, staged_in=staged_in, staged=staged, created=created
            ),
            writer=self.writer,
            committed_at=now(),
            environment=self.environment,
            notes=notes,
        )
        if self.store.info.create_only:
            commit = self._decide(record, staged_in=staged_in, staged=staged)
        elif self.store.create(self._keys.commit(block), record.to_json(indent=None).encode()):
            commit = record
        else:
            commit = self._yield_to_other(record)
        self.claims.clear(block)
        return commit

    def _decide(self, record: BlockCommit, *, staged_in: str, staged: list[str]) -> BlockCommit:
        """Have this writer's bytes chosen, or another's that came first, and commit those."""
        mine = BlockDecision(commit=record, staged_in=staged_in, staged=tuple(sorted(staged)))
        key = self._keys.decision(record.block)
        data = create_or_read(self.store, key, mine.to_json(indent=None).encode())
        decision = self.store.parse_record(BlockDecision, data, key=key)
        check_commit(self.plan, decision.commit, plan_id=self.plan_id, where=self.store.url)
        commit = finish_block(self.store, self.plan, decision)
        if decision != mine:
            for name in staged:
                self.store.backend.delete(f"{self._keys.staged}/{staged_in}/{name}")
        return commit

    def _store_objects(
        self,
        block: int,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        *,
        staged_in: str,
        staged: list[str],
        created: list[str],
    ) -> tuple[ObjectInfo, ...]:
        """Encode and store the objects of a block; after a failure no further one begins.

        The keys of objects that lie in their place are added to ``created``, those whose place
        was taken to ``staged``: see :mod:`.deciding`.
        """

        def store(key: str, values: np.ndarray[Any, Any]) -> ObjectInfo:
            dtype = self._dtypes[key.partition("/")[0]]
            stored = values if dtype == "float32" else to_bits(values, dtype)
            data = encode_chunk(stored, codec=self.plan.codec)
            full = self._keys.object(key)
            if not self.store.info.create_only:
                self.store.backend.put(full, data)
                created.append(key)
            elif is_ours(self.store, full, data):
                created.append(key)
            else:
                staged.append(key)
                self.store.backend.put(f"{self._keys.staged}/{staged_in}/{key}", data)
            return object_info(key, data)

        with ThreadPoolExecutor(self._n_threads) as pool:
            futures = [pool.submit(store, *item) for item in block_chunks(self.plan, block, arrays)]
            try:
                return tuple(future.result() for future in futures)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _discard(self, block: int, created: list[str]) -> None:
        """Remove what this writer stored of a block, where nobody else can be at work on it.

        A folder's claims are exact: a process of this machine lives or does not. Elsewhere a
        claim may have been taken over by mistake, and removing could hit what another writer
        has counted on; there the objects stay, unseen, until the block is written again.
        """
        if self.store.info.create_only and not self.store.location.is_local:
            return
        decision = None
        if self.store.info.create_only:
            decision = read_decision(self.store, self.plan, block, plan_id=self.plan_id)
        if decision is None and self._read_commit(block) is None:
            for key in created:
                self.store.backend.delete(self._keys.object(key))

    def _no_space(self, block: int, err: NoSpaceError, *, created: list[str]) -> StorageError:
        """Discard a block that did not fit; return the error that says so."""
        self._discard(block, created)
        n_left = self.plan.n_blocks - len(self.store.committed_blocks(self.plan.run))
        rows = self.plan.block_rows(block)
        return NoSpaceError(
            f"{err}: block {block} (rows {rows.start} to {rows.stop - 1}) of run "
            f"{self.plan.run!r} was discarded, {self.plan.n_blocks - n_left} of "
            f"{self.plan.n_blocks} blocks are committed and stay; at most "
            f"{n_left * block_bytes(self.plan) / 1e6:.1f} MB are still to be written"
        )

    def _yield_to_other(self, record: BlockCommit) -> BlockCommit:
        """Return the commit record that was there first, after a create-only PUT was refused.

        Only on a server without create-only PUTs. It may be our own: a retry can lose to the
        request that it repeats. If it is another writer's, both wrote the same keys at the same
        time, so what lies there now must be read back.
        """
        winner = self._read_commit(record.block)
        if winner is None:
            msg = (
                f"the commit record of block {record.block} of run {self.plan.run!r} in "
                f"{self.store.url} was refused as existing, but is not there; run again"
            )
            raise StorageError(msg)
        if winner.objects == record.objects:
            return winner
        for info in winner.objects:
            stored = self.store.backend.get(self._keys.object(info.key), max_bytes=OBJECT_BYTES)
            if stored is None or hashlib.sha256(stored).hexdigest() != info.sha256:
                msg = (
                    f"block {record.block} of run {self.plan.run!r} in {self.store.url} was "
                    f"committed by writer {winner.writer} while this one wrote it, and {info.key} "
                    f"is not what was committed; delete {self._keys.commit(record.block)} and "
                    "run again, with each worker on its own blocks"
                )
                raise CorruptError(msg)
        return winner

    def _read_commit(self, block: int) -> BlockCommit | None:
        commit = self.store.read_commit(self.plan.run, block)
        if commit is not None:
            check_commit(self.plan, commit, plan_id=self.plan_id, where=self.store.url)
        return commit
