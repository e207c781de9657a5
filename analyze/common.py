"""The texts that several runs have in common, in one order, and what may be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from ..schemas import InvalidInputError
from .arrays import run_pools

__all__ = ["common_pools", "common_texts", "nearest_layers"]

SAME = ("label", "pair", "scenario", "split", "variant")


def common_texts(runs: Mapping[str, xr.Dataset], *, at_least: int = 4) -> dict[str, xr.Dataset]:
    """Return the runs with the texts that all of them have, in the order of the first.

    Raises
    ------
    InvalidInputError
        If there are fewer than two runs, they have fewer than ``at_least`` texts in common, or
        one id stands for texts with unlike labels, pairs, scenarios, splits or variants.
    """
    if len(runs) < 2:
        msg = f"a comparison needs two runs or more, got {sorted(runs)}"
        raise InvalidInputError(msg)
    ids = {name: np.asarray(ds["text"].values).astype(str) for name, ds in runs.items()}
    first, *others = ids.values()
    kept = np.ones(first.size, dtype=bool)
    for other in others:
        kept &= np.isin(first, other)
    common = first[kept]
    if common.size < at_least:
        sizes = {name: values.size for name, values in ids.items()}
        msg = (
            f"the runs have {common.size} texts in common, of {sizes}; expected {at_least} or "
            "more. Models are compared on the same texts: extract both from one corpus"
        )
        raise InvalidInputError(msg)
    result = {}
    for name, ds in runs.items():
        if np.array_equal(ids[name], common):
            result[name] = ds
            continue
        order = np.argsort(ids[name])
        rows = order[np.searchsorted(ids[name], common, sorter=order)]
        result[name] = ds.drop_dims(["text_edge", "token"], errors="ignore").isel(text=rows)
    _check_same(result)
    return result


def _check_same(runs: Mapping[str, xr.Dataset]) -> None:
    (name, first), *others = runs.items()
    for other, ds in others:
        for coord in SAME:
            if coord not in first.variables or coord not in ds.variables:
                continue
            a, b = (np.asarray(of[coord].values).astype(str) for of in (first, ds))
            unlike = np.flatnonzero(a != b)
            if unlike.size:
                at = unlike[0]
                msg = (
                    f"text {str(first['text'].values[at])!r} has {coord} {str(a[at])!r} in run "
                    f"{name!r} and {str(b[at])!r} in run {other!r}: their corpora differ; extract "
                    "both runs from one corpus"
                )
                raise InvalidInputError(msg)


def common_pools(
    runs: Mapping[str, xr.Dataset], *, site: str | None, pools: Sequence[str] | None
) -> tuple[str, list[str]]:
    """Return the site and the pools that all runs have.

    Raises
    ------
    InvalidInputError
        If the runs have no site, or no pool of it, in common.
    NotFoundError
        If a site or pool asked for is missing.
    """
    found = {name: run_pools(ds, site=site, pools=pools) for name, ds in runs.items()}
    sites = {name: one for name, (one, _) in found.items()}
    if len(set(sites.values())) > 1:
        msg = f"the runs have unlike sites {sites}, which cannot be compared; name one with site="
        raise InvalidInputError(msg)
    lists = [values for _, values in found.values()]
    shared = [pool for pool in lists[0] if all(pool in values for values in lists)]
    if not shared:
        msg = f"the runs have no pool in common: {dict(zip(found, lists, strict=True))}"
        raise InvalidInputError(msg)
    return next(iter(sites.values())), shared


def nearest_layers(source: xr.Dataset, target: xr.Dataset) -> list[tuple[int, int]]:
    """Return, for every layer of ``target``, the layer of ``source`` at the nearest depth.

    Relative depth is (layer + 1)/n_layers; pairs are (layer of source, layer of target).
    """
    layers = [np.asarray(ds["layer"].values, dtype=np.int64) for ds in (source, target)]
    depths = [
        (values + 1) / int(ds.attrs.get("n_layers", values.max() + 1))
        for values, ds in zip(layers, (source, target), strict=True)
    ]
    # Rounded, so that of two layers that are as near the first is taken everywhere.
    nearest = np.abs(depths[0][:, None] - depths[1]).round(9).argmin(axis=0)
    return [(int(layers[0][s]), int(t)) for s, t in zip(nearest, layers[1], strict=True)]
