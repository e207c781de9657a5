"""Principal components of a run, one Dask task per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from ..schemas import InvalidInputError, PcaSpec, array_name
from .arrays import layer_values, run_pools
from .geometry import principal_axes
from .results import PcaResult
from .schedule import one_blas_thread, run_tasks
from .splits import pair_table
from .table import dataset_provenance, plain_strings, relative_depth

__all__ = ["pca_run"]

N_POINT_COMPONENTS = 3
POINT_COORDS = ("text", "arm", "scenario", "category", "subset", "split")


def pca_run(
    ds: xr.Dataset,
    *,
    spec: PcaSpec,
    site: str | None = None,
    pools: Sequence[str] | None = None,
    scheduler: str | None = None,
) -> PcaResult:
    """Return the principal components of every layer and pool of a run.

    Fitted on the complete pairs of the train split (of all splits where none is marked train);
    every original text is projected, neutral ones too. ``cosine_with_probe`` is the cosine with
    the difference of means of the same texts.

    Raises
    ------
    InvalidInputError
        If no pair is complete, or rows have NaN.
    NotFoundError
        If the site or a pool is missing.
    """
    chosen, found = run_pools(ds, site=site, pools=pools)
    table = pair_table(ds)
    absent = [name for name in POINT_COORDS if name not in ds.variables]
    if absent:
        msg = f"the dataset lacks the coordinates {absent}; open it with actlake.open_run"
        raise InvalidInputError(msg)
    train = np.flatnonzero(table.split != "test")
    fitted_on = "split=train" if train.size else "all"
    fit_rows = table.rows[:, train] if train.size else table.rows
    shown = np.flatnonzero(np.asarray(ds["variant"].values).astype(str) == "original")
    texts = np.asarray(ds["text"].values).astype(str)
    layers = [int(layer) for layer in ds["layer"].values]
    shared = delayed((fit_rows, shown, texts), traverse=False)
    tasks = {
        (pool, layer): delayed(_pca_layer)(
            layer_values(ds, array_name(chosen, pool), at),
            shared,
            n_components=spec.n_components,
            where=f"pool {pool}, layer {layer}",
        )
        for pool in found
        for at, layer in enumerate(layers)
    }
    results = run_tasks(list(tasks.values()), scheduler=scheduler)
    origin = dataset_provenance(ds)
    who = {"run": origin["run"], "model": origin["model"], "site": chosen}
    origin = {name: value for name, value in origin.items() if name not in who}
    tidy = {name: np.asarray(ds[name].values).astype(str)[shown] for name in POINT_COORDS}
    rows: list[dict[str, Any]] = []
    for (pool, layer), (components, _) in zip(tasks, results, strict=True):
        place = who | {"pool": pool, "layer": layer, "depth": relative_depth(layer, ds)}
        rows.extend(
            place | part | {"fitted_on": fitted_on, "n_texts": fit_rows.size} | origin
            for part in components
        )
    frame = pd.DataFrame(rows).astype(
        dict.fromkeys(("depth", "explained_variance_ratio", "cosine_with_probe"), "float64")
        | {"effective_rank": "float64", "reason": object}
    )
    coordinates = np.concatenate([found for _, found in results])
    points = pd.DataFrame(
        who
        | {
            "pool": np.repeat([pool for pool, _ in tasks], shown.size),
            "layer": np.repeat([layer for _, layer in tasks], shown.size),
            "depth": np.repeat([relative_depth(layer, ds) for _, layer in tasks], shown.size),
        }
        | {name: np.tile(values, len(tasks)) for name, values in tidy.items()}
        | {f"pc{k + 1}": coordinates[:, k] for k in range(N_POINT_COMPONENTS)}
    ).astype({"depth": "float64"})
    return PcaResult(plain_strings(frame), plain_strings(points))


def _pca_layer(
    values: NDArray[Any],
    shared: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.str_]],
    *,
    n_components: int,
    where: str,
) -> tuple[list[dict[str, Any]], NDArray[np.float64]]:
    """Return the components of one layer and the coordinates of the shown texts."""
    fit_rows, shown, texts = shared
    x = np.asarray(values)
    broken = shown[~np.isfinite(x).all(axis=1)[shown]]
    if broken.size:
        msg = (
            f"{where}: {broken.size} of {shown.size} rows have NaN or infinite values, the first "
            f"are {texts[broken].tolist()[:3]}; expected finite activations. Resume the run if "
            "it is not sealed, verify it, or leave out the texts that store.finite_texts says are "
            "not finite"
        )
        raise InvalidInputError(msg)
    with one_blas_thread():
        pairs = x[fit_rows]
        axes = principal_axes(pairs.reshape(-1, x.shape[1]), n_components=n_components)
        coordinates = np.zeros((shown.size, N_POINT_COMPONENTS))
        n_axes = min(N_POINT_COMPONENTS, axes.axes.shape[0])
        first = replace(axes, axes=axes.axes[:n_axes], variance=axes.variance[:n_axes])
        every = np.array_equal(shown, np.arange(len(x)))  # then they need not be copied
        coordinates[:, :n_axes] = first.project(x if every else x[shown])
    positive, negative = pairs.mean(axis=1, dtype=np.float64)
    difference = positive - negative
    length = float(np.linalg.norm(difference))
    if axes.axes.shape[0] == 0:
        nothing = {"explained_variance_ratio": None, "cosine_with_probe": None}
        row = {"component": 1, **nothing, "effective_rank": None, "reason": "no variance"}
        return [row], coordinates
    cosines = axes.axes @ difference / length if length > 0 else None
    return [
        {
            "component": k + 1,
            "explained_variance_ratio": float(axes.explained[k]),
            "cosine_with_probe": None if cosines is None else float(cosines[k]),
            "effective_rank": axes.effective_rank,
            "reason": None if length > 0 else "the class means are equal",
        }
        for k in range(axes.axes.shape[0])
    ], coordinates
