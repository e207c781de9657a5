"""Every layer of a run against every layer of another, one Dask task per layer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from ..schemas import SimilarityRow, SimilaritySpec, array_name
from .arrays import layer_values
from .auroc import Floats
from .common import common_pools, common_texts
from .geometry_run import finite_rows
from .jobs import Jobs, job_name
from .schedule import Progress, one_blas_thread, run_tasks
from .similarity import MIN_TEXTS, distance_ranks, jackknife_interval, u_centred
from .splits import group_folds
from .table import dataset_provenance, relative_depth
from .tidy import record_frame

__all__ = ["similarity_run"]

Halves = NDArray[np.float32]
JACKKNIFE = "jackknife over {} groups of scenarios"
NO_JACKKNIFE = "none: too few scenarios, or texts without one, for a jackknife"
CONSTANT = "the activations of a layer are all equal"


def similarity_run(
    runs: Mapping[str, xr.Dataset],
    *,
    spec: SimilaritySpec,
    site: str | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
    cancel: Event | None = None,
    jobs: Jobs | None = None,
    n_workers: int | None = None,
) -> pd.DataFrame:
    """Return debiased CKA and RSA of every pair of layers of every two runs.

    Similarity is not transfer: two layers can be alike in everything but the concept.

    Parameters
    ----------
    runs
        Opened runs by name, as ``open_runs`` gives them.
    spec
        Pools, most texts (a sample by the seed beyond them), groups of the jackknife.
    site, scheduler, progress, cancel, n_workers
        See :func:`run_tasks`.
    jobs
        Where the rows of finished pools are kept: what layers leave behind is too large.

    Returns
    -------
    DataFrame with the columns of SimilarityRow; ``run`` and ``layer`` are of the first of two.

    Raises
    ------
    InvalidInputError
        If the runs have too few texts in common, unlike sites, or rows with NaN.
    """
    opened = common_texts(runs, at_least=MIN_TEXTS)
    chosen, pools = common_pools(opened, site=site, pools=spec.pools)
    first = next(iter(opened.values()))
    rows = _sample(first, spec)
    groups, n_groups = _groups(first, rows, spec)
    texts = np.asarray(first["text"].values).astype(str)
    shared = delayed((rows, groups, n_groups, texts), traverse=False)
    found: list[SimilarityRow] = []
    for pool in pools:  # one after the other: what the layers of one leave behind is large
        done, rows_of_pool = (False, []) if jobs is None else jobs.load(job_name(pool))
        if done:
            found.extend(SimilarityRow(**row) for row in rows_of_pool)
            continue
        tasks = {
            (name, int(layer)): delayed(_forms)(
                layer_values(ds, array_name(chosen, pool), at),
                shared,
                where=f"run {name}, pool {pool}, layer {int(layer)}",
            )
            for name, ds in opened.items()
            for at, layer in enumerate(ds["layer"].values)
        }
        results = run_tasks(
            list(tasks.values()),
            scheduler=scheduler,
            progress=progress,
            cancel=cancel,
            n_workers=n_workers,
        )
        forms: dict[str, list[Any]] = {name: [] for name in opened}
        for (name, layer), form in zip(tasks, results, strict=True):
            forms[name].append((layer, form))
        of_pool: list[SimilarityRow] = []
        for a, b in combinations(opened, 2):
            head = {
                "analysis": "similarity",
                **dataset_provenance(opened[a]),
                "run": a,
                "other_run": b,
                "other_model": dataset_provenance(opened[b])["model"],
                "site": chosen,
                "pool": pool,
                "n_texts": rows.size,
                "groups": f"scenario ({n_groups})" if n_groups else None,
                "seed": spec.seed,
            }
            of_pool.extend(_rows(head, forms[a], forms[b], runs=(opened[a], opened[b])))
        if jobs is not None:
            jobs.save(job_name(pool), [row.model_dump(exclude_none=True) for row in of_pool])
        found.extend(of_pool)
    return record_frame(found, SimilarityRow)


def _sample(ds: xr.Dataset, spec: SimilaritySpec) -> NDArray[np.int64]:
    """Return the original texts, or ``max_texts`` of them."""
    original = np.asarray(ds["variant"].values).astype(str) == "original"
    rows = np.flatnonzero(original if original.sum() >= MIN_TEXTS else np.ones_like(original))
    if rows.size > spec.max_texts:
        rows = np.random.default_rng(spec.seed).choice(rows, spec.max_texts, replace=False)
    return np.sort(rows)


def _groups(
    ds: xr.Dataset, rows: NDArray[np.int64], spec: SimilaritySpec
) -> tuple[NDArray[np.int64], int]:
    """Return the number of the jackknife group of every row, and how many there are."""
    scenario = np.asarray(ds["scenario"].values).astype(str)[rows]
    n = min(spec.n_jackknife, np.unique(scenario).size)
    if n < 2:
        return np.zeros(rows.size, dtype=np.int64), 0
    groups = group_folds(scenario, n, seed=spec.seed)
    # Without a group enough texts must be left.
    return (groups, n) if rows.size - np.bincount(groups).max() >= MIN_TEXTS else (groups * 0, 0)


def _forms(
    values: NDArray[Any],
    shared: tuple[NDArray[np.int64], NDArray[np.int64], int, NDArray[np.str_]],
    *,
    where: str,
) -> list[tuple[Halves, Halves]]:
    """Return unit vectors whose inner products are CKA and RSA: of all texts, then of groups."""
    rows, groups, n_groups, texts = shared
    x = finite_rows(values, rows, texts=texts, where=where)
    with one_blas_thread():
        kept = [np.ones(rows.size, dtype=bool), *(groups != g for g in range(n_groups))]
        both = [(_unit(u_centred(x[keep])), distance_ranks(x[keep])) for keep in kept]
    # Half the memory, and seven digits of a similarity.
    return [(a.astype(np.float32), b.astype(np.float32)) for a, b in both]


def _unit(centred: Floats) -> Floats:
    """Return the upper triangle of a U-centred matrix as a unit vector; NaN for zero."""
    flat = centred[np.triu_indices(len(centred), k=1)]
    length = float(np.linalg.norm(flat))
    scale = float(np.abs(centred).max())
    return flat / length if scale > 0 else np.full_like(flat, np.nan)


def _rows(
    head: dict[str, Any],
    of_a: list[tuple[int, list[tuple[Halves, Halves]]]],
    of_b: list[tuple[int, list[tuple[Halves, Halves]]]],
    *,
    runs: tuple[xr.Dataset, xr.Dataset],
) -> list[SimilarityRow]:
    """Return the rows of two runs: one product of all layers per metric and jackknife group."""
    n_kept = len(of_a[0][1])
    result = []
    for which, metric in enumerate(("debiased_cka", "rsa")):
        every = np.stack(
            [
                np.stack([form[k][which] for _, form in of_a])
                @ np.stack([form[k][which] for _, form in of_b]).T
                for k in range(n_kept)
            ]
        )
        low = high = None
        if n_kept > 2:
            low, high = jackknife_interval(every[0], every[1:])
        for i, (layer, _) in enumerate(of_a):
            for j, (other, _) in enumerate(of_b):
                value = float(every[0, i, j])
                there = bool(np.isfinite(value))
                row = {
                    "metric": metric,
                    "layer": layer,
                    "depth": relative_depth(layer, runs[0]),
                    "other_layer": other,
                    "other_depth": relative_depth(other, runs[1]),
                    "estimate": value if there else None,
                    "reason": None if there else CONSTANT,
                    "ci_method": NO_JACKKNIFE if there else None,
                }
                if there and low is not None and high is not None:
                    row |= {
                        "ci_low": float(low[i, j]),
                        "ci_high": float(high[i, j]),
                        "ci_method": JACKKNIFE.format(n_kept - 1),
                    }
                result.append(SimilarityRow(**{**head, **row}))
    return result
