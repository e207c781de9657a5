"""Trying again: the one place where requests to a remote storage are repeated.

The clients below have their own retries switched off, so that attempts do not multiply and a
create-only PUT that was repeated is known to have been.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from .backend import Backend, Data, TransientError

__all__ = ["RetryPolicy", "RetryingBackend"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long apart: about 12 s in all with the defaults.

    Waits grow as base, 2 base, 4 base, ... up to the cap, and each is drawn uniformly between
    half of that and all of it, so that workers that failed together do not return together.
    """

    attempts: int = 8
    first_contact_attempts: int = 4  # somebody waits to hear that the URL is wrong
    base_seconds: float = 0.1
    cap_seconds: float = 5.0

    def waits(self, attempts: int) -> Iterator[float]:
        """Yield the seconds to wait before each attempt but the first."""
        draw = random.Random()  # unseeded on purpose: two workers must not wait alike
        for attempt in range(attempts - 1):
            longest = min(self.cap_seconds, self.base_seconds * 2**attempt)
            yield draw.uniform(longest / 2, longest)


class RetryingBackend:
    """A backend that repeats what failed with a TransientError: refusals it does not repeat."""

    def __init__(self, inner: Backend, *, policy: RetryPolicy | None = None) -> None:
        self.inner = inner
        self.policy = policy or RetryPolicy()
        self.location = inner.location

    def __reduce__(self) -> tuple[Callable[..., RetryingBackend], tuple[Backend, RetryPolicy]]:
        return _restore, (self.inner, self.policy)

    def __repr__(self) -> str:
        return f"RetryingBackend({self.inner!r})"

    def _repeat(self, call: Callable[[int], _T], *, attempts: int | None = None) -> _T:
        """Return ``call(attempt)`` of the first attempt that does not fail in passing."""
        n_attempts = attempts or self.policy.attempts
        for attempt, wait in enumerate(self.policy.waits(n_attempts)):
            try:
                return call(attempt)
            except TransientError:
                time.sleep(wait)
        return self._last(lambda: call(n_attempts - 1), n_attempts)

    def _last(self, call: Callable[[], _T], n_attempts: int) -> _T:
        try:
            return call()
        except TransientError as err:
            msg = f"{err} (tried {n_attempts} times)"
            raise TransientError(msg) from err

    def get(
        self, key: str, *, max_bytes: int, timeout_seconds: float | None = None
    ) -> bytes | None:
        """Return the object's bytes, or None; ``timeout_seconds`` bounds all attempts together."""
        if timeout_seconds is None:
            return self._repeat(lambda _: self.inner.get(key, max_bytes=max_bytes))
        deadline = time.monotonic() + timeout_seconds
        n_attempts = self.policy.first_contact_attempts
        for wait in self.policy.waits(n_attempts):
            left = deadline - time.monotonic()
            try:
                return self.inner.get(key, max_bytes=max_bytes, timeout_seconds=left)
            except TransientError:
                if deadline - time.monotonic() <= wait + 0.05:
                    raise
                time.sleep(wait)
        left = deadline - time.monotonic()
        return self._last(
            lambda: self.inner.get(key, max_bytes=max_bytes, timeout_seconds=left), n_attempts
        )

    async def get_async(self, key: str, *, max_bytes: int) -> bytes | None:
        """Return the object's bytes, or None."""
        for wait in self.policy.waits(self.policy.attempts):
            try:
                return await self.inner.get_async(key, max_bytes=max_bytes)
            except TransientError:
                await asyncio.sleep(wait)
        try:
            return await self.inner.get_async(key, max_bytes=max_bytes)
        except TransientError as err:
            msg = f"{err} (tried {self.policy.attempts} times)"
            raise TransientError(msg) from err

    def put(self, key: str, data: Data) -> None:
        """Store the object."""
        self._repeat(lambda _: self.inner.put(key, data))

    def create(self, key: str, data: Data) -> bool:
        """Store the object only if none is there; return whether this call stored it.

        A repetition that finds the object there reads it back: equal bytes are those of an
        earlier attempt, whose reply was lost.
        """

        def attempt(index: int) -> bool:
            if self.inner.create(key, data):
                return True
            return index > 0 and self._is_stored(key, data)

        return self._repeat(attempt)

    def _is_stored(self, key: str, data: Data) -> bool:
        size = self.inner.size(key)
        return size == len(data) and self.inner.get(key, max_bytes=len(data)) == data

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""
        self._repeat(lambda _: self.inner.delete(key))

    def size(self, key: str) -> int | None:
        """Return the object's size in bytes, None where there is none."""
        return self._repeat(lambda _: self.inner.size(key))

    def walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield (key, size in bytes) of every object below the folder ``prefix``."""
        yield from self._repeat(lambda _: list(self.inner.walk(prefix)))

    def children(self, prefix: str) -> list[str]:
        """Return the sorted names of the folders and objects right below ``prefix``."""
        return self._repeat(lambda _: self.inner.children(prefix))

    def clean(self, prefix: str) -> int:
        """Remove what killed writers of this machine left below ``prefix``; return how many."""
        return self._repeat(lambda _: self.inner.clean(prefix))


def _restore(inner: Backend, policy: RetryPolicy) -> RetryingBackend:
    return RetryingBackend(inner, policy=policy)
