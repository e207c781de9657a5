"""One dataset of the parts of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from ..schemas import CorruptError
from .parts import joined_digest

__all__ = ["join_parts"]


def join_parts(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the rows of all parts one after another, lazily.

    Of partial copies that differ, what all of them have: arrays and layers. Chunks stay what
    they are. ``token_offset`` and ``token_text`` count through.

    Raises
    ------
    CorruptError
        If a text stands in two parts.
    """
    if len(parts) == 1:
        return parts[0]
    parts = [_with_layers(part, parts) for part in parts]
    first = parts[0]
    texts = [len(part["text"]) for part in parts]
    coords: dict[str, xr.Variable] = {}
    arrays: dict[str, xr.Variable] = {}
    for name in [str(name) for name in first.variables if all(name in p.variables for p in parts)]:
        variables = [part.variables[name].to_base_variable() for part in parts]
        dim = next((d for d in ("text", "token") if d in first.variables[name].dims), None)
        if name == "token_offset":
            joined = _joined_offsets(variables)
        elif dim is None:
            joined = variables[0]
        else:
            if dim == "token":
                variables = [v if v.chunks or v._in_memory else v.chunk() for v in variables]
            if name == "token_text":
                starts = np.cumsum([0, *texts[:-1]]).astype(np.int32)
                variables = [v + n for v, n in zip(variables, starts, strict=True)]
            joined = xr.Variable.concat(variables, dim)  # type: ignore[no-untyped-call]
            joined.attrs = first.variables[name].attrs
        (coords if name in first.coords else arrays)[name] = joined
    ids = coords["text"].values
    if len(np.unique(ids)) != len(ids):
        msg = f"a text stands in two parts of run {first.attrs.get('run')!r}; verify the run"
        raise CorruptError(msg)
    digests = [part.attrs["content_digest"] for part in parts]
    attrs = {
        **first.attrs,
        "content_digest": "unsealed" if "unsealed" in digests else joined_digest(digests),
        "corpus": " ".join(dict.fromkeys(part.attrs["corpus"] for part in parts)),
        "parts": " ".join(part.attrs["run"] for part in parts),
    }
    return xr.Dataset(arrays, coords=coords, attrs=attrs)


def _with_layers(part: xr.Dataset, parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return a part with the layers that all parts have."""
    for axis in ("layer", "token_layer"):
        if not all(axis in other.coords for other in parts):
            continue
        there = part[axis].values
        kept = np.logical_and.reduce([np.isin(there, other[axis].values) for other in parts])
        if not kept.all():
            part = part.isel({axis: np.flatnonzero(kept)})
    return part


def _joined_offsets(variables: Sequence[xr.Variable]) -> xr.Variable:
    """Return the token offsets of all parts, counted through."""
    edges = [np.zeros(1, dtype=np.int64)]
    for variable in variables:
        edges.append(variable.values[1:] + edges[-1][-1])
    return xr.Variable(("text_edge",), np.concatenate(edges))
