"""Which arrays of a run an analysis reads, one layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from ..schemas import NotFoundError, Pool, Site, array_name, near_names, span_of

__all__ = ["layer_values", "read_layer", "run_pools"]


def run_pools(
    ds: xr.Dataset, *, site: str | None = None, pools: Sequence[str] | None = None
) -> tuple[str, list[str]]:
    """Return the site to analyse and the pools of it that the run has.

    Parameters
    ----------
    ds
        An opened run.
    site
        None takes ``resid_post`` where the run has it, otherwise its first site.
    pools
        None takes every pool of the site.

    Raises
    ------
    NotFoundError
        If the run has no pooled array, or not the site or pool asked for.
    """
    known_pools = [*get_args(Pool), *_span_pools(ds)]
    sites: list[str] = [
        name
        for name in ("resid_post", *get_args(Site))
        if any(array_name(name, pool) in ds.data_vars for pool in known_pools)
    ]
    if not sites:
        msg = (
            f"the dataset has no pooled activations, only {sorted(map(str, ds.data_vars))}; "
            f"expected arrays such as {array_name('resid_post', 'mean_response')!r}"
        )
        raise NotFoundError(msg)
    if site is not None and site not in sites:
        known = sorted(set(sites))
        msg = f"the run has no site {site!r}{near_names(site, known)}; it has {known}"
        raise NotFoundError(msg)
    chosen = site or sites[0]
    there = [pool for pool in known_pools if array_name(chosen, pool) in ds.data_vars]
    missing = [pool for pool in pools or () if pool not in there]
    if missing:
        msg = f"the run has no pool {missing} of {chosen}; it has {there}"
        raise NotFoundError(msg)
    return chosen, list(pools) if pools is not None else there


def _span_pools(ds: xr.Dataset) -> list[str]:
    found = {str(array.attrs.get("pool", "")) for array in ds.data_vars.values()}
    return sorted(pool for pool in found if span_of(pool) is not None)


def layer_values(ds: xr.Dataset, name: str, at: int) -> Any:  # noqa: ANN401
    """Return layer number ``at`` of an array, dims (text, hidden), to be read by a delayed task.

    Handed to a task as a whole, a Dask array of one chunk would be copied once more.
    """
    layer = ds[name].transpose("text", "layer", ...).variable.isel(layer=at)
    if not layer.chunks:
        return layer
    blocks = layer.data.to_delayed()
    if blocks.shape[1:].count(1) != blocks.ndim - 1:
        return layer
    return blocks.item() if blocks.size == 1 else delayed(np.concatenate)(blocks.ravel().tolist())


def read_layer(ds: xr.Dataset, name: str, at: int) -> NDArray[Any]:
    """Return layer number ``at`` of an array, dims (text, hidden), read now."""
    values: NDArray[Any] = ds[name].transpose("text", "layer", ...).variable.isel(layer=at).values
    return values
