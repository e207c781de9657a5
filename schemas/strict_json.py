"""JSON of a store as it may come from anybody: bounded, and with one meaning only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn

from .errors import InvalidInputError

__all__ = ["load_json"]

MAX_DEPTH = 32
MAX_DIGITS = 20  # of an integer: what 64 bits need
# A value costs up to 200 bytes of memory, however few bytes its text has; an object entry of a
# seal or a commit record has one structural character per 20 bytes.
_SPARE_MARKS = 100_000
_BYTES_PER_MARK = 16


def load_json(data: bytes, *, where: str = "") -> Any:  # any JSON value  # noqa: ANN401
    """Return the value of JSON text that means the same to every parser.

    Raises
    ------
    InvalidInputError
        If it is not UTF-8 or not JSON, names a key of an object twice, holds NaN, Infinity, an
        integer of more than 20 digits or half a surrogate pair, nests deeper than 32, or has
        more values than text of its size can honestly have.
    """
    prefix = f"{where} is" if where else "this is"
    marks = sum(data.count(mark) for mark in (b",", b":", b"[", b"{"))
    if marks > _SPARE_MARKS + len(data) // _BYTES_PER_MARK:
        msg = f"{prefix} not a record: {marks} values in {len(data)} bytes"
        raise InvalidInputError(msg)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_distinct,
            parse_constant=_refuse,
            parse_int=_integer,
            parse_float=_number,
        )
    except (ValueError, RecursionError) as err:
        msg = f"{prefix} not JSON: {str(err)[:200]}"
        raise InvalidInputError(msg) from err
    _check_depth(value, prefix=prefix)
    if b"\\u" in data:
        _check_text(value, prefix=prefix)
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        msg = "a key stands twice in one object"
        raise ValueError(msg)
    return found


def _refuse(name: str) -> NoReturn:
    msg = f"{name} is not a JSON number"
    raise ValueError(msg)


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        msg = f"an integer of {len(text)} digits"
        raise ValueError(msg)
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        msg = f"{text[:40]} is not a finite number"
        raise ValueError(msg)
    return value


def _check_depth(value: object, *, prefix: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [part for item in level for part in _parts(item) if isinstance(part, (dict, list))]
        if not level:
            return
    msg = f"{prefix} not a record: it nests deeper than {MAX_DEPTH}"
    raise InvalidInputError(msg)


def _check_text(value: object, *, prefix: str) -> None:
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        keys = item.keys() if isinstance(item, dict) else ()
        for text in (*keys, item):
            if isinstance(text, str) and not _is_unicode(text):
                msg = f"{prefix} not JSON: half a surrogate pair"
                raise InvalidInputError(msg)
        stack.extend(_parts(item))


def _parts(item: object) -> Iterable[Any]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list) else ()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
