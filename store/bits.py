"""16-bit floats stored as their bit patterns: half the memory of float32, and exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..schemas import CorruptError, InvalidInputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["fill_value", "from_bits", "stored_dtype", "to_bits", "widen_bits"]

_NAN = {"bfloat16-bits": 0x7FC0, "float16-bits": 0x7E00}


def stored_dtype(dtype: str) -> str:
    """Return the Zarr data type that values of an array's ``dtype`` are stored as."""
    return "uint16" if dtype in _NAN else dtype


def fill_value(dtype: str) -> float | int:
    """Return NaN, as it is stored: what is missing must never read as data."""
    return _NAN.get(dtype, np.nan)


def to_bits(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """Return float32 values as the bit patterns of ``dtype``, uint16.

    Raises
    ------
    InvalidInputError
        If a value is not one of the 16-bit type: nothing is ever rounded.
    """
    if dtype == "bfloat16-bits":
        wide = np.ascontiguousarray(values).view(np.uint32)
        bits = (wide >> 16).astype(np.uint16)
        exact = not (wide & 0xFFFF).any()
    else:
        with np.errstate(over="ignore"):  # an overflow is not exact, and is said below
            narrow = values.astype(np.float16)
        bits = narrow.view(np.uint16)
        exact = bool(np.array_equal(narrow.astype(np.float32), values, equal_nan=True))
    if not exact:
        msg = (
            f"values are not exactly {dtype.removesuffix('-bits')}; store this array as float32, "
            "or run the model in that type"
        )
        raise InvalidInputError(msg)
    return bits


def from_bits(bits: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """Return the float32 values of bit patterns (uint16) of ``dtype``."""
    if dtype == "bfloat16-bits":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def widen_bits(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with every array of bit patterns as lazy float32.

    Raises
    ------
    CorruptError
        If an array says that its bits are of a type that this version does not know.
    """
    import xarray as xr

    wide = {}
    for name, array in dataset.data_vars.items():
        kind = array.attrs.get("bits_of")
        if kind is None:
            continue
        dtype = f"{kind}-bits"
        if dtype not in _NAN or array.dtype != np.uint16:
            msg = f"array {name!r} holds bits of {kind!r} as {array.dtype}, which is not read"
            raise CorruptError(msg)
        lazy = array if array.chunks else array.chunk()
        wide[name] = xr.apply_ufunc(
            from_bits,
            lazy,
            kwargs={"dtype": dtype},
            dask="parallelized",
            output_dtypes=[np.float32],
            keep_attrs=True,
        )
    return dataset.assign(wide)
