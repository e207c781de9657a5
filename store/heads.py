"""Arrays whose heads stand one after another, taken apart."""

from __future__ import annotations

import xarray as xr

from ..schemas import InvalidInputError

__all__ = ["split_heads"]


def split_heads(array: xr.DataArray) -> xr.DataArray:
    """Return ``array`` (..., head_hidden) with dims (..., head, head_dim); lazily, a view.

    Raises
    ------
    InvalidInputError
        If it is no array of heads, such as ``attn_heads_mean_response`` of an opened run.
    """
    head_dim = array.attrs.get("head_dim")
    if "head_hidden" not in array.dims or not isinstance(head_dim, int):
        msg = f"array {array.name!r} with dims {array.dims} holds no heads; expected attn_heads_..."
        raise InvalidInputError(msg)
    windows = array.coarsen(head_hidden=head_dim)
    return windows.construct(head_hidden=("head", "head_dim"), keep_attrs=True)
