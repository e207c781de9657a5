"""A read-only Zarr store that shows committed objects and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from ..schemas import CorruptError
from .backend import Backend
from .codec import BLOSC, crc_matches, decoded_size

if TYPE_CHECKING:
    from typing import Never

__all__ = ["CommittedStore"]


class CommittedStore(Store):
    """The Zarr group of one run, as far as it is committed.

    Zarr reads a missing chunk as the fill value, silently. Here a chunk that was committed and
    is missing, short or damaged raises CorruptError with its key, and a chunk that was not
    committed reads as absent even where its object lies in the storage already.

    Parameters
    ----------
    backend
        Where the objects are.
    folder
        The key of ``data.zarr``.
    metadata
        The checked metadata documents by key; they are not read again.
    sizes
        The size in bytes of every committed object by key, None where only the object knows.
    decoded_limits
        The most bytes that a chunk of each array may decode to, by array name.
    codecs
        The plan's codec by array name; ``BLOSC`` where none is given.
    identity
        What tells this view from any other (plan, commits), for Dask's names.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        folder: str,
        metadata: Mapping[str, bytes],
        sizes: Mapping[str, int | None],
        decoded_limits: Mapping[str, int],
        codecs: Mapping[str, str],
        identity: str,
    ) -> None:
        super().__init__(read_only=True)
        self._backend = backend
        self._folder = folder
        self._metadata = dict(metadata)
        self._sizes = dict(sizes)
        self._limits = dict(decoded_limits)
        self._codecs = dict(codecs)
        self._identity = identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CommittedStore) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __repr__(self) -> str:
        return f"CommittedStore({self._backend.location.url}/{self._folder})"

    def __dask_tokenize__(self) -> tuple[str, str]:
        return type(self).__name__, self._identity

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object, or None where it was not committed."""
        data = self._metadata.get(key)
        if data is None:
            if key not in self._sizes:
                return None
            data = await self._get_chunk(key)
        return prototype.buffer.from_bytes(_cut(data, byte_range))

    async def _get_chunk(self, key: str) -> bytes:
        size = self._sizes[key]
        array = key.partition("/")[0]
        limit = self._limits[array]
        most = 2 * limit + 4096 if size is None else size
        data = await self._backend.get_async(f"{self._folder}/{key}", max_bytes=most)
        wrong = None
        if data is None:
            wrong = "is missing"
        elif size is not None and len(data) != size:
            wrong = f"has {len(data)} bytes, expected {size}"
        elif not crc_matches(data):
            wrong = "does not match its checksum"
        elif (decoded := decoded_size(data, codec=self._codecs.get(array, BLOSC))) > limit:
            wrong = f"would decode to {decoded} bytes, expected at most {limit}"
        if data is None or wrong:
            url = self._backend.location.url
            msg = (
                f"{self._folder}/{key} in {url} {wrong}; it was committed, so the store is "
                "damaged: verify the run and fetch or extract it again"
            )
            raise CorruptError(msg)
        return data

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Return several parts of objects."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return whether an object was committed."""
        return key in self._metadata or key in self._sizes

    @property
    def supports_writes(self) -> bool:
        """False: this is a view."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """False: this is a view."""
        return False

    @property
    def supports_listing(self) -> bool:
        """Whether objects can be listed: those that were committed."""
        return True

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: this is a view."""
        self._refuse()

    async def delete(self, key: str) -> None:
        """Refuse: this is a view."""
        self._refuse()

    def _refuse(self) -> Never:
        msg = f"{self!r} is read-only"
        raise ValueError(msg)

    async def list(self) -> AsyncIterator[str]:
        """Yield the keys of all committed objects."""
        for key in sorted({*self._metadata, *self._sizes}):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that begin with ``prefix``."""
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names right below ``prefix``."""
        folder = prefix.rstrip("/") + "/" if prefix else ""
        async for key in self.list():
            if key.startswith(folder):
                yield key.removeprefix(folder).partition("/")[0]


def _cut(data: bytes, part: ByteRequest | None) -> bytes:
    if isinstance(part, RangeByteRequest):
        return data[part.start : part.end]
    if isinstance(part, OffsetByteRequest):
        return data[part.offset :]
    if isinstance(part, SuffixByteRequest):
        return data[-part.suffix :] if part.suffix else b""
    return data
