"""The one seam between a store and its storage."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Protocol, TypeAlias

from ..schemas import CorruptError, InvalidInputError, StorageError
from .location import Location

__all__ = ["FULL", "Backend", "Data", "NoSpaceError", "TransientError", "bounded", "check_key"]

Data: TypeAlias = bytes | memoryview  # what is stored: never copied on its way

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class NoSpaceError(StorageError):
    """The storage is full (or a quota or a file size limit is reached)."""


class TransientError(StorageError):
    """A failure that may pass: a retry can succeed (``store.retry`` is where it is made)."""


class Backend(Protocol):
    """Whole objects under keys with ``/`` between their parts; every write is atomic."""

    location: Location

    def get(
        self, key: str, *, max_bytes: int, timeout_seconds: float | None = None
    ) -> bytes | None:
        """Return the object's bytes, or None; raise CorruptError above ``max_bytes``."""
        ...

    async def get_async(self, key: str, *, max_bytes: int) -> bytes | None:
        """Return what :meth:`get` returns, without blocking the event loop that awaits it."""
        ...

    def put(self, key: str, data: Data) -> None:
        """Store the object, replacing one that is there; readers see the old or the new one."""
        ...

    def create(self, key: str, data: Data) -> bool:
        """Store the object only if none is there; return whether this call stored it.

        False can be the answer to a repetition of this very call, by an HTTP library below: who
        must know reads the object back. A server may ignore the condition: see
        ``StoreInfo.create_only``.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""
        ...

    def size(self, key: str) -> int | None:
        """Return the object's size in bytes, None where there is none."""
        ...

    def walk(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield (key, size in bytes) of every object below the folder ``prefix``."""
        ...

    def children(self, prefix: str) -> list[str]:
        """Return the sorted names of the folders and objects right below ``prefix``."""
        ...

    def clean(self, prefix: str) -> int:
        """Remove what killed writers of this machine left below ``prefix``; return how many."""
        ...


def check_key(key: str) -> str:
    """Return ``key``; raise InvalidInputError where it could leave the store."""
    parts = key.split("/")
    if any(p in {"", ".", ".."} or "\\" in p or "\0" in p for p in parts):
        msg = f"the key {key!r} is not a plain path below the store"
        raise InvalidInputError(msg)
    return key


def bounded(data: bytes, *, key: str, max_bytes: int) -> bytes:
    """Return ``data``; raise CorruptError where it is larger than was bargained for."""
    if len(data) > max_bytes:
        msg = f"{key} is larger than the {max_bytes} bytes expected of it; it was not read"
        raise CorruptError(msg)
    return data
