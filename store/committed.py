"""A read-only Zarr store that shows committed objects and nothing else."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype

from ..schemas import CorruptError
from .backend import Backend, Data
from .chunks import check_strings, chunk_fault, unpack_chunk
from .codec import BLOSC, PLAIN, decoded_size
from .partial import LeftOut

if TYPE_CHECKING:
    from typing import Never

__all__ = ["CommittedStore"]

# Coordinates are read when a run is opened: what they decode to is bounded by what they weigh.
COORDINATE_BYTES = 256 * 2**20
MOST_SHRUNK = 512


class CommittedStore(Store):
    """The Zarr group of one run, as far as it is committed.

    Zarr reads a missing chunk as the fill value, silently. Here a chunk that was committed and
    is missing, short or damaged raises CorruptError with its key, and a chunk that was not
    committed reads as absent even where its object lies in the storage already.

    Chunks are checked and decoded here, so that no decoder of Zarr meets bytes that anybody may
    have written: Zarr sees arrays without compression.

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
    identity
        What tells this view from any other (plan, commits), for Dask's names.
    left_out
        What a partial copy lacks.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        folder: str,
        metadata: Mapping[str, bytes],
        sizes: Mapping[str, int | None],
        decoded_limits: Mapping[str, int],
        identity: str,
        left_out: LeftOut | None = None,
    ) -> None:
        super().__init__(read_only=True)
        self._backend = backend
        self._folder = folder
        self._sizes = dict(sizes)
        self._limits = dict(decoded_limits)
        self._forms: dict[str, _Form] = {}
        self._coordinates: dict[str, tuple[int, int]] = {}
        self._metadata = {key: self._decoded_form(key, data) for key, data in metadata.items()}
        self._identity = identity
        self._left_out = left_out

    def _decoded_form(self, key: str, data: bytes) -> bytes:
        """Return a metadata document that describes the arrays as they leave this view."""
        document = json.loads(data)
        inline = document.get("consolidated_metadata", {}).get("metadata", {})
        for name, array in inline.items() or [(key.rpartition("/")[0], document)]:
            if array.get("node_type") == "array":
                self._forms[name] = _form(array)
                array["codecs"] = array["codecs"][:1]
        return json.dumps(document).encode()

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
        data: Data | None = self._metadata.get(key)
        if data is None:
            if key not in self._sizes:
                return None
            if self._left_out is not None:
                self._left_out.refuse(key)
            data = await self._get_chunk(key)
        return prototype.buffer.from_bytes(_cut(data, byte_range))

    async def _get_chunk(self, key: str) -> Data:
        """Return a committed chunk, checked and decoded; raise CorruptError where it is not it."""
        size = self._sizes[key]
        name = key.partition("/")[0]
        form, limit = self._forms[name], self._limits[name]
        most = 2 * limit + 4096 if size is None else size
        if most > 2 * limit + 4096:
            raise self._damaged(key, f"was committed with {size} bytes for at most {limit}")
        data = await self._backend.get_async(f"{self._folder}/{key}", max_bytes=most)
        if data is None:
            raise self._damaged(key, "is missing")
        if size is not None and len(data) != size:
            raise self._damaged(key, f"has {len(data)} bytes, expected {size}")
        wrong = chunk_fault(
            data,
            codec=form.codec,
            item_size=form.item_size,
            n_bytes=limit,
            exactly=not form.is_text,
        )
        if wrong is None and form.is_coordinate:
            wrong = self._count(
                key, n_stored=len(data), n_decoded=decoded_size(data, codec=form.codec)
            )
        if wrong:
            raise self._damaged(key, wrong)
        try:
            plain = await asyncio.to_thread(unpack_chunk, data, codec=form.codec)
            if form.is_text:
                check_strings(plain, n_values=form.n_values)
        except CorruptError as err:
            raise self._damaged(key, str(err)) from err
        return plain

    def _count(self, key: str, *, n_stored: int, n_decoded: int) -> str | None:
        """Return what is wrong where the coordinates, all in memory, are a decompression bomb."""
        self._coordinates[key] = (n_stored, n_decoded)
        stored, decoded = (sum(column) for column in zip(*self._coordinates.values(), strict=True))
        if decoded <= COORDINATE_BYTES + MOST_SHRUNK * stored:
            return None
        return f"and the other coordinates would decode from {stored} to {decoded} bytes"

    def _damaged(self, key: str, wrong: str) -> CorruptError:
        url = self._backend.location.url
        return CorruptError(
            f"{self._folder}/{key} in {url} {wrong}; it was committed, so the store is "
            "damaged: verify the run and fetch or extract it again"
        )

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


@dataclass(frozen=True)
class _Form:
    """How the chunks of an array are stored."""

    codec: str
    item_size: int
    n_values: int
    is_text: bool
    is_coordinate: bool  # read into memory when the run is opened


def _form(array: Mapping[str, Any]) -> _Form:
    is_text = array["data_type"] == "string"
    return _Form(
        codec=BLOSC if any(codec["name"] == "blosc" for codec in array["codecs"]) else PLAIN,
        item_size=1 if is_text else np.dtype(array["data_type"]).itemsize,
        n_values=math.prod(array["chunk_grid"]["configuration"]["chunk_shape"]),
        is_text=is_text,
        is_coordinate=array["dimension_names"] in (["text"], ["layer"], ["token_layer"]),
    )


def _cut(data: Data, part: ByteRequest | None) -> Data:
    if isinstance(part, RangeByteRequest):
        return data[part.start : part.end]
    if isinstance(part, OffsetByteRequest):
        return data[part.offset :]
    if isinstance(part, SuffixByteRequest):
        return data[-part.suffix :] if part.suffix else b""
    return data
