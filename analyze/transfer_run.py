"""Probes of every run on every other, one Dask task per pair of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from threading import Event

import numpy as np
import pandas as pd
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from ..schemas import (
    BagOfWordsSpec,
    InvalidInputError,
    NotFoundError,
    Text,
    TransferRow,
    TransferSpec,
    array_name,
    digest_json,
)
from .arrays import layer_values
from .auroc import Floats
from .bootstrap import draw_pair_weights
from .common import common_pools, common_texts, nearest_layers
from .jobs import Jobs, job_name, run_jobs
from .maps import MIN_ANCHORS
from .schedule import Progress
from .splits import Fold, PairTable, pair_table, scenario_folds, split_fold
from .table import dataset_provenance, relative_depth
from .tidy import record_frame
from .transfer import TransferJob, transfer_layer
from .words import bag_of_words_scores, pair_responses

__all__ = ["layer_place", "map_anchors", "transfer_run"]


def transfer_run(
    runs: Mapping[str, xr.Dataset],
    texts: Sequence[Text] | None = None,
    *,
    spec: TransferSpec,
    site: str | None = None,
    scheduler: str | None = None,
    progress: Progress | None = None,
    cancel: Event | None = None,
    jobs: Jobs | None = None,
    n_workers: int | None = None,
) -> pd.DataFrame:
    """Return what the probes of every run reach on every other run, with every control.

    Parameters
    ----------
    runs
        Opened runs by name, as ``open_runs`` gives them.
    texts
        Their corpus, for the bag of words; without it there is no floor.
    spec
        Maps, anchors, pairs of layers, draws.
    site, scheduler, progress, cancel, jobs, n_workers
        See :func:`geometry_run`: one job per pool, source, target and pair of layers.

    Returns
    -------
    DataFrame with the columns of TransferRow; ``run`` and ``layer`` are the target's. Rows of
    metric ``auroc`` with a map and no ``control`` are the transfers.

    Raises
    ------
    InvalidInputError
        If the runs have no texts in common, there are too few anchors, or a layer has NaN rows.
    NotFoundError
        If a layer of ``spec.layers``, a site or a pool is missing.
    """
    opened = common_texts(runs)
    chosen, pools = common_pools(opened, site=site, pools=spec.pools)
    first = next(iter(opened.values()))
    job, cv, split_digest = _job(first, texts, spec)
    shared = delayed(job, traverse=False)
    tasks = {}
    for pool in pools:
        for source, target in permutations(opened, 2):
            for pair in _layer_pairs(opened[source], opened[target], spec):
                values = [
                    layer_values(
                        opened[name],
                        array_name(chosen, pool),
                        layer_place(opened[name], layer, name),
                    )
                    for name, layer in zip((source, target), pair, strict=True)
                ]
                where = [
                    f"run {name}, pool {pool}, layer {layer}"
                    for name, layer in zip((source, target), pair, strict=True)
                ]
                tasks[pool, source, target, *pair] = delayed(transfer_layer)(
                    *values, shared, where=tuple(where)
                )
    done = run_jobs(
        {job_name(*place): task for place, task in tasks.items()},
        jobs=jobs,
        scheduler=scheduler,
        progress=progress,
        cancel=cancel,
        n_workers=n_workers,
    )
    results = [done[job_name(*place)] for place in tasks]
    counts = {
        "n_pairs": int(job.pairs.size),
        "n_texts": 2 * int(job.pairs.size),
        "n_scenarios": int(np.unique(job.table.scenario[job.pairs]).size),
        "n_generators": int(np.unique(job.table.generator[job.pairs]).size),
        "n_anchors": int(job.anchors.size),
        "anchor_groups": _group_unit(job),
        "cv": cv,
        "split_digest": split_digest,
        "dataset_digest": digest_json(
            [job.table.texts[:, job.pairs].tolist(), job.texts[job.anchors].tolist()]
        ),
        "groups": "scenario",
        "method": "diff_means",
        "seed": spec.seed,
    }
    rows: list[TransferRow] = []
    for (pool, source, target, of_source, of_target), found in zip(tasks, results, strict=True):
        head = {
            "analysis": "transfer",
            **dataset_provenance(opened[target]),
            "run": target,
            "source_run": source,
            "source_model": dataset_provenance(opened[source])["model"],
            "site": chosen,
            "pool": pool,
            "source_layer": of_source,
            "source_depth": relative_depth(of_source, opened[source]),
            "layer": of_target,
            "depth": relative_depth(of_target, opened[target]),
            **counts,
        }
        rows.extend(TransferRow(**{**head, **fields}) for fields in found)
    return record_frame(rows, TransferRow)


def _group_unit(job: TransferJob) -> str:
    return "scenario" if np.unique(job.groups).size < job.groups.size else "text"


def _job(
    ds: xr.Dataset, texts: Sequence[Text] | None, spec: TransferSpec
) -> tuple[TransferJob, str, str]:
    """Return what all pairs of layers share, and the name and digest of the cross-validation."""
    table = pair_table(ds)
    anchors, groups = map_anchors(ds, table, spec)
    folds: tuple[Fold, ...]
    if spec.anchors == "train":
        split = split_fold(table, max_folds=spec.max_folds, seed=spec.seed)
        if split.test.size < 2:
            msg = (
                f"anchors = 'train' scores pairs of the test split, got {split.test.size}; mark "
                "scenarios as test, or take neutral anchors"
            )
            raise InvalidInputError(msg)
        folds, cv = (split,), "train→test split"
        digest = digest_json(sorted(table.pair[split.test].tolist()))
    else:
        scheme = scenario_folds(table, max_folds=spec.max_folds, seed=spec.seed)
        folds, cv, digest = scheme.folds, scheme.scheme, scheme.digest
    pairs = np.sort(np.concatenate([fold.test for fold in folds]))
    words: Floats | None = None
    if texts is not None:
        responses = pair_responses(texts, table)
        words = bag_of_words_scores(responses, folds, spec=BagOfWordsSpec())[:, pairs]
    job = TransferJob(
        table=table,
        folds=folds,
        pairs=pairs,
        anchors=anchors,
        groups=groups,
        texts=np.asarray(ds["text"].values).astype(str),
        weights=draw_pair_weights(table.scenario[pairs], n_draws=spec.n_bootstrap, seed=spec.seed),
        words=words,
        spec=spec,
    )
    return job, cv, digest


def map_anchors(
    ds: xr.Dataset, table: PairTable, spec: TransferSpec
) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Return the rows that maps are fitted on, and what is held out of them together.

    The scenario is the group; where the anchors have fewer than three, each text is its own.
    """
    label = np.asarray(ds["label"].values)
    original = np.asarray(ds["variant"].values).astype(str) == "original"
    if spec.anchors == "neutral":
        rows = np.flatnonzero((label < 0) & original)
    else:
        rows = np.sort(table.rows[:, table.split != "test"].ravel())
    if rows.size < MIN_ANCHORS:
        msg = (
            f"maps between models are fitted on {spec.anchors} texts that the pairs do not use, "
            f"and the runs have {rows.size} of them in common; expected {MIN_ANCHORS} or more. "
            "Add neutral texts to the corpus, or take anchors = 'train', which scores the pairs "
            "of the test split alone"
        )
        raise InvalidInputError(msg)
    groups = np.asarray(ds["scenario"].values).astype(str)[rows]
    if np.unique(groups).size < 3:
        groups = np.asarray(ds["text"].values).astype(str)[rows]
    return rows, groups


def _layer_pairs(
    source: xr.Dataset, target: xr.Dataset, spec: TransferSpec
) -> list[tuple[int, int]]:
    return nearest_layers(source, target) if spec.layers is None else list(spec.layers)


def layer_place(ds: xr.Dataset, layer: int, name: str) -> int:
    """Return where ``layer`` stands in a run."""
    layers = [int(value) for value in ds["layer"].values]
    if layer not in layers:
        msg = f"run {name!r} has no layer {layer}; it has {layers}"
        raise NotFoundError(msg)
    return layers.index(layer)
