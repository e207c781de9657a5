"""Rows of a table that are committed part by part, so that a run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..schemas import CorruptError, InvalidInputError, StorageError, digest_json
from ..store.local import LocalBackend
from ..store.location import parse_location

__all__ = ["KeptRows", "read_kept", "write_file"]

_MADE_WITH = "made-with.json"


class KeptRows:
    """A folder of rows, each known by the values of its ``key`` columns.

    A part is a Parquet file; it counts once the commit record of its keys, with the size and the
    digest of its bytes, is there, and a record is never written over.
    What was killed between the two is made again. ``made_with`` is what all rows have in common:
    a folder of something else is refused.

    Parameters
    ----------
    noun
        What messages call the rows.
    read_only
        Whether the folder is only asked what it holds: nothing is made where it is not there.

    Raises
    ------
    InvalidInputError
        If the folder holds rows that were made with something else.
    StorageError
        If the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        key: Sequence[str],
        made_with: Mapping[str, Any],
        noun: str = "rows",
        read_only: bool = False,
    ) -> None:
        self.folder, self.key, self.noun = folder, list(key), noun
        wanted = json.loads(json.dumps(made_with))
        path = folder / _MADE_WITH
        if not read_only and not path.exists():
            self._create(_MADE_WITH, json.dumps(wanted, indent=2).encode())
        elif not path.exists():
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        if digest_json(found) != digest_json(wanted):
            unlike = sorted(name for name in wanted if found.get(name) != wanted[name])
            msg = (
                f"{folder} holds {noun} made with another {', '.join(unlike) or 'setting'}; "
                "name another folder, or the same settings"
            )
            raise InvalidInputError(msg)

    def read(self) -> pd.DataFrame:
        """Return the rows that are committed; see :func:`read_kept`."""
        return read_kept(self.folder, self.key)

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
        record = f"commits/{name}.json"
        if (self.folder / record).exists():
            return
        data = rows.to_parquet(index=False)
        digest = hashlib.sha256(data).hexdigest()
        # Two processes may make the same rows with other bits: each has a part, one is recorded.
        part = f"part-{name}-{digest[:16]}.parquet"
        told = {"part": part, "sha256": digest, "n_bytes": len(data), "n_rows": len(rows)}
        # A part without a record is left over from a process that died: nobody reads it.
        self._create(part, data)
        self._create(record, json.dumps(told).encode())

    def _create(self, name: str, data: bytes) -> None:
        """Write a file that appears whole, unless another process was first."""
        files = LocalBackend(parse_location(self.folder))
        try:
            try:
                files.create(name, data)
            except NotImplementedError:  # no hard links: of two that write at once the last stays
                files.put(name, data)
        except StorageError as err:
            msg = f"{self.folder}: the {self.noun} cannot be kept: {err}"
            raise type(err)(msg) from err


def read_kept(folder: Path, key: Sequence[str]) -> pd.DataFrame:
    """Return the rows that a folder holds, each key once, in the order of the keys.

    An empty table with the key columns where there is none yet.

    Raises
    ------
    CorruptError
        If the bytes of a part are not those that were committed.
    """
    parts = [_read_part(folder, path) for path in sorted((folder / "commits").glob("*.json"))]
    if not parts:
        return pd.DataFrame(columns=list(key))
    whole = pd.concat(parts, ignore_index=True)
    # Two processes may have made the same row, in parts of unlike rows: any is as good.
    return whole.drop_duplicates(list(key)).sort_values(list(key), ignore_index=True)


def _read_part(folder: Path, record: Path) -> pd.DataFrame:
    told = json.loads(record.read_text(encoding="utf-8"))
    part = folder / Path(told["part"]).name
    data = part.read_bytes() if part.exists() else b""
    if hashlib.sha256(data).hexdigest() != told["sha256"]:
        msg = (
            f"{part} is not what was committed: {len(data)} bytes of {told['n_bytes']}, or "
            f"other ones; delete it and {record} to have its rows made again"
        )
        raise CorruptError(msg)
    return pd.read_parquet(part)


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it appears whole or not at all; StorageError where it cannot be."""
    LocalBackend(parse_location(path.parent)).put(path.name, data)
