"""A world that goes wrong: seeded schedules of faults over several writers of one run.

Every call of every writer to its storage can be preceded or followed by a fault. Between any two
calls of one writer another one can run, requests that were sent before can be delivered again,
and a reader looks. A schedule is a number: the same number fails the same way.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any
from unittest import mock

import numpy as np

from actlake.schemas import (
    AlreadyExistsError,
    BlockCommit,
    IncompleteError,
    NotFoundError,
    StorageError,
    StoreInfo,
)
from actlake.store import RunWriter, block_claims, verify_run
from actlake.store.backend import bounded, check_key
from actlake.store.codec import decode_chunk
from actlake.store.failures import Failure, storage_error
from actlake.store.location import Location
from actlake.store.retry import RetryingBackend, RetryPolicy
from actlake.store.store import Store
from tests.store.racing import STEP, authors, race_plan, writer_values
from tests.store.samples import write_run

ANSWERS = {
    "403": Failure("answer", status=403, code="AccessDenied"),
    "409": Failure("answer", status=409, code="ConditionalRequestConflict"),
    "500": Failure("answer", status=500, code="InternalError"),
    "503": Failure("answer", status=503, code="SlowDown"),
    "timeout": Failure("timeout"),
    "truncated": Failure("connection", said="the body ended early"),
    "full": Failure("answer", status=507, code="InsufficientStorage"),
}
BEFORE = ("death", "403", "409", "412", "500", "503", "timeout", "truncated", "full")
AFTER = ("death after", "lost reply", "duplicate")


class Death(BaseException):
    """The process ended here: nothing of it runs any more."""


class MemoryBackend:
    """Objects in a dict, as a server that honours create-only PUTs keeps them."""

    def __init__(self) -> None:
        self.location = Location(url="memory://world", scheme="memory", root="world")
        self.objects: dict[str, bytes] = {}

    def get(self, key: str, *, max_bytes: int, timeout_seconds: float | None = None):
        data = self.objects.get(check_key(key))
        return None if data is None else bounded(data, key=key, max_bytes=max_bytes)

    async def get_async(self, key: str, *, max_bytes: int):
        return self.get(key, max_bytes=max_bytes)

    def put(self, key: str, data: bytes) -> None:
        self.objects[check_key(key)] = data

    def create(self, key: str, data: bytes) -> bool:
        return self.objects.setdefault(check_key(key), data) is data

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def size(self, key: str):
        data = self.objects.get(key)
        return None if data is None else len(data)

    def walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        folder = f"{prefix}/" if prefix else ""
        yield from sorted((k, len(d)) for k, d in self.objects.items() if k.startswith(folder))

    def children(self, prefix: str) -> list[str]:
        folder = f"{prefix}/" if prefix else ""
        below = (k.removeprefix(folder) for k in self.objects if k.startswith(folder))
        return sorted({name.partition("/")[0] for name in below})

    def clean(self, prefix: str) -> int:
        return 0


class FaultyBackend:
    """What one writer sees of the world's storage."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._inner = world.storage
        self.location = self._inner.location
        self.is_dead = False

    def _call(self, what: str, work: Callable[[], object], *, key: str = "") -> object:
        world = self._world
        fault = world.draw_fault(what)
        if self.is_dead or fault == "death":
            self.is_dead = True
            raise Death
        world.interrupt()
        if self.is_dead:  # it was replaced and killed meanwhile
            raise Death
        if fault == "412":
            return False
        if fault in ANSWERS:
            raise self._error(fault, what, key)
        result = work()
        if what in {"put", "create", "delete"}:
            world.glance()
        if fault == "death after":
            self.is_dead = True
            raise Death
        if fault == "duplicate":
            world.late.append(work)
        if fault == "lost reply":
            raise self._error("timeout", what, key)
        return result

    def _error(self, fault: str, what: str, key: str) -> StorageError:
        return storage_error(ANSWERS[fault], doing=f"{what} {key}", location=self.location)

    def get(self, key, *, max_bytes, timeout_seconds=None):
        return self._call("get", lambda: self._inner.get(key, max_bytes=max_bytes), key=key)

    async def get_async(self, key, *, max_bytes):
        return self.get(key, max_bytes=max_bytes)

    def put(self, key, data):
        self._call("put", lambda: self._inner.put(key, data), key=key)

    def create(self, key, data):
        return self._call("create", lambda: self._inner.create(key, data), key=key)

    def delete(self, key):
        self._call("delete", lambda: self._inner.delete(key), key=key)

    def size(self, key):
        return self._call("size", lambda: self._inner.size(key), key=key)

    def walk(self, prefix):
        yield from self._call("walk", lambda: list(self._inner.walk(prefix)), key=prefix)

    def children(self, prefix):
        return self._call("children", lambda: self._inner.children(prefix), key=prefix)

    def clean(self, prefix):
        return self._call("clean", lambda: self._inner.clean(prefix), key=prefix)


