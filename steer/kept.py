"""Rows of a table that are committed part by part, so that a run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..schemas import CorruptError, InvalidInputError, StorageError, digest_json

__all__ = ["KeptRows"]

_MADE_WITH = "made-with.json"


class KeptRows:
    """A folder of rows, each known by the values of its ``key`` columns.

    A part is a Parquet file; it counts once the commit record of its keys, with the size and the
    digest of its bytes, is there, and a record is never written over.
    What was killed between the two is made again. ``made_with`` is what all rows have in common:
    a folder of something else is refused.

    Raises
    ------
    InvalidInputError
        If the folder holds rows that were made with something else.
    StorageError
        If the folder cannot be written.
    """

    def __init__(self, folder: Path, *, key: Sequence[str], made_with: Mapping[str, Any]) -> None:
        self.folder, self.key = folder, list(key)
        path = folder / _MADE_WITH
        try:
            (folder / "commits").mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _create(path, json.dumps(made_with, indent=2).encode())
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as err:
            msg = f"{folder}: the rows cannot be kept: {err.strerror or err}"
            raise StorageError(msg) from err
        if digest_json(found) != digest_json(json.loads(json.dumps(made_with))):
            unlike = sorted(name for name in made_with if found.get(name) != made_with[name])
            msg = (
                f"{folder} holds rows made with another {', '.join(unlike) or 'setting'}; "
                "name another folder, or the same settings"
            )
            raise InvalidInputError(msg)

    def read(self) -> pd.DataFrame:
        """Return the rows that are committed, each key once, in the order of the keys.

        An empty table with the key columns where there is none yet.

        Raises
        ------
        CorruptError
            If the bytes of a part are not those that were committed.
        """
        parts = [self._read(path) for path in sorted((self.folder / "commits").glob("*.json"))]
        if not parts:
            return pd.DataFrame(columns=self.key)
        whole = pd.concat(parts, ignore_index=True)
        return whole.drop_duplicates(self.key).sort_values(self.key, ignore_index=True)

    def _read(self, record: Path) -> pd.DataFrame:
        told = json.loads(record.read_text(encoding="utf-8"))
        part = self.folder / Path(told["part"]).name
        data = part.read_bytes() if part.exists() else b""
        if hashlib.sha256(data).hexdigest() != told["sha256"]:
            msg = (
                f"{part} is not what was committed: {len(data)} bytes of {told['n_bytes']}, or "
                f"other ones; delete it and {record} to have its rows made again"
            )
            raise CorruptError(msg)
        return pd.read_parquet(part)

    def missing(self, wanted: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of ``wanted`` whose key is not committed, in their order."""
        done = set(self.read()[self.key].itertuples(index=False, name=None))
        todo = [key not in done for key in wanted[self.key].itertuples(index=False, name=None)]
        return wanted[np.array(todo, dtype=bool)]

    def commit(self, rows: pd.DataFrame) -> None:
        """Add rows: all of them, or none where the process dies on the way.

        Raises
        ------
        StorageError
            If they cannot be written.
        """
        keys = sorted(map(list, rows[self.key].astype(str).itertuples(index=False, name=None)))
        name = digest_json(keys).rpartition(":")[2][:32]
        record = self.folder / "commits" / f"{name}.json"
        if record.exists():
            return
        data = rows.to_parquet(index=False)
        digest = hashlib.sha256(data).hexdigest()
        # Two processes may make the same rows with other bits: each has a part, one is recorded.
        part = f"{name}-{digest[:16]}.parquet"
        told = {"part": part, "sha256": digest, "n_bytes": len(data), "n_rows": len(rows)}
        try:
            # A part without a record is left over from a process that died: nobody reads it.
            _replace(self.folder / part, data)
            _create(record, json.dumps(told).encode())
        except OSError as err:
            msg = f"{self.folder}: the rows cannot be kept: {err.strerror or err}"
            raise StorageError(msg) from err


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(path)


def _create(path: Path, data: bytes) -> None:
    """Write a file that appears whole, unless another process was first."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(data)
    try:
        path.hardlink_to(fresh)  # create-only, unlike a rename
    except FileExistsError:
        pass
    finally:
        fresh.unlink(missing_ok=True)
