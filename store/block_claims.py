"""Claims: which worker is at work on a block, so that no other one begins it.

A claim saves work and gives a clear message; it does not protect data. What does is that
objects are created and never overwritten before one writer's bytes were chosen (``deciding``),
so a claim may be wrong (a worker that was suspended for an hour, a clock that is off) without
harm.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..schemas import AlreadyExistsError, BlockClaim, CorruptError, StorageError
from .deciding import create_or_read
from .layout import RunKeys
from .liveness import is_running, machine_id, process_start

if TYPE_CHECKING:
    from .store import Store

__all__ = ["LEASE_SECONDS", "BlockClaimedError", "BlockClaims"]

LEASE_SECONDS = 600.0  # after so long without renewal, a worker of another machine is dead
_RENEWALS = 5  # per lease
_CLAIM_BYTES = 2**16
_MOST_GENERATIONS = 10_000


class BlockClaimedError(AlreadyExistsError):
    """Another living worker is at work on a block: leave it to that one, or stop that one."""


class BlockClaims:
    """The claims of one writer on blocks of one run."""

    def __init__(self, store: Store, keys: RunKeys, *, plan_id: str, writer: str) -> None:
        self._store = store
        self._keys = keys
        self._plan_id = plan_id
        self._writer = writer
        self._held: dict[int, tuple[int, BlockClaim]] = {}  # block: (generation, record)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        with _HERE_LOCK:
            _HERE.add(self)

    def holds(self, block: int) -> bool:
        """Return whether this writer has claimed ``block``."""
        with self._lock:
            return block in self._held

    def acquire(self, block: int) -> None:
        """Claim a block, or take over the claim of a worker that is dead.

        Each generation of a block's claims is created once, so of several that take over from
        one dead worker one succeeds. On a server without create-only PUTs this checks, writes
        and reads back: of two that come at the same moment both may believe to hold it.

        Raises
        ------
        BlockClaimedError
            If another worker, or another writer of this process, is at work on it.
        """
        moment = time.time()
        mine = BlockClaim(
            plan_id=self._plan_id,
            block=block,
            writer=self._writer,
            machine=machine_id(),
            pid=os.getpid(),
            started=process_start(os.getpid()),
            claimed_at=moment,
            renewed_at=moment,
        )
        data = mine.to_json(indent=None).encode()
        for generation in range(_MOST_GENERATIONS):
            key = self._keys.claim(block, generation)
            with self._lock:  # what this writer is about to create counts as alive
                self._held[block] = (generation, mine)
            try:
                there = self._claim_of(create_or_read(self._store, key, data), key=key)
            except BaseException:
                self._forget(block)
                raise
            if there.writer == self._writer and not there.released:
                self._renew_in_background()
                return
            if not self._is_over(there):
                self._forget(block)
                raise BlockClaimedError(self._explain(there))
        self._forget(block)
        msg = f"block {block} of {self._keys.run!r} was claimed {_MOST_GENERATIONS} times"
        raise StorageError(msg)

    def release(self, block: int) -> None:
        """Give a block up, so that another writer may claim it at once."""
        held = self._forget(block)
        if held is None:
            return
        generation, claim = held
        # Not deleted: of the generations the highest counts, so none may be missing below it.
        released = claim.model_copy(update={"released": True})
        data = released.to_json(indent=None).encode()
        try:
            self._store.backend.put(self._keys.claim(block, generation), data)
        except StorageError:
            return  # what made this writer give up; its death releases the claim

    def release_all(self) -> None:
        """Give up every block, and stop renewing."""
        self._stop.set()
        for block in list(self._held):
            self.release(block)

    def clear(self, block: int) -> None:
        """Remove the claims on a block that is committed."""
        held = self._forget(block)
        for generation in range(held[0] if held else -1, -1, -1):
            self._store.backend.delete(self._keys.claim(block, generation))

    def _forget(self, block: int) -> tuple[int, BlockClaim] | None:
        with self._lock:
            return self._held.pop(block, None)

    def _claim_of(self, data: bytes, *, key: str) -> BlockClaim:
        claim = self._store.parse_record(BlockClaim, data, key=key)
        if claim.plan_id != self._plan_id:
            msg = f"{key} in {self._store.url} is a claim of another plan: {claim.plan_id}"
            raise CorruptError(msg)
        return claim

    def _is_over(self, claim: BlockClaim) -> bool:
        """Return whether the worker gave up or is dead, as far as can be told from here."""
        if claim.released:
            return True
        if claim.machine != machine_id():
            return time.time() - claim.renewed_at > LEASE_SECONDS
        if claim.pid == os.getpid() and claim.started == process_start(claim.pid):
            with _HERE_LOCK:
                living = [c for c in _HERE if c._writer == claim.writer]
            return not any(c.holds(claim.block) for c in living)
        return not is_running(claim.pid, started=claim.started)

    def _explain(self, claim: BlockClaim) -> str:
        here = claim.machine == machine_id()
        who = f"process {claim.pid} of this machine" if here else "a worker of another machine"
        ago = max(0.0, time.time() - claim.renewed_at)
        wait = "" if here else f", or wait {max(1.0, LEASE_SECONDS - ago):.0f} s if it is dead"
        return (
            f"block {claim.block} of run {self._keys.run!r} in {self._store.url} is being "
            f"written by {who} (writer {claim.writer}, last sign of life {ago:.0f} s ago); let it "
            f"finish, give each worker its own part (--worker i/n){wait}"
        )

    def _renew_in_background(self) -> None:
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(
                    target=_renew_until_gone,
                    args=(weakref.ref(self), self._stop),
                    name="actlake-claims",
                    daemon=True,
                )
                self._thread.start()

    def renew(self) -> None:
        """Write a new sign of life for every block that is held."""
        with self._lock:
            held = list(self._held.items())
        for block, (generation, claim) in held:
            fresh = claim.model_copy(update={"renewed_at": time.time()})
            with self._lock:
                if block not in self._held:
                    continue  # committed or released meanwhile
            try:
                data = fresh.to_json(indent=None).encode()
                self._store.backend.put(self._keys.claim(block, generation), data)
            except StorageError:
                continue  # the next renewal may succeed; the data does not depend on it


_HERE: weakref.WeakSet[BlockClaims] = weakref.WeakSet()  # those of this process
_HERE_LOCK = threading.Lock()


def _renew_until_gone(found: Callable[[], BlockClaims | None], stop: threading.Event) -> None:
    while not stop.wait(LEASE_SECONDS / _RENEWALS):
        claims = found()
        if claims is None:
            return
        claims.renew()
        del claims