class SerialExecutor:
    """Runs at once what a pool would run some time: one schedule is one order of calls."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work, *args):
        future: Future = Future()
        try:
            future.set_result(work(*args))
        except BaseException as err:  # carried, as a pool does  # noqa: BLE001
            future.set_exception(err)
        return future

    def map(self, work, *iterables):
        return [work(*args) for args in zip(*iterables, strict=True)]

    def shutdown(self, **_: object) -> None:
        pass


class World:
    """One storage, some writers, and what goes wrong between them.

    With ``honest`` False the storage ignores create-only conditions: then one writer at a time
    is promised, each with its own requests delivered before the next one begins.
    """

    def __init__(
        self, seed: int, storage, *, honest: bool = True, rate: float = 0.04, tokens: bool = False
    ) -> None:
        self.rng = random.Random(seed)
        self.storage = storage
        self.honest = honest
        self.rate = rate
        self.plan = race_plan(n_blocks=3, rows=2, tokens=tokens)
        self.late: list[Callable[[], object]] = []
        self.writers: list[tuple[RunWriter, FaultyBackend, int]] = []
        self.n_started = 0
        self.depth = 0
        self.counts: Counter[str] = Counter()
        self.first_seen: dict[int, bytes] = {}
        self._decoded: dict[bytes, set[float]] = {}
        self.calm = False
        info = StoreInfo(created_at="2026", created_by="test", create_only=honest)
        storage.put("store.json", info.to_json().encode())

    # -- what goes wrong

    def draw_fault(self, what: str) -> str | None:
        if self.calm or self.rng.random() >= self.rate:
            return None
        fault = self.rng.choice(BEFORE if self.rng.random() < 0.5 else AFTER)
        wrong = {
            "412": what != "create",
            "409": what not in {"create", "put"},
            "truncated": what != "get",
            "full": what not in {"create", "put"},
            "duplicate": what not in {"create", "put"},
        }
        if wrong.get(fault) or (fault == "412" and not self.honest):
            return None
        self.counts[fault] += 1
        return fault

    def interrupt(self) -> None:
        """Between two calls: old requests arrive, others run."""
        if self.calm or self.depth >= 2:
            return
        if self.late and self.rng.random() < 0.1:
            self.deliver()
        if self.honest and self.rng.random() < 0.05:
            self.depth += 1
            self.counts["interrupted"] += 1
            try:
                self.step()
            finally:
                self.depth -= 1

    def deliver(self) -> None:
        self.late.pop(self.rng.randrange(len(self.late)))()
        self.counts["delivered again"] += 1
        self.glance()

    def _believed(self):
        def is_over(claims, claim):
            return self.is_over(claims, claim)

        return is_over

    def is_over(self, claims, claim) -> bool:
        """Return what a writer believes of another one: the truth, or that it is dead."""
        if self.storage.location.is_local:
            return self._is_over(claims, claim)
        mistaken = self.honest and not self.calm and self.rng.random() < 0.3
        self.counts["thought dead"] += mistaken
        return mistaken or self._is_over(claims, claim)

    # -- what readers may see

    def glance(self) -> None:
        """Hold every committed block against what was first seen of it, and against mixing."""
        for block in range(self.plan.n_blocks):
            key = f"runs/race/commits/{block}.json"
            data = self.storage.get(key, max_bytes=2**20)
            if data is None:
                assert block not in self.first_seen, f"block {block} is gone"
                continue
            assert self.first_seen.setdefault(block, data) == data
            commit = BlockCommit.parse(json.loads(data))
            values = set()
            for info in commit.objects:
                stored = self.storage.get(f"runs/race/data.zarr/{info.key}", max_bytes=2**20)
                assert stored is not None, info.key
                assert hashlib.sha256(stored).hexdigest() == info.sha256, info.key
                values |= self.values_of(stored)
            assert len(values) == 1, f"block {block} mixes {values}"
            assert int(values.pop()) % STEP == block

    def values_of(self, stored: bytes) -> set[float]:
        if stored not in self._decoded:
            found = decode_chunk(stored, dtype="float32", max_bytes=2**20)
            self._decoded[stored] = set(found[~np.isnan(found)].tolist())  # NaN is padding
        return self._decoded[stored]

    def look(self) -> None:
        """Open the run as a reader does."""
        try:
            authors(self.store(self.storage), self.plan)
        except NotFoundError:
            assert not self.first_seen

    # -- what is done

    def store(self, backend) -> Store:
        info = StoreInfo(created_at="2026", created_by="test", create_only=self.honest)
        return Store(self.storage.location, backend=backend, info=info)

    def start(self) -> None:
        self.n_started += 1
        number = self.n_started
        backend = FaultyBackend(self)
        policy = RetryPolicy(attempts=3, base_seconds=0)
        store = self.store(RetryingBackend(backend, policy=policy))
        writer = write_run(store, self.plan, blocks=[], seal=False)
        self.writers.append((writer, backend, number))

    def step(self) -> None:
        most = 3 if self.honest else 1
        if len(self.writers) < most and (not self.writers or self.rng.random() < 0.2):
            return self.attempt(self.start)
        writer, backend, number = self.rng.choice(self.writers)
        # Mostly the first block that is not committed: that is where writers meet.
        open_blocks = [b for b in range(self.plan.n_blocks) if b not in self.first_seen]
        block = self.rng.choice(open_blocks[:1] * 3 + list(range(self.plan.n_blocks)))
        action = self.rng.choice(["write", "write", "write", "write", "seal", "claim", "close"])
        work = {
            "write": lambda: self.write(writer, block, number),
            "claim": lambda: writer.claim_block(block),
            "close": writer.close,
            "seal": writer.seal,
        }[action]
        self.attempt(work)
        if backend.is_dead:
            self.bury(writer)
        return None

    def write(self, writer, block: int, number: int) -> None:
        """Write a block, its tokens mostly piece by piece; one thread at a time has a block."""
        if writer._blocks.has_tokens(block):
            return
        values = writer_values(self.plan, block, number)
        axis = self.plan.token_axis
        if axis is not None and self.rng.random() < 0.7:
            tokens = {s.name: values.pop(s.name) for s in self.plan.arrays if s.is_tokens}
            n_tokens = axis.token_edges[block + 1] - axis.token_edges[block]
            cut = self.rng.randrange(n_tokens + 1)
            writer.add_tokens(block, cut, {name: v[cut:] for name, v in tokens.items()})
            if not writer._blocks.has_tokens(block):
                return  # it was closed meanwhile
            writer.add_tokens(block, 0, {name: v[:cut] for name, v in tokens.items()})
            if not writer._blocks.has_tokens(block):
                return
        writer.write_block(block, values)

    def attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
            self.counts["done"] += 1
        except Death:
            self.counts["died"] += 1
        except (StorageError, AlreadyExistsError, IncompleteError) as err:
            self.counts[type(err).__name__] += 1

    def bury(self, writer) -> None:
        self.writers = [entry for entry in self.writers if entry[0] is not writer]
        block_claims._HERE.discard(writer._blocks.claims)
        if not self.honest:
            while self.late:  # before the next one begins
                self.deliver()

    def run(self, *, n_steps: int = 14) -> None:
        self._is_over = block_claims.BlockClaims._is_over
        modules = ("writer", "block_writer", "deciding", "store", "token_stream")
        claims = block_claims.BlockClaims
        patches: list[Any] = [
            mock.patch(f"actlake.store.{name}.ThreadPoolExecutor", SerialExecutor)
            for name in modules
        ]
        patches.append(mock.patch.object(claims, "_is_over", self._believed()))
        patches.append(mock.patch.object(claims, "_renew_in_background"))
        for patch in patches:
            patch.start()
        try:
            for _ in range(n_steps):
                self.step()
                self.look()
            self.resume()
        finally:
            for patch in patches:
                patch.stop()

    def resume(self) -> None:
        """Run again without faults, to the end, and compare."""
        while self.late and self.rng.random() < 0.7:
            self.deliver()
        self.calm = True
        for writer, _, _ in list(self.writers):
            self.bury(writer)
        writer = write_run(self.store(self.storage), self.plan, blocks=[], seal=False)
        for block in writer.pending_blocks():
            writer.write_block(block, writer_values(self.plan, block, 77))
            self.look()
        seal = writer.seal()
        self.check(seal)
        while self.late:
            self.deliver()
        self.check(seal)

    def check(self, seal) -> None:
        store = self.store(self.storage)
        report = verify_run(store, "race")
        assert report.ok, report.faults
        assert set(authors(store, self.plan)) == set(range(self.plan.n_blocks))
        expected = undisturbed_keys(tokens=self.plan.token_axis is not None)
        assert [info.key for info in seal.objects] == expected
        folder = "runs/race/data.zarr/"
        there = [k.removeprefix(folder) for k, _ in self.storage.walk("runs/race/data.zarr")]
        assert sorted(there) == expected


@functools.cache
def undisturbed_keys(*, tokens: bool) -> list[str]:
    """Return the manifest's keys of the same run without any fault."""
    plan = race_plan(n_blocks=3, rows=2, tokens=tokens)
    info = StoreInfo(created_at="2026", created_by="test", create_only=True)
    backend = MemoryBackend()
    store = Store(backend.location, backend=backend, info=info)
    writer = write_run(store, plan, blocks=[], seal=False)
    for block in range(plan.n_blocks):
        writer.write_block(block, writer_values(plan, block, 0))
    return sorted(info.key for info in writer.seal().objects)
