"""Arrays in files that torch wrote, without running anything that they bring along."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..schemas import InvalidInputError

__all__ = ["read_torch"]

# What torch's restricted unpickler raises for bytes that are no such file.
_DAMAGES = (
    pickle.UnpicklingError, struct.error, ArithmeticError, AssertionError, AttributeError, EOFError,
    LookupError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def read_torch(file: Path) -> list[tuple[str, np.ndarray[Any, Any], str]]:
    """Return (name, values, type) of every tensor of a ``.pt`` file: a tensor, a list or a dict.

    A list is taken as one tensor per layer. bfloat16 comes as its bit patterns, uint16. The file
    is loaded with ``weights_only=True``: what is more than tensors in plain containers is refused.

    Raises
    ------
    InvalidInputError
        If the file holds anything else, or is damaged.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except _DAMAGES as err:
        msg = (
            f"{file}: not a file of plain tensors, or a damaged one; pickled objects are never "
            "loaded: save the tensors themselves, or .safetensors"
        )
        raise InvalidInputError(msg) from err
    if isinstance(found, torch.Tensor):
        found = {file.stem: found}
    elif isinstance(found, list | tuple):
        found = {f"layer_{i}": value for i, value in enumerate(found)}
    if not isinstance(found, dict):
        found = {}
    wrong = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if wrong or not found:
        what = f"{wrong[0]!r} is no tensor" if wrong else "it holds no tensor"
        msg = f"{file}: {what}; expected a tensor, or a dict or list of them"
        raise InvalidInputError(msg)
    return [(str(name), *_to_numpy(value)) for name, value in found.items()]


def _to_numpy(tensor: torch.Tensor) -> tuple[np.ndarray[Any, Any], str]:
    plain = tensor.detach().contiguous()
    if plain.is_sparse or plain.is_quantized:
        return np.empty(0, np.uint8), str(tensor.dtype).removeprefix("torch.")
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.int16).numpy().view(np.uint16), "bfloat16"
    return plain.numpy(), str(plain.dtype).removeprefix("torch.")
