"""Directions kept, combined and read out: refused where they do not belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from ..schemas import (
    CorruptError,
    Direction,
    DirectionSet,
    InvalidInputError,
    NotFoundError,
    array_name,
    require_like,
)
from .results import directions_record

__all__ = [
    "combine_directions",
    "direction_set",
    "load_directions",
    "save_directions",
    "score_direction",
]

_ARRAYS = "directions.zarr"
_RECORDS = "directions.json"


def direction_set(
    directions: xr.Dataset, *, pool: str, methods: Sequence[str] | None = None
) -> DirectionSet:
    """Return the directions of one pool of a probe result as records.

    Layers on which the classes do not differ have no direction and are left out.

    Raises
    ------
    NotFoundError
        If the pool or a method is not there.
    InvalidInputError
        If no layer has a direction.
    """
    known = [str(m) for m in directions["method"].values]
    wanted = list(methods) if methods is not None else known
    unknown = sorted({*wanted} - {*known})
    if unknown or pool not in directions["pool"].values:
        msg = (
            f"no directions of methods {unknown or wanted} on pool {pool!r}; there are methods "
            f"{known} on pools {directions['pool'].values.tolist()}"
        )
        raise NotFoundError(msg)
    norms = directions["norm"].sel({"pool": pool})
    found = tuple(
        directions_record(directions, method, pool, layer=int(layer))
        for method in wanted
        for layer in directions["layer"].values
        if float(norms.sel({"method": method, "layer": layer})) > 0
    )
    if not found:
        msg = f"no layer of pool {pool!r} has a direction: the two arms do not differ there"
        raise InvalidInputError(msg)
    return DirectionSet(directions=found)


def combine_directions(directions: Sequence[Direction], weights: Sequence[float]) -> Direction:
    """Return the weighted sum of directions (their vectors times their norms) as a direction.

    Raises
    ------
    InvalidInputError
        If they live at unlike models, sites, pools or layers, or the sum is zero.
    """
    if len(directions) != len(weights) or not directions:
        msg = f"expected one weight per direction, got {len(directions)} and {len(weights)}"
        raise InvalidInputError(msg)
    require_like(directions)
    raw = sum(
        (w * d.norm * np.asarray(d.vector) for d, w in zip(directions, weights, strict=True)),
        np.zeros(directions[0].hidden),
    )
    norm = float(np.linalg.norm(raw))
    if norm <= 1e-12 * max(d.norm for d in directions):
        msg = "the directions cancel: their weighted sum is zero; choose other weights"
        raise InvalidInputError(msg)
    first = directions[0]
    return Direction(
        method="+".join(f"{w:g}*{d.method}" for d, w in zip(directions, weights, strict=True)),
        site=first.site,
        layer=first.layer,
        pool=first.pool,
        vector=tuple((raw / norm).tolist()),
        norm=norm,
        bias=float(sum(w * d.bias for d, w in zip(directions, weights, strict=True))),
        model=first.model,
        run=first.run if len({d.run for d in directions}) == 1 else "several",
        fitted_on=" and ".join(dict.fromkeys(d.fitted_on for d in directions)),
        reliability_reason="a combination of directions",
    )


def score_direction(ds: xr.Dataset, direction: Direction) -> xr.DataArray:
    """Return the decision values of a run's texts by a direction, dims (text,), float64.

    Only the chunks of the direction's layer are read, when the result is computed.

    Parameters
    ----------
    ds
        An opened run of the direction's model.
    direction
        Of the same site, layer, pool and width.

    Raises
    ------
    InvalidInputError
        If the run is of another model or width, or has not the direction's site, pool or layer.
    """
    name, of = array_name(direction.site, direction.pool), str(ds.attrs.get("model", "unknown"))
    if of != direction.model:
        msg = (
            f"the direction {direction.name} is of model {direction.model!r}, the run of {of!r}; "
            "a direction reads its own model: map it to another one first"
        )
        raise InvalidInputError(msg)
    if name not in ds.data_vars or "hidden" not in ds[name].dims:
        there = sorted(str(n) for n in ds.data_vars if "hidden" in ds[n].dims)
        msg = (
            f"the direction {direction.name} reads {name}, which the run lacks; it has {there}. "
            "Fit a direction at one of these, or extract that site and pool"
        )
        raise InvalidInputError(msg)
    array = ds[name]
    layers = [int(layer) for layer in ds["layer"].values]
    if direction.layer not in layers or array.sizes["hidden"] != direction.hidden:
        msg = (
            f"the direction {direction.name} is {direction.hidden} wide at layer "
            f"{direction.layer}; the run is {array.sizes['hidden']} wide and has layers {layers}"
        )
        raise InvalidInputError(msg)
    vector = xr.DataArray(direction.norm * np.asarray(direction.vector), dims="hidden")
    values = array.isel(layer=layers.index(direction.layer)).astype(np.float64)
    return (values @ vector + direction.bias).rename("score")


def save_directions(directions: DirectionSet, folder: str | Path) -> Path:
    """Write directions.json (all but the vectors) and directions.zarr into ``folder``.

    Returns the folder. What is there already is replaced.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    vectors = np.array([d.vector for d in directions.directions])
    names = [d.name for d in directions.directions]
    dataset = xr.Dataset(
        {
            "vector": (("direction", "hidden"), vectors),
            "norm": (("direction",), np.array([d.norm for d in directions.directions])),
            "bias": (("direction",), np.array([d.bias for d in directions.directions])),
            "layer": (
                ("direction",),
                np.array([d.layer for d in directions.directions], dtype=np.int32),
            ),
        },
        attrs={"encoding-type": "actlake-direction-vectors", "encoding-version": "1",
               "direction_names": names},
    )  # fmt: skip
    dataset.to_zarr(target / _ARRAYS, mode="w", zarr_format=3, consolidated=False)
    # One number stands for each vector: a record that lies beside its array need not repeat it.
    short = DirectionSet(
        directions=tuple(d.model_copy(update={"vector": (1.0,)}) for d in directions.directions)
    )
    (target / _RECORDS).write_text(short.to_json(), encoding="utf-8")
    return target


def load_directions(folder: str | Path) -> DirectionSet:
    """Return what :func:`save_directions` wrote.

    Raises
    ------
    NotFoundError
        If it is not there.
    CorruptError
        If records and vectors do not belong together.
    """
    source = Path(folder)
    records, arrays = source / _RECORDS, source / _ARRAYS
    if not records.is_file() or not arrays.is_dir():
        msg = f"no {_RECORDS} with {_ARRAYS} in {source}; save directions there first"
        raise NotFoundError(msg)
    short = DirectionSet.parse_stored(records.read_bytes(), where=str(records))
    found = xr.open_zarr(arrays, chunks=None, consolidated=False).load()
    names = [d.name for d in short.directions]
    if found.attrs.get("direction_names") != names or "vector" not in found:
        msg = f"{arrays} does not hold the vectors of {records}; save the directions again"
        raise CorruptError(msg)
    vectors = found["vector"].values
    lengths = np.linalg.norm(vectors, axis=1)
    if vectors.shape[0] != len(names) or not np.allclose(lengths, 1, atol=1e-4):
        msg = f"{arrays} holds {vectors.shape[0]} vectors of lengths other than 1; save them again"
        raise CorruptError(msg)
    return DirectionSet(
        directions=tuple(
            d.model_copy(update={"vector": tuple(v.tolist())})
            for d, v in zip(short.directions, vectors, strict=True)
        )
    )
