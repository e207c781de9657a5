"""The vectors that generated texts were steered along, kept beside the texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..schemas import CorruptError
from .kept import write_file

__all__ = ["digest_array", "keep_directions", "read_generated_directions"]


def digest_array(array: np.ndarray, dtype: str) -> str:
    """Return what an array is known by in tables: a digest of its values as ``dtype``."""
    return hashlib.sha256(np.ascontiguousarray(array, dtype=dtype).tobytes()).hexdigest()[:16]


def keep_directions(folder: Path, directions: Mapping[str, np.ndarray]) -> None:
    """Write each vector, once, as ``direction-DIGEST.json`` with the name it has in the table.

    Raises
    ------
    StorageError
        If one cannot be written.
    """
    for name, vector in directions.items():
        path = folder / f"direction-{digest_array(vector, '<f4')}.json"
        if path.exists():
            continue
        values = np.asarray(vector, dtype=np.float32).tolist()
        write_file(path, json.dumps({"name": name, "vector": values}).encode())


def read_generated_directions(folder: Path) -> dict[str, np.ndarray]:
    """Return the vectors (hidden,) of a folder of generated texts, by their digest.

    Raises
    ------
    CorruptError
        If a file does not hold the vector that its name says.
    """
    found = {}
    for path in sorted(folder.glob("direction-*.json")):
        digest = path.stem.removeprefix("direction-")
        try:
            vector = np.array(json.loads(path.read_text(encoding="utf-8"))["vector"], np.float32)
        except (OSError, ValueError, KeyError, TypeError) as err:
            msg = f"{path} is no direction ({err}); generate the texts' table again"
            raise CorruptError(msg) from err
        if digest_array(vector, "<f4") != digest:
            msg = f"{path} holds another vector than its name says; generate the table again"
            raise CorruptError(msg)
        found[digest] = vector
    return found
