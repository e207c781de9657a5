"""Tables that grow in a folder, part by part: each part appears whole or not at all."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..schemas import InvalidInputError, StorageError, digest_json

__all__ = ["claim_folder", "commit_part", "read_parts", "replace_file"]


def claim_folder(folder: Path, key: Mapping[str, Any], *, file: str, noun: str) -> None:
    """Write what a folder's parts are made with, or check that it is the same.

    Raises
    ------
    InvalidInputError
        If the folder was made with something else.
    StorageError
        If it cannot be written.
    """
    path = folder / file
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if digest_json(found) != digest_json(dict(key)):
            unlike = sorted(name for name in key if found.get(name) != key[name])
            msg = (
                f"{folder} holds {noun} made with another {', '.join(unlike)}; "
                "name another folder, or the same settings"
            )
            raise InvalidInputError(msg)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(key, indent=2).encode())
    except OSError as err:
        msg = f"{folder}: the {noun} cannot be written: {err.strerror or err}"
        raise StorageError(msg) from err


def commit_part(part: pd.DataFrame, folder: Path, *, noun: str) -> None:
    """Write a part of a table so that it appears whole or not at all.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    try:
        replace_file(folder / f"part-{uuid.uuid4().hex}.parquet", part.to_parquet(index=False))
    except OSError as err:
        msg = f"{folder}: the {noun} cannot be written: {err.strerror or err}"
        raise StorageError(msg) from err


def replace_file(path: Path, data: bytes) -> None:
    """Write a file under another name and give it its own when it is whole."""
    fresh = path.with_name(f".{path.name}.partial")
    fresh.write_bytes(data)
    fresh.replace(path)


def read_parts(folder: Path, key: Sequence[str]) -> pd.DataFrame:
    """Return the rows of all parts, each key once, in the order of the keys.

    An empty table with the key's columns where there is no part yet.
    """
    files = sorted(folder.glob("part-*.parquet"))
    if not files:
        return pd.DataFrame(columns=list(key))
    whole = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    # Two processes may have made the same row: what it says is the same.
    return whole.drop_duplicates(list(key)).sort_values(list(key), ignore_index=True)
