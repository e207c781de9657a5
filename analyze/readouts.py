"""The random baseline of a run: arbitrary directions read out of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import xarray as xr
from dask.system import CPU_COUNT
from numpy.typing import NDArray

from ..schemas import CorruptError, InvalidInputError, RandomSpec
from .arrays import run_pools
from .auroc import Floats
from .nulls import drawn_aurocs, isotropic_directions, max_over_layers, null_band, random_scores
from .parts import Activations, run_part
from .schedule import runs_locally
from .splits import PairTable, pair_table
from .table import OVER_LAYERS, dataset_provenance, plain_strings, relative_depth

__all__ = ["RandomPart", "RandomResult", "random_part", "random_run", "random_tables"]

READ_AHEAD = 2  # layers beyond one a core


@dataclass(frozen=True)
class RandomResult:
    """``bands`` describe the AUROCs of random directions per pool, layer and subset.

    The rows without a layer are of each draw's largest folded AUROC over the layers. ``aurocs``
    has dims (subset, pool, layer, draw).
    """

    bands: pd.DataFrame
    aurocs: xr.DataArray


@dataclass(frozen=True)
class RandomPart:
    """The AUROCs of random directions on one layer: one GEMM and one rank sum per subset."""

    records: ClassVar[tuple[type, ...]] = ()

    members: tuple[NDArray[np.int64], ...]
    spec: RandomSpec

    def fit(self, layer: Activations) -> Floats:
        """Return AUROCs with dims (subset, draw); InvalidInputError where rows have NaN."""
        hidden = layer.values.shape[-1]
        directions = isotropic_directions(self.spec.n_directions, hidden, seed=self.spec.seed)
        scores = random_scores(layer.values, layer.table.rows, directions)
        if not np.isfinite(scores).all():
            _ = layer.pairs  # names the texts whose activations are not finite
            msg = (
                f"pool {layer.pool}, layer {layer.layer}: activations are too large for single "
                "precision; verify the run"
            )
            raise CorruptError(msg)
        return drawn_aurocs(scores, members=self.members)


def random_run(
    ds: xr.Dataset,
    *,
    spec: RandomSpec,
    site: str | None = None,
    pools: Sequence[str] | None = None,
    scheduler: str | None = None,
) -> RandomResult:
    """Return how well random directions separate the arms at every layer and pool of a run.

    w ~ N(0, I), the same draws in every layer. No text is read, nothing is fitted.

    Parameters
    ----------
    ds
        An opened run.
    spec
        How many directions.
    site
        None takes ``resid_post``, or the run's first site.
    pools
        None takes every pool of the site.
    scheduler
        As for :func:`probe_run`.

    Raises
    ------
    InvalidInputError
        If one class is missing, no pair is complete, or rows have NaN.
    NotFoundError
        If a site or pool is missing.
    """
    chosen, found = run_pools(ds, site=site, pools=pools)
    table = pair_table(ds)
    part = random_part(table, spec)
    # A layer is small and quickly projected: some are read while the cores are busy with others.
    n_workers = CPU_COUNT + READ_AHEAD if runs_locally(scheduler) else None
    layers = run_part(
        ds, part, table, site=chosen, pools=found, scheduler=scheduler, n_workers=n_workers
    )
    return random_tables(ds, table, layers, site=chosen, pools=found, spec=spec)


def random_part(table: PairTable, spec: RandomSpec) -> RandomPart:
    """Return what every layer computes; InvalidInputError if there is one pair only."""
    if table.n_pairs < 2:
        msg = f"random directions need two pairs or more to order, got {table.n_pairs}"
        raise InvalidInputError(msg)
    return RandomPart(tuple(table.members(name) for name in _subsets(table)), spec)


def random_tables(
    ds: xr.Dataset,
    table: PairTable,
    layers: Mapping[tuple[str, int], Floats],
    *,
    site: str,
    pools: Sequence[str],
    spec: RandomSpec,
) -> RandomResult:
    """Return the AUROCs of all layers and their description."""
    numbers = [int(layer) for layer in ds["layer"].values]
    drawn = np.stack(
        [np.stack([layers[pool, layer] for layer in numbers], axis=1) for pool in pools], axis=1
    )
    aurocs = xr.DataArray(
        drawn,
        dims=("subset", "pool", "layer", "draw"),
        coords={
            "subset": np.array(_subsets(table), dtype=object),
            "pool": np.array(pools, dtype=object),
            "layer": np.array(numbers, dtype=np.int32),
        },
        name="auroc",
        attrs={"null": "isotropic", "seed": spec.seed, "site": site},
    )
    return RandomResult(_bands(ds, table, aurocs, site=site, seed=spec.seed), aurocs)


def _subsets(table: PairTable) -> list[str]:
    return ["all", *table.subsets()]


def _bands(
    ds: xr.Dataset, table: PairTable, aurocs: xr.DataArray, *, site: str, seed: int
) -> pd.DataFrame:
    """Return one row per pool, layer and subset, and one of the maximum over layers."""
    shared = dataset_provenance(ds)
    rows = []
    for subset in aurocs["subset"].values:
        for pool in aurocs["pool"].values:
            here = aurocs.sel(subset=subset, pool=pool).values
            pairs = table.members(str(subset))
            which = {
                **shared, "site": site, "pool": str(pool), "subset": str(subset),
                "n_texts": 2 * int(pairs.size), "n_pairs": int(pairs.size),
                "n_scenarios": int(np.unique(table.scenario[pairs]).size),
                "n_generators": int(np.unique(table.generator[pairs]).size),
                "seed": seed, "reason": None,
            }  # fmt: skip
            for layer, draws in zip(aurocs["layer"].values.tolist(), here, strict=True):
                place = {"layer": layer, "depth": relative_depth(layer, ds), "null": "isotropic"}
                rows.append({**which, **place, **null_band(draws)})
            place = {"layer": None, "depth": None, "null": "max_over_layers (isotropic)"}
            place["reason"] = OVER_LAYERS
            rows.append({**which, **place, **null_band(max_over_layers(list(here)))})
    return plain_strings(pd.DataFrame(rows).astype({"layer": "Int64", "depth": "float64"}))
