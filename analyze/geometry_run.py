"""The geometry of a run, one Dask task per layer: components, cosines, t-SNE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from ..schemas import GeometryRow, GeometrySpec, InvalidInputError, array_name, digest_json
from .arrays import layer_values, run_pools
from .auroc import Floats
from .contrasts import Contrast, select_contrasts
from .cosines import (
    NO_DIRECTION,
    Fields,
    contrast_cosines,
    contrast_reliabilities,
    vector_cosines,
)
from .embedding import MIN_TEXTS, TSNE_CAPTION, tsne_points
from .geometry import principal_axes
from .inner_products import spaces
from .jobs import Jobs, job_name, run_jobs
from .schedule import Progress, one_blas_thread
from .splits import read_labels
from .table import dataset_provenance, plain_strings, relative_depth, write_table
from .tidy import record_frame

__all__ = ["GeometryResult", "finite_rows", "geometry_run", "save_geometry_result"]

POINT_COORDS = ("text", "arm", "scenario", "generator", "category", "subset", "split")
TSNE_DEPTH = 2 / 3


@dataclass(frozen=True)
class GeometryResult:
    """Components, cosines and pictures of one run at one site.

    ``rows`` has the fields of GeometryRow; ``points`` the coordinates of every original text on
    the first components; ``embedding`` those of t-SNE, one row per text and seed, with its
    caption in ``attrs`` and in a column.
    """

    rows: pd.DataFrame
    points: pd.DataFrame
    embedding: pd.DataFrame


@dataclass(frozen=True)
class _Job:
    contrasts: tuple[Contrast, ...]
    fit: NDArray[np.int64]
    shown: NDArray[np.int64]
    texts: NDArray[np.str_]
    spec: GeometrySpec


def finite_rows(
    values: NDArray[Any], rows: NDArray[np.int64], *, texts: NDArray[np.str_], where: str
) -> Floats:
    """Return the ``rows`` of ``values`` (text, hidden) in float64.

    Raises
    ------
    InvalidInputError
        If one has NaN or infinite values; the texts are named.
    """
    x = np.asarray(values)[rows].astype(np.float64)
    broken = rows[~np.isfinite(x).all(axis=1)]
    if broken.size:
        msg = (
            f"{where}: {broken.size} of {rows.size} rows have NaN or infinite values, the first "
            f"are {texts[broken].tolist()[:3]}; expected finite activations. Resume the run if it "
            "is not sealed, verify it, or leave out the texts that store.finite_texts says are not "
            "finite"
        )
        raise InvalidInputError(msg)
    return x


def geometry_run(
    ds: xr.Dataset,
    *,
    spec: GeometrySpec,
    directions: xr.Dataset | None = None,
    site: str | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
    cancel: Event | None = None,
    jobs: Jobs | None = None,
    n_workers: int | None = None,
) -> GeometryResult:
    """Return principal components, cosines between directions and t-SNE of a run.

    Components are fitted on the labelled original texts of the train split (of all splits where
    none is marked train); every original text is projected.

    Parameters
    ----------
    ds
        An opened run.
    spec
        Contrasts, draws, what to do with contrasts that share texts.
    directions
        Finished directions, such as those of a :class:`ProbeResult`: their cosines with the
        components and with each other, by method.
    site
        None takes ``resid_post``, or the run's first site.
    scheduler, progress, cancel, jobs, n_workers
        See :func:`run_jobs`: one job per pool and layer.

    Raises
    ------
    InvalidInputError
        If contrasts share texts (``spec.shared``), a contrast has too few texts, a label is not
        1, 0 or −1, or rows have NaN.
    NotFoundError
        If the site or a pool is missing.
    """
    chosen, pools = run_pools(ds, site=site, pools=spec.pools)
    contrasts = select_contrasts(ds, spec)
    label = read_labels(ds)
    split, variant = (np.asarray(ds[name].values) for name in ("split", "variant"))
    original = variant.astype(str) == "original"
    labelled = original & (label >= 0)
    in_train = labelled & (split.astype(str) == "train")
    fit = np.flatnonzero(in_train if in_train.any() else labelled)
    if fit.size < 2:
        msg = f"principal components need two labelled texts or more, got {fit.size}"
        raise InvalidInputError(msg)
    texts = np.asarray(ds["text"].values).astype(str)
    job = _Job(tuple(contrasts), fit, np.flatnonzero(original), texts, spec)
    shared = delayed(job, traverse=False)
    _check_pools(directions, pools)
    layers = [int(layer) for layer in ds["layer"].values]
    drawn = _tsne_layers(spec, layers, ds)
    tasks = {
        (pool, layer): delayed(_layer_geometry)(
            layer_values(ds, array_name(chosen, pool), at),
            shared,
            vectors=_finished(directions, chosen, pool=pool, layer=layer),
            draw=layer in drawn,
            where=f"pool {pool}, layer {layer}",
        )
        for pool in pools
        for at, layer in enumerate(layers)
    }
    done = run_jobs(
        {job_name(pool, layer): task for (pool, layer), task in tasks.items()},
        jobs=jobs,
        scheduler=scheduler,
        progress=progress,
        cancel=cancel,
        n_workers=n_workers,
    )
    results = [done[job_name(pool, layer)] for pool, layer in tasks]
    tidy = {
        name: np.asarray(ds[name].values).astype(str)[job.shown]
        for name in POINT_COORDS
        if name in ds.variables
    }
    provenance = dataset_provenance(ds)
    provenance["dataset_digest"] = digest_json({c.name: c.signed_texts for c in contrasts})
    rows: list[GeometryRow] = []
    points, embedding = [], []
    for (pool, layer), (found, coordinates, drawings) in zip(tasks, results, strict=True):
        place = {"site": chosen, "pool": pool, "layer": layer}
        place["depth"] = relative_depth(layer, ds)
        head = {"analysis": "geometry", **provenance, **place, "seed": spec.seed}
        rows.extend(GeometryRow(**{**head, **fields}) for fields in found)
        who = {"run": provenance["run"], "model": provenance["model"], **place, **tidy}
        n_axes = coordinates.shape[1]
        axes = {f"pc{k + 1}": coordinates[:, k] for k in range(n_axes)}
        short = n_axes < spec.n_components
        why = f"the texts vary along {n_axes} components" if short else None
        points.append(pd.DataFrame(who | axes | {"reason": why}).astype({"depth": "float64"}))
        if drawings is not None:
            embedding.extend(_drawn(who, drawings, spec))
    return GeometryResult(
        rows=record_frame(rows, GeometryRow),
        points=plain_strings(pd.concat(points, ignore_index=True)),
        embedding=_embedding_frame(embedding),
    )


def _drawn(
    who: dict[str, Any], drawings: tuple[Floats, float], spec: GeometrySpec
) -> list[pd.DataFrame]:
    pictures, perplexity = drawings
    return [
        pd.DataFrame(
            who
            | {"seed": seed, "perplexity": perplexity, "x": picture[:, 0], "y": picture[:, 1]}
            | {"caption": TSNE_CAPTION}
        ).astype({"depth": "float64"})
        for seed, picture in zip(spec.tsne_seeds, pictures, strict=True)
    ]


def _embedding_frame(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    frame = plain_strings(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame()
    frame.attrs["caption"] = TSNE_CAPTION
    return frame


def _tsne_layers(spec: GeometrySpec, layers: list[int], ds: xr.Dataset) -> set[int]:
    """Return the layers to draw: those named, or the one nearest two thirds of the depth."""
    if not spec.tsne_seeds:
        return set()
    if spec.tsne_layers is None:
        n_layers = int(ds.attrs.get("n_layers", len(layers)))
        return {min(layers, key=lambda layer: abs((layer + 1) / n_layers - TSNE_DEPTH))}
    missing = sorted(set(spec.tsne_layers) - set(layers))
    if missing:
        msg = f"tsne_layers names the layers {missing}, which the run lacks; it has {layers}"
        raise InvalidInputError(msg)
    return set(spec.tsne_layers)


def _check_pools(directions: xr.Dataset | None, pools: Sequence[str]) -> None:
    """Raise InvalidInputError where finished directions are of none of the ``pools``."""
    known = [] if directions is None else [str(pool) for pool in directions["pool"].values]
    if directions is not None and not {*known} & {*pools}:
        msg = (
            f"the directions are of the pools {known}, and the run is analysed at {list(pools)}; "
            "a direction of one pool says nothing of another: name a pool that both have"
        )
        raise InvalidInputError(msg)


def _finished(
    directions: xr.Dataset | None, site: str, *, pool: str, layer: int
) -> dict[str, Floats]:
    """Return the finished directions of one layer that have a length, by method."""
    if directions is None:
        return {}
    if directions.attrs.get("site", site) != site:
        msg = (
            f"the directions are of site {directions.attrs['site']!r}, the run is analysed at "
            f"{site!r}; unlike sites cannot be compared: name the site of the directions"
        )
        raise InvalidInputError(msg)
    if pool not in directions["pool"].values or layer not in directions["layer"].values:
        return {}
    at = directions.sel({"pool": pool, "layer": layer})
    vectors = {
        str(method): np.asarray(at["vector"].values[k], dtype=np.float64)
        for k, method in enumerate(directions["method"].values)
    }
    return {name: vector for name, vector in vectors.items() if vector.any()}


def _layer_geometry(
    values: NDArray[Any],
    job: _Job,
    *,
    vectors: dict[str, Floats],
    draw: bool,
    where: str,
) -> tuple[list[Fields], Floats, tuple[Floats, float] | None]:
    """Return the rows of one layer, its texts on the first components, and its pictures."""
    spec = job.spec
    x = finite_rows(values, job.shown, texts=job.texts, where=where)
    at = np.full(job.texts.size, -1)
    at[job.shown] = np.arange(job.shown.size)
    with one_blas_thread():
        built = _built(x, job, at=at)
        rows, coordinates = _components(x, at[job.fit], {**built, **vectors}, job=job)
        rows += _cosine_rows(np.asarray(values), job, where=where)
        rows += list(vector_cosines(vectors))
        drawings = None
        if draw and job.shown.size >= MIN_TEXTS and np.ptp(x, axis=0).any():
            drawings = tsne_points(x, seeds=spec.tsne_seeds, perplexity=spec.perplexity)
    return rows, coordinates, drawings


def _built(x: Floats, job: _Job, *, at: NDArray[np.int64]) -> dict[str, Floats]:
    """Return the directions of the contrasts that are made of projected texts, by name."""
    result = {}
    for contrast in job.contrasts:
        members = contrast.members
        if (at[members] >= 0).all():  # else of lexical variants, which are not projected
            result[contrast.name] = contrast.weights[members] @ x[at[members]]
    return result


def _components(
    x: Floats, fit: NDArray[np.int64], directions: dict[str, Floats], *, job: _Job
) -> tuple[list[Fields], Floats]:
    """Return the rows of the principal components and the coordinates of the texts."""
    axes = principal_axes(x[fit], n_components=job.spec.n_components)
    n_axes = axes.axes.shape[0]
    head: Fields = {"n_texts": fit.size}
    rank: Fields = head | {"metric": "effective_rank"}
    if n_axes == 0:
        return [rank | {"estimate": None, "reason": "the texts do not vary"}], np.zeros((len(x), 0))
    rows = [rank | {"estimate": axes.effective_rank}]
    for k in range(n_axes):
        share = {"metric": "explained_variance_ratio", "estimate": float(axes.explained[k])}
        rows.append(head | share | {"component": k + 1})
    for name, direction in directions.items():
        length = float(np.linalg.norm(direction))
        for k in range(n_axes):
            row = head | {"metric": "component_cosine", "component": k + 1, "contrast": name}
            if length > 0:
                row |= {
                    "estimate": float(axes.axes[k] @ direction / length),
                    "isotropic_sd": x.shape[1] ** -0.5,
                }
            else:
                row |= {"estimate": None, "reason": NO_DIRECTION}
            rows.append(row)
    return rows, axes.project(x)


def _cosine_rows(values: NDArray[Any], job: _Job, *, where: str) -> list[Fields]:
    """Return reliabilities and cosines of the contrasts in every coordinate system."""
    spec = job.spec
    union = np.unique(np.concatenate([contrast.members for contrast in job.contrasts]))
    x = finite_rows(values, union, texts=job.texts, where=where)
    local = [
        Contrast(c.name, c.texts[union], c.weights[union], c.units[union], c.paired)
        for c in job.contrasts
    ]
    groups = [str(tuple(np.sign([c.weights[row] for c in local]))) for row in range(union.size)]
    if not np.ptp(x, axis=0).any():
        reason = "the activations are all equal"
        return [
            {"metric": "reliability", "contrast": c.name, "estimate": None, "reason": reason}
            for c in local
        ]
    rows: list[Fields] = []
    for space in spaces(x, groups=groups, n_outliers=spec.outlier_dims).values():
        reliability, more = contrast_reliabilities(
            local, space, n_splits=spec.n_splits, n_bootstrap=spec.n_bootstrap, seed=spec.seed
        )
        rows += more
        rows += contrast_cosines(
            local,
            space,
            reliabilities=reliability,
            n_permutations=spec.n_permutations,
            shared=spec.shared,
            seed=spec.seed,
        )
    return rows


def save_geometry_result(result: GeometryResult, folder: str | Path) -> Path:
    """Write geometry, geometry_points and tsne as .parquet and .csv; return the folder."""
    target = Path(folder)
    write_table(result.rows, target, name="geometry", formats=("parquet", "csv"))
    write_table(result.points, target, name="geometry_points", formats=("parquet", "csv"))
    if len(result.embedding):
        write_table(result.embedding, target, name="tsne", formats=("parquet", "csv"))
    return target
