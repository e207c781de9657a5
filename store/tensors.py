"""Arrays in the files that people have: .npy and .safetensors, mapped, never unpickled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..schemas import InvalidInputError, MissingDependencyError, NotFoundError
from .bits import from_bits

__all__ = ["Reader", "Tensor", "file_digest", "find_files", "natural_key", "read_tensors"]

# Returns (name, values, type of the values) of every array of a file.
Reader: TypeAlias = Callable[[Path], Sequence[tuple[str, np.ndarray[Any, Any], str]]]

SUFFIXES = (".npy", ".safetensors", ".pt", ".pth")
_HEADER_BYTES = 100 * 2**20  # the limit of the format itself
_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Tensor:
    """One array of a file; bfloat16 is held as its bit patterns."""

    name: str
    file: Path
    dtype: str
    values: np.ndarray[Any, Any] = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return tuple(self.values.shape)

    def read(self, index: Any = ...) -> np.ndarray[Any, Any]:  # noqa: ANN401
        """Return the values at ``index`` as float32, exactly.

        Raises
        ------
        InvalidInputError
            If a float64 value is not one of float32: nothing is rounded.
        """
        part = np.asarray(self.values[index])
        if self.dtype == "bfloat16":
            return from_bits(part, "bfloat16-bits")
        with np.errstate(over="ignore"):  # an overflow is not exact, and is said below
            wide = part.astype(np.float32)
        if self.dtype == "float64" and not np.array_equal(wide, part, equal_nan=True):
            msg = (
                f"{self.file}: {self.name} is float64 with values that float32 cannot hold; "
                "round them yourself, or save what the model computed"
            )
            raise InvalidInputError(msg)
        return wide


def find_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the files of ``paths`` (folders: what lies right in them), in natural order.

    Raises
    ------
    NotFoundError
        If a path does not exist, or there is no file of activations.
    InvalidInputError
        If a file is of another kind.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file()]
            files += sorted(inside, key=lambda p: natural_key(p.name))
        elif not path.is_file():
            msg = f"{path}: no such file or folder"
            raise NotFoundError(msg)
        elif path.suffix not in SUFFIXES:
            msg = f"{path}: expected one of {', '.join(SUFFIXES)}"
            raise InvalidInputError(msg)
        else:
            files.append(path)
    if not files:
        shown = ", ".join(map(str, paths))
        msg = f"{shown}: no activations here; expected files {', '.join(SUFFIXES)}"
        raise NotFoundError(msg)
    return files


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which ``part_10`` comes after ``part_9``."""
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name)]


def read_tensors(files: Sequence[Path], *, readers: Mapping[str, Reader]) -> list[Tensor]:
    """Return every array of ``files``; nothing but headers is read of mapped ones.

    A file of one array names it by the file's own name, others by the names inside.

    Raises
    ------
    InvalidInputError
        If a file holds pickled objects, is damaged, or holds what is no array of floats.
    MissingDependencyError
        If there is no reader for a kind of file.
    """
    known: dict[str, Reader] = {".npy": _read_npy, ".safetensors": _read_safetensors, **readers}
    tensors = []
    for file in files:
        if file.suffix not in known:
            msg = (
                f"{file}: reading {file.suffix} needs torch; pip install 'actlake[extract]', or "
                "save it as .safetensors or .npy"
            )
            raise MissingDependencyError(msg)
        found = known[file.suffix](file)
        for name, values, dtype in found:
            own = file.name.removesuffix(file.suffix) if len(found) == 1 else name
            if dtype not in _FLOATS:
                msg = f"{file}: {own} is {dtype}; expected one of {', '.join(_FLOATS)}"
                raise InvalidInputError(msg)
            tensors.append(Tensor(own, file, dtype, values))
        if not found:
            msg = f"{file}: holds no array"
            raise InvalidInputError(msg)
    return tensors


def file_digest(files: Sequence[Path]) -> str:
    """Return ``sha256:<hex>`` over the bytes of ``files``, in their order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            inner = hashlib.file_digest(stream, "sha256")
        digest.update(inner.digest())
    return "sha256:" + digest.hexdigest()


def _read_npy(file: Path) -> list[tuple[str, np.ndarray[Any, Any], str]]:
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as err:
        reason = "it holds Python objects" if "object" in str(err).lower() else str(err)
        msg = f"{file}: not a plain .npy file ({reason}); pickles are never loaded"
        raise InvalidInputError(msg) from err
    return [(file.stem, values, values.dtype.name)]


def _read_safetensors(file: Path) -> list[tuple[str, np.ndarray[Any, Any], str]]:
    """Return the arrays of a safetensors file, mapped.

    The format: https://huggingface.co/docs/safetensors/index#format
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        n_header = int.from_bytes(stream.read(8), "little")
        header = stream.read(n_header) if n_header <= min(_HEADER_BYTES, size - 8) else b""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        return [_map_entry(file, name, entry, 8 + n_header) for name, entry in entries.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        msg = f"{file}: not a safetensors file, or a damaged one ({err})"
        raise InvalidInputError(msg) from err


def _map_entry(
    file: Path, name: str, entry: Mapping[str, Any], base: int
) -> tuple[str, np.ndarray[Any, Any], str]:
    kind, shape = entry["dtype"], tuple(int(n) for n in entry["shape"])
    start, stop = (int(n) for n in entry["data_offsets"])
    if kind not in _SAFETENSORS:
        return name, np.empty(shape if np.prod(shape) == 0 else (0,), np.uint8), str(kind)
    dtype = np.dtype(_SAFETENSORS[kind])
    n_bytes = dtype.itemsize
    for n in shape:  # in Python's integers: a forged shape must not overflow
        n_bytes *= n
    if min(shape, default=1) < 1 or start < 0 or stop - start != n_bytes:
        msg = f"{name} has {stop - start} bytes, its shape {shape} needs {n_bytes}"
        raise ValueError(msg)
    if base + stop > file.stat().st_size:
        msg = f"{name} ends after the end of the file"
        raise ValueError(msg)
    values = np.memmap(file, dtype=dtype, mode="r", offset=base + start, shape=shape)
    return name, values, "bfloat16" if kind == "BF16" else dtype.name
