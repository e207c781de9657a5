"""Files as they come from anybody: one JSON object per line, or TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from ..schemas import InvalidInputError, NotFoundError

__all__ = ["others", "read_bytes", "read_lines", "read_toml", "write_lines"]

T = TypeVar("T")


def read_bytes(path: str | Path, *, noun: str) -> bytes:
    """Return the bytes of a file of ``noun``s; raise where there is none or it cannot be read."""
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError as err:
        msg = f"{path}: no such file; expected a file of {noun}s"
        raise NotFoundError(msg) from err
    except OSError as err:
        msg = f"{path}: cannot be read ({err.strerror}); expected a file of {noun}s"
        raise InvalidInputError(msg) from err


def read_toml(path: str | Path, *, noun: str) -> dict[str, Any]:
    """Return the values of a TOML file of ``noun``s; raise InvalidInputError if it is none."""
    try:
        return tomllib.loads(read_bytes(path, noun=noun).decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        msg = f"{path}: not valid TOML ({err})"
        raise InvalidInputError(msg) from err


def read_lines(
    path: str | Path, parse: Callable[[Any, str], T], *, noun: str
) -> tuple[list[T], list[int]]:
    """Return what ``parse`` makes of the JSON of each line, and the numbers of those lines.

    Parameters
    ----------
    path
        A UTF-8 file with one JSON object per line; blank lines are ignored.
    parse
        Called with the JSON value and ``FILE:LINE``; raises InvalidInputError.
    noun
        What a line holds, for the messages.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InvalidInputError
        If a line is broken: file, line number and reason, and how many other lines are bad.
    """
    found: list[T] = []
    lines: list[int] = []
    faults: list[str] = []
    for number, line in enumerate(read_bytes(path, noun=noun).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            where = f"{path}:{number}"
            found.append(parse(_load(line, where=where), where))
            lines.append(number)
        except InvalidInputError as err:
            faults.append(str(err))
    if faults:
        raise InvalidInputError(faults[0] + others(len(faults) - 1, "line", "also bad"))
    if not found:
        msg = f"{path}: holds no {noun}; expected one JSON object per line"
        raise InvalidInputError(msg)
    return found, lines


def _load(line: bytes, *, where: str) -> object:
    try:
        value: object = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as err:
        msg = f"{where}: not UTF-8 (byte {err.start + 1}: {err.reason})"
        raise InvalidInputError(msg) from err
    except (ValueError, RecursionError) as err:
        msg = f"{where}: not valid JSON ({err})"
        raise InvalidInputError(msg) from err
    return value


def write_lines(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Write one compact JSON object per line, UTF-8."""
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def others(n: int, noun: str, state: str) -> str:
    """Return ``" (and 3 other lines are also bad)"``, or an empty string for none."""
    if n <= 0:
        return ""
    return (
        f" (and {n} other {noun} is {state})" if n == 1 else f" (and {n} other {noun}s are {state})"
    )
