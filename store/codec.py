"""Chunk bytes: what a Zarr v3 reader with the codecs of ``layout`` expects, always the same.

Chunks are encoded here rather than through zarr so that a block is nothing but a list of bytes
that can be hashed, uploaded in any order and retried. Tests hold the bytes against zarr's own.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc, blosc

from ..schemas import CorruptError

__all__ = [
    "BLOSC",
    "PLAIN",
    "codec_metadata",
    "crc_matches",
    "data_type",
    "decode_chunk",
    "decoded_size",
    "encode_chunk",
]

# With threads of its own, blosc orders a chunk's inner blocks by which one was ready first: equal
# values would give other bytes each time. Chunks are encoded in parallel, so nothing is lost.
blosc.use_threads = False

_CRC_BYTES = 4
_BLOSC_HEADER_BYTES = 16
BLOSC = "blosc-zstd-1-shuffle+crc32c"  # the names of the codecs in a plan
PLAIN = "crc32c"
LEVEL = 1  # zstd 1 behind a byte shuffle: bf16 values in float32 shrink to their 16 bits


def data_type(array: np.ndarray[Any, Any]) -> str:
    """Return the Zarr v3 data type of ``array``: ``string`` for any kind of text."""
    return "string" if _is_text(array) else array.dtype.name


def codec_metadata(dtype: str, *, codec: str = BLOSC) -> list[dict[str, Any]]:
    """Return the codec pipeline of arrays of the Zarr data type ``dtype``.

    ``PLAIN`` is uncompressed: for values that do not shrink, or a disk that outruns the codec.

    Text is ``vlen-utf8`` (registered at https://github.com/zarr-developers/zarr-extensions):
    both zarr lines read it without a warning, fixed-width text (``<U``) makes both warn.
    """
    first: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    if dtype == "string":
        first = {"name": "vlen-utf8", "configuration": {}}
    elif _item_size(dtype) == 1:
        first = {"name": "bytes"}
    if codec == PLAIN:
        return [first, {"name": "crc32c"}]
    size = _item_size(dtype)
    blosc = {
        "typesize": size,
        "cname": "zstd",
        "clevel": LEVEL,
        "shuffle": "shuffle" if size > 1 else "noshuffle",
        "blocksize": 0,
    }
    return [first, {"name": "blosc", "configuration": blosc}, {"name": "crc32c"}]


def encode_chunk(array: np.ndarray[Any, Any], *, codec: str = BLOSC) -> memoryview:
    """Return the stored bytes of one chunk, read-only: blosc(zstd, 1, shuffle), then its crc32c.

    Parameters
    ----------
    array
        The values of the whole chunk (padded to its full shape at the edge of the array).
    codec
        ``BLOSC``, or ``PLAIN`` for the bytes as they are, then their crc32c.
    """
    if _is_text(array):
        text = _encode_text([str(v) for v in array.ravel()])
        values, size = np.frombuffer(text, np.uint8), 1
    else:
        values, size = array.astype(array.dtype.newbyteorder("<"), copy=False), array.dtype.itemsize
    if codec == PLAIN:
        return _with_crc(values)
    plain = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return _with_crc(np.frombuffer(_blosc(size).encode(plain), np.uint8))


def _with_crc(values: np.ndarray[Any, Any]) -> memoryview:
    """Return the bytes of ``values`` and their crc32c, gathered in one pass.

    An array rather than bytes: numpy asks the kernel for huge pages, and the page faults of
    another copy of some megabytes would cost more than the copy.
    """
    stored = np.empty(values.nbytes + _CRC_BYTES, dtype=np.uint8)
    body = stored[:-_CRC_BYTES]
    body.view(values.dtype).reshape(values.shape)[...] = values
    stored[-_CRC_BYTES:].view("<u4")[...] = google_crc32c.value(body)
    stored.flags.writeable = False
    return stored.data


def decode_chunk(
    data: bytes | memoryview, *, dtype: str, max_bytes: int, codec: str = BLOSC
) -> np.ndarray[Any, Any]:
    """Return the values of a chunk, flat; text as an object array.

    Raises
    ------
    CorruptError
        If the checksum is wrong or the chunk would take more than ``max_bytes``.
    """
    if not crc_matches(data):
        msg = f"the checksum of a chunk of {len(data)} bytes does not match its bytes"
        raise CorruptError(msg)
    if decoded_size(data, codec=codec) > max_bytes:
        size = decoded_size(data, codec=codec)
        msg = f"a chunk claims {size} bytes, expected at most {max_bytes}"
        raise CorruptError(msg)
    plain: bytes | memoryview = memoryview(data)[:-_CRC_BYTES]
    if codec == BLOSC:
        plain = bytes(_blosc(_item_size(dtype)).decode(plain))
    if dtype == "string":
        return np.array(_decode_text(bytes(plain)), dtype=object)
    return np.frombuffer(plain, dtype=np.dtype(dtype).newbyteorder("<"))


def crc_matches(data: bytes | memoryview) -> bool:
    """Return whether the last four bytes are the crc32c of the others."""
    if len(data) < _CRC_BYTES:
        return False
    (stored,) = struct.unpack_from("<I", data, len(data) - _CRC_BYTES)
    body = np.frombuffer(data, np.uint8, count=len(data) - _CRC_BYTES)  # a slice would be a copy
    return bool(google_crc32c.value(body) == stored)


def decoded_size(data: bytes | memoryview, *, codec: str = BLOSC) -> int:
    """Return how many bytes a chunk says it decodes to (0 where it is too short)."""
    if codec == PLAIN:
        return max(0, len(data) - _CRC_BYTES)
    if len(data) < _BLOSC_HEADER_BYTES:
        return 0
    return int(struct.unpack_from("<I", data, 4)[0])


@functools.cache
def _blosc(size: int) -> Any:  # numcodecs is untyped  # noqa: ANN401
    shuffle = Blosc.SHUFFLE if size > 1 else Blosc.NOSHUFFLE
    return Blosc(cname="zstd", clevel=LEVEL, shuffle=shuffle, blocksize=0, typesize=size)


def _is_text(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind in "UOT"


def _item_size(dtype: str) -> int:
    return 1 if dtype == "string" else np.dtype(dtype).itemsize


def _encode_text(values: Sequence[str]) -> bytes:
    """Return vlen-utf8: the number of strings, then each with its length, all uint32."""
    parts = [struct.pack("<I", len(values))]
    for value in values:
        raw = value.encode()
        parts += [struct.pack("<I", len(raw)), raw]
    return b"".join(parts)


def _decode_text(data: bytes) -> list[str]:
    try:
        (count,) = struct.unpack_from("<I", data, 0)
        values, at = [], 4
        for _ in range(count):
            (length,) = struct.unpack_from("<I", data, at)
            values.append(data[at + 4 : at + 4 + length].decode())
            at += 4 + length
    except (struct.error, UnicodeDecodeError) as err:
        msg = "a chunk of strings is not vlen-utf8"
        raise CorruptError(msg) from err
    return values
