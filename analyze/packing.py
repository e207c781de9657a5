"""Results of jobs on disk: plain arrays and JSON, nothing that runs when it is read."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..schemas import CorruptError, Record

__all__ = ["load_value", "save_value"]

TREE = "tree"
STRANGE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no names for them


def save_value(value: object, path: str | Path) -> None:
    """Write ``value`` as an .npz file; never half of one under its name.

    A value is made of numbers, strings, None, arrays, lists, tuples, dicts, dataclasses and
    records of the schemas.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    arrays: list[np.ndarray[Any, Any]] = []
    tree = json.dumps(_encode(value, arrays), allow_nan=False).encode()
    named: dict[str, Any] = {str(number): array for number, array in enumerate(arrays)}
    named[TREE] = np.frombuffer(tree, dtype=np.uint8)
    partial = target.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.savez(file, **named)
    partial.replace(target)


def load_value(path: str | Path, *, records: Sequence[type]) -> Any:  # noqa: ANN401
    """Return what :func:`save_value` wrote.

    Parameters
    ----------
    path
        The file.
    records
        The dataclasses and records that it may hold.

    Raises
    ------
    CorruptError
        If the file is not such a value, or holds other records.
    """
    known = {record.__name__: record for record in records}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _decode(json.loads(arrays[TREE].tobytes()), arrays, known)
    except (ValueError, KeyError, TypeError, OSError, EOFError) as err:
        msg = f"{Path(path).name} holds no result of a job ({err}); delete it and run again"
        raise CorruptError(msg) from err


def _encode(value: Any, arrays: list[np.ndarray[Any, Any]]) -> Any:  # noqa: ANN401
    """Return ``value`` as JSON, its arrays moved to ``arrays``."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            msg = f"an array of dtype {value.dtype} cannot be kept; expected numbers or strings"
            raise TypeError(msg)
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, list):
        return [_encode(item, arrays) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, arrays) for item in value]}
    if isinstance(value, Mapping):
        return {"items": [[_encode(k, arrays), _encode(v, arrays)] for k, v in value.items()]}
    if isinstance(value, Record):
        return {"record": type(value).__name__, "value": value.model_dump(mode="json")}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        of_fields = {name: _encode(field, arrays) for name, field in fields.items()}
        return {"dataclass": type(value).__name__, "fields": of_fields}
    msg = f"a {type(value).__name__} cannot be kept as the result of a job"
    raise TypeError(msg)


def _decode(value: Any, arrays: Mapping[str, Any], known: Mapping[str, type]) -> Any:  # noqa: ANN401
    """Return the value of a tree that :func:`_encode` made."""
    if isinstance(value, list):
        return [_decode(item, arrays, known) for item in value]
    if not isinstance(value, dict):
        return value
    if "float" in value:
        return STRANGE[value["float"]]
    if "array" in value:
        return arrays[str(value["array"])]
    if "tuple" in value:
        return tuple(_decode(item, arrays, known) for item in value["tuple"])
    if "items" in value:
        pairs = [[_decode(of, arrays, known) for of in item] for item in value["items"]]
        return {key: item for key, item in pairs}  # noqa: C416  # pairs are lists, not tuples
    if "record" in value:
        record = known[value["record"]]
        if not issubclass(record, Record):
            msg = f"{record.__name__} is no record"
            raise TypeError(msg)
        return record.model_validate(value["value"])
    fields = value["fields"]
    return known[value["dataclass"]](
        **{name: _decode(of, arrays, known) for name, of in fields.items()}
    )
