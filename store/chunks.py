"""Chunk bytes of anybody's store: checked before a decoder or an allocation sees them."""

from __future__ import annotations

import struct

from numcodecs import blosc

from ..schemas import CorruptError
from .backend import Data
from .codec import PLAIN, crc_matches

__all__ = ["check_strings", "chunk_fault", "unpack_chunk"]

_CRC_BYTES = 4
_HEADER_BYTES = 16
_FORMAT, _ZSTD_FORMAT, _ZSTD = 2, 1, 4
_STORED_AS_IS = 0x02


def chunk_fault(
    data: Data, *, codec: str, item_size: int, n_bytes: int, exactly: bool
) -> str | None:
    """Return what is wrong with a stored chunk before it is decoded, None where nothing is.

    A decoder believes blosc's header: how much to allocate, and where its blocks lie. So the
    header is held against what the metadata promise and against the bytes that are there
    (https://github.com/Blosc/c-blosc/blob/main/README_CHUNK_FORMAT.rst).

    Parameters
    ----------
    data
        The stored object, its crc32c included.
    codec
        ``BLOSC`` or ``PLAIN``.
    item_size
        Bytes per value; 1 for text.
    n_bytes
        What the chunk decodes to, or with ``exactly=False`` at most decodes to.
    exactly
        Whether the decoded size is known to the byte, as it is for all but text.
    """
    if not crc_matches(data):
        return "does not match its checksum"
    n_packed = len(data) - _CRC_BYTES
    if codec != PLAIN and n_packed < _HEADER_BYTES:
        return f"has {n_packed} bytes, too few for blosc's header"
    n_decoded = n_packed
    if codec != PLAIN:
        fmt, zfmt, flags, size, n_decoded, n_block, n_said = struct.unpack_from("<BBBBIII", data)
        as_is = bool(flags & _STORED_AS_IS)
        if (fmt, zfmt, flags >> 5) != (_FORMAT, _ZSTD_FORMAT, _ZSTD) or size != item_size:
            return f"is not blosc with zstd of {item_size}-byte values"
        if n_said != n_packed or (as_is and n_packed != n_decoded + _HEADER_BYTES):
            return f"has {n_packed} bytes, its blosc header says {n_said}"
        if n_decoded and not 0 < n_block <= max(n_decoded, item_size):
            return f"has blosc blocks of {n_block} bytes"
    if n_decoded > n_bytes or (exactly and n_decoded != n_bytes):
        return (
            f"would decode to {n_decoded} bytes, expected {'' if exactly else 'at most '}{n_bytes}"
        )
    return None


def unpack_chunk(data: Data, *, codec: str) -> Data:
    """Return the decoded bytes of a chunk in which ``chunk_fault`` found nothing."""
    body = memoryview(data)[:-_CRC_BYTES]  # no copy
    if codec == PLAIN:
        return body
    try:
        return bytes(blosc.decompress(body))
    except (RuntimeError, ValueError) as err:
        msg = f"cannot be decoded: {err}"
        raise CorruptError(msg) from err


def check_strings(plain: Data, *, n_values: int) -> list[str]:
    """Return the ``n_values`` strings of decoded vlen-utf8; raise CorruptError if it is not that.

    vlen-utf8 is the number of strings, then each with its length before it, all uint32.
    """
    plain = bytes(plain)
    wrong, at = None, 4
    values: list[str] = []
    (count,) = struct.unpack_from("<I", plain) if len(plain) >= 4 else (-1,)
    if count != n_values:
        wrong = f"{count} strings, expected {n_values}"
    while wrong is None and len(values) < n_values:
        (length,) = struct.unpack_from("<I", plain, at) if at + 4 <= len(plain) else (2**32,)
        try:
            values.append(plain[at + 4 : at + 4 + length].decode())
        except UnicodeDecodeError:
            wrong = "a string that is not UTF-8"
        at += 4 + length
        if at > len(plain):
            wrong = "a string that is cut off"
    if wrong is None and at != len(plain):
        wrong = "bytes after its last string"
    if wrong:
        msg = f"holds {wrong}"
        raise CorruptError(msg)
    return values
