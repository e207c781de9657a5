"""Writing one block: claim it, store its objects, have them chosen, commit them."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
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
    TokenAxis,
)
from .backend import NoSpaceError
from .bits import to_bits
from .block_claims import BlockClaimedError, BlockClaims
from .blocks import block_bytes, block_chunks, block_keys
from .clock import now
from .codec import encode_chunk
from .commits import check_commit, object_info
from .deciding import create_or_read, finish_block, is_ours, read_decision
from .run_claim import OBJECT_BYTES
from .token_stream import TokenStream

if TYPE_CHECKING:
    from .store import Store

__all__ = ["BlockWriter", "Progress"]


@dataclass
class Progress:
    """What a writer has stored of a block: keys in their place, and staged ones; see deciding."""

    staged_in: str
    staged: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    tokens: TokenStream | None = None

    def abandon_tokens(self) -> None:
        """Drop the tokens that were not stored; after it ``created`` is all there is."""
        if self.tokens is not None:
            self.tokens.abandon()


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
        self._begun: dict[int, Progress] = {}  # blocks whose tokens are being added
        self._lock = threading.Lock()

    def add_tokens(
        self, block: int, start: int, arrays: Mapping[str, np.ndarray[Any, Any]], *, axis: TokenAxis
    ) -> None:
        """Add tokens of a block, which is claimed with the first; store what is full."""
        with self._lock:
            progress = self._begun.get(block)
        if progress is None:
            progress = _new_progress(block)
            if self.claim(block) is None:  # else it is committed, and write will say so
                progress.tokens = TokenStream(
                    self.plan,
                    axis,
                    block,
                    store_chunk=partial(self._store_object, progress),
                    n_threads=self._n_threads,
                )
            with self._lock:
                self._begun[block] = progress
        try:
            if progress.tokens is not None:
                progress.tokens.add(start, arrays)
        except NoSpaceError as err:
            try:
                raise self._no_space(block, err, progress) from err
            finally:  # the claim is freed last: the next writer counts on what lies there
                self._give_up(block, err)
        except BaseException as err:
            self._give_up(block, err)
            raise

    def has_tokens(self, block: int) -> bool:
        """Return whether tokens of a block were added."""
        with self._lock:
            return block in self._begun

    def give_up_all(self) -> None:
        """Drop the blocks whose tokens were added and that were not written."""
        for block in list(self._begun):
            self._give_up(block, None)

    def _give_up(self, block: int, err: BaseException | None) -> None:
        """Drop a block that was begun; remove its objects where no one else can need them."""
        with self._lock:
            progress = self._begun.pop(block, None)
        if progress is not None and progress.tokens is not None:
            progress.abandon_tokens()
            if err is None or isinstance(err, InvalidInputError):
                with suppress(StorageError):  # what lies there is not committed, and harmless
                    self._discard(block, progress)
        self.claims.release(block)

    def write(
        self,
        block: int,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        *,
        notes: dict[str, Any],
    ) -> BlockCommit:
        """Encode, store and commit a block; return its commit record."""
        with self._lock:
            progress = self._begun.pop(block, None) or _new_progress(block)
        try:
            there = self.claim(block)
            if there is not None:
                return there
            return self._write_claimed(block, arrays, notes=notes, progress=progress)
        except NoSpaceError as err:
            raise self._no_space(block, err, progress) from err
        except InvalidInputError:  # a value that its 16-bit type does not have
            self._discard(block, progress)
            raise
        finally:
            progress.abandon_tokens()
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
        progress: Progress,
    ) -> BlockCommit:
        """Store the objects of a claimed block and commit it."""
        rows = self.plan.block_rows(block)
        record = BlockCommit(
            plan_id=self.plan_id,
            block=block,
            row_start=rows.start,
            row_stop=rows.stop,
            objects=self._store_objects(block, arrays, progress),
            writer=self.writer,
            committed_at=now(),
            environment=self.environment,
            notes=notes,
        )
        if self.store.info.create_only:
            commit = self._decide(record, staged_in=progress.staged_in, staged=progress.staged)
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
        self, block: int, arrays: Mapping[str, np.ndarray[Any, Any]], progress: Progress
    ) -> tuple[ObjectInfo, ...]:
        """Encode and store the objects of a block; after a failure no further one begins."""
        found = progress.tokens.finish() if progress.tokens is not None else {}
        with ThreadPoolExecutor(self._n_threads) as pool:
            futures = [
                pool.submit(self._store_object, progress, *item)
                for item in block_chunks(self.plan, block, arrays)
            ]
            try:
                found |= {info.key: info for info in (future.result() for future in futures)}
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return tuple(found[key] for key in block_keys(self.plan, block))

    def _store_object(
        self, progress: Progress, key: str, values: np.ndarray[Any, Any]
    ) -> ObjectInfo:
        """Encode and store one object: in its place, or staged where that is taken.

        See :mod:`.deciding`; ``progress`` collects which.
        """
        dtype = self._dtypes[key.partition("/")[0]]
        stored = values if dtype == "float32" else to_bits(values, dtype)
        data = encode_chunk(stored, codec=self.plan.codec)
        full = self._keys.object(key)
        if not self.store.info.create_only:
            self.store.backend.put(full, data)
            progress.created.append(key)
        elif is_ours(self.store, full, data):
            progress.created.append(key)
        else:
            progress.staged.append(key)
            self.store.backend.put(f"{self._keys.staged}/{progress.staged_in}/{key}", data)
        return object_info(key, data)

    def _discard(self, block: int, progress: Progress) -> None:
        """Remove what this writer stored of a block, where nobody else can be at work on it.

        A folder's claims are exact: a process of this machine lives or does not. Elsewhere a
        claim may have been taken over by mistake, and removing could hit what another writer
        has counted on; there the objects stay, unseen, until the block is written again.
        """
        if self.store.info.create_only and not self.store.location.is_local:
            return
        progress.abandon_tokens()  # what is being stored now would be left behind
        decision = None
        if self.store.info.create_only:
            decision = read_decision(self.store, self.plan, block, plan_id=self.plan_id)
        if decision is None and self._read_commit(block) is None:
            for key in progress.created:
                self.store.backend.delete(self._keys.object(key))

    def _no_space(self, block: int, err: NoSpaceError, progress: Progress) -> StorageError:
        """Discard a block that did not fit; return the error that says so."""
        self._discard(block, progress)
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


def _new_progress(block: int) -> Progress:
    return Progress(staged_in=f"{block}-{uuid.uuid4().hex}")
