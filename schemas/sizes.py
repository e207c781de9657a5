"""Sizes as people write them: 16MiB, 1 GB."""

from __future__ import annotations

import re

from .errors import InvalidInputError

__all__ = ["parse_size"]

_UNITS = {
    "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*$")


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` names; a unit is needed, so that rows are never bytes.

    Raises
    ------
    InvalidInputError
        If it is no positive number with a unit.
    """
    match = _SIZE.match(text)
    n_bytes = int(float(match[1]) * _UNITS.get(match[2].lower(), 0)) if match else 0
    if n_bytes < 1:
        msg = f"{text!r} is not a size; expected a number and a unit, such as 16MiB or 500kB"
        raise InvalidInputError(msg)
    return n_bytes
