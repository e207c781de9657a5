"""Analyses at scale: components against scikit-learn, memory of a pass, speed of a cluster.

Ratios within one run. QUICK=1 streams 2 GB of tokens instead of 20 GB. The token array is an
ordinary Zarr v3 array with the chunks of a run, (rows, 1, hidden), filled with made-up values.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from sklearn.decomposition import IncrementalPCA

from actlake.analyze import auroc, pca_run
from actlake.analyze.geometry import principal_axes
from actlake.analyze.nulls import isotropic_aurocs, isotropic_directions
from actlake.analyze.statistics import Statistics
from actlake.analyze.streamed import (
    repool,
    streamed_axes,
    streamed_diff_means,
    streamed_lda,
    streamed_ridge,
)
from actlake.analyze.streaming import memory_needed, spread_over_tokens, stream_statistics
from actlake.schemas import PcaSpec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.harness import QUICK, compare, emit

ROOT = Path(__file__).resolve().parent.parent
N_TEXTS, N_COMPONENTS = 400, 50
PCA_HIDDEN, PCA_LAYERS = 4096, 4 if QUICK else 32
GIGABYTES = float(os.environ.get("BENCH_GB", "2" if QUICK else "20"))
HIDDEN, N_LAYERS = (1024, 2) if QUICK else (4096, 4)
LIMIT = "600MiB" if QUICK else "1800MiB"
CHUNK_BYTES = 16 * 2**20
POOLED = "resid_post_mean_response"
MARKS = 2  # tokens that are a keyword, and others
REPEATS = 3


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="actlake-bench-", dir=os.environ.get("BENCH_DIR")))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# -- components


def made_up(rng: np.random.Generator, n: int, hidden: int) -> np.ndarray:
    """Return rows with a spectrum that falls like that of activations, and an offset."""
    spectrum = (1 + np.arange(n)) ** -0.7
    basis = rng.standard_normal((n, hidden), dtype=np.float32)
    return 5 + (rng.standard_normal((n, n)) * spectrum).astype(np.float32) @ basis


def pooled_run(folder: Path, rng: np.random.Generator) -> xr.Dataset:
    """Return a pooled run of 400 texts, one object a layer, opened from a folder."""
    values = np.stack([made_up(rng, N_TEXTS, PCA_HIDDEN) for _ in range(PCA_LAYERS)], axis=1)
    number = np.arange(N_TEXTS)
    names = {"arm": "positive", "generator": "g", "category": "c", "subset": "none"}
    coords = {
        "text": [f"t{i:03d}" for i in number],
        "layer": np.arange(PCA_LAYERS, dtype=np.int32),
        "label": ("text", (number % 2).astype(np.int8)),
        "pair": ("text", [f"p{i // 2:03d}" for i in number]),
        "scenario": ("text", [f"s{i // 20:02d}" for i in number]),
        "split": ("text", ["train"] * N_TEXTS),
        "variant": ("text", ["original"] * N_TEXTS),
        **{name: ("text", [value] * N_TEXTS) for name, value in names.items()},
    }
    data = (("text", "layer", "hidden"), values)
    xr.Dataset({POOLED: data}).to_zarr(
        folder / "pooled.zarr", zarr_format=3, consolidated=False,
        encoding={POOLED: {"chunks": (N_TEXTS, 1, PCA_HIDDEN), "compressors": None}},
    )  # fmt: skip
    lazy = xr.open_zarr(folder / "pooled.zarr", consolidated=False)
    named: xr.Dataset = lazy.assign_coords(coords).assign_attrs(n_layers=PCA_LAYERS)
    return named


def bench_components(figures: dict[str, Any]) -> None:
    """Find the components of every layer of a stored run, against IncrementalPCA of each layer.

    Both read the same objects of the same folder; both have all cores. IncrementalPCA takes the
    400 texts in one batch, by its own default: in smaller ones it would be less accurate.
    """
    found: dict[str, Any] = {}
    with scratch() as folder:
        ds = pooled_run(folder, np.random.default_rng(0))

        def ours() -> None:
            pca_run(ds, spec=PcaSpec(n_components=N_COMPONENTS), scheduler="threads")

        def theirs() -> None:
            layers = (ds[POOLED].isel(layer=k).values for k in range(PCA_LAYERS))
            found["theirs"] = [IncrementalPCA(N_COMPONENTS).fit(x) for x in layers]

        figures["pca_vs_sklearn"] = compare("pca_vs_sklearn", ours, theirs, repeats=REPEATS)
        first = ds[POOLED].isel(layer=0).values
    exact_rows = first.astype(np.float64)
    exact = np.linalg.svd(exact_rows - exact_rows.mean(axis=0), compute_uv=False)
    axes = principal_axes(first, n_components=N_COMPONENTS)
    at = N_COMPONENTS - 1
    for name, value in (
        ("pca_error_50", np.sqrt(axes.variance[at] * (N_TEXTS - 1))),
        ("sklearn_error_50", found["theirs"][0].singular_values_[at]),
    ):
        figures[name] = float(abs(value - exact[at]) / exact[at])


# -- one pass over tokens


def write_tokens(folder: Path, *, gigabytes: float, hidden: int, n_layers: int) -> None:
    """Write a token array whose texts have a label, and keywords that carry half of it."""
    rows = CHUNK_BYTES // (4 * hidden)
    n_chunks = max(8, round(gigabytes * 1e9 / (n_layers * rows * hidden * 4)))
    n = n_chunks * rows
    text = np.sort(np.random.default_rng(0).integers(0, N_TEXTS, n)).astype(np.int32)
    group = zarr.open_group(folder / "tokens.zarr", mode="w", zarr_format=3)
    array = group.create_array(
        "resid_post_tokens", shape=(n, n_layers, hidden), chunks=(rows, 1, hidden),
        dtype="float32", compressors=None, dimension_names=("token", "layer", "hidden"),
    )  # fmt: skip
    group.create_array("token_text", data=text, dimension_names=("token",))
    group.create_array(
        "layer", data=np.arange(n_layers, dtype=np.int32), dimension_names=("layer",)
    )
    scale = np.linspace(2, 0.5, hidden).astype(np.float32)
    for chunk in range(n_chunks):
        part = slice(chunk * rows, (chunk + 1) * rows)
        for layer in range(n_layers):
            rng = np.random.default_rng((chunk, layer))
            x = rng.standard_normal((rows, hidden), dtype=np.float32) * scale
            x[:, 0] += 0.2 * (text[part] % 2) * (1 + keywords(text[part].size))
            array[part, layer] = x


def keywords(n: int) -> np.ndarray:
    """Return which of ``n`` tokens are keywords: every tenth."""
    marks: np.ndarray = (np.arange(n) % 10 == 0).astype(np.int64)
    return marks


def open_tokens(folder: Path) -> tuple[xr.DataArray, dict[str, Any]]:
    """Return the array, and the parts, cells and targets of its tokens."""
    ds = xr.open_zarr(folder / "tokens.zarr", chunks=None, consolidated=False)
    text = ds["token_text"].values.astype(np.int64)
    label, train = np.arange(N_TEXTS) % 2, np.arange(N_TEXTS) // 2 % 4 < 3
    return ds["resid_post_tokens"], {
        "parts": spread_over_tokens(np.where(train, 0, -1), text),
        "cells": text * MARKS + keywords(text.size),
        "targets": spread_over_tokens(label.astype(float), text)[:, None],
    }


def analyse(statistics: Statistics) -> dict[str, Any]:
    """Return everything that is asked of one layer, from its statistics alone."""
    moments = statistics.total()
    axes = streamed_axes(moments, n_components=N_COMPONENTS)
    found: dict[str, Any] = {
        "singular_50": float(np.sqrt(axes.variance[-1] * (moments.n - 1))),
        "effective_rank": axes.effective_rank,
    }
    probes = {
        "diff_means": streamed_diff_means(moments),
        "ridge": streamed_ridge(moments, penalty=1.0),
        "lda": streamed_lda(moments),
    }
    for arm, drop in (("whole", ()), ("without keywords", (1,))):
        pooled = repool(statistics, n_marks=MARKS, drop=drop)
        test = pooled.texts // 2 % 4 == 3
        values, labels = pooled.values[test], pooled.texts[test] % 2 == 1
        for name, probe in probes.items():
            found[f"{name}, {arm}"] = auroc(probe.score(values), labels)
        n = min(int(labels.sum()), int((~labels).sum()))
        pairs = np.stack([values[labels][:n], values[~labels][:n]])
        directions = isotropic_directions(1000, values.shape[1], seed=0)
        null = isotropic_aurocs(pairs, directions, members=[np.arange(n)])
        found[f"random, {arm}"] = float(null.std())
    return found


_STREAM = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import benchmarks.analyze_scale as bench
array, keys = bench.open_tokens(Path(sys.argv[1]))
if sys.argv[2] == "pass":
    found = bench.stream_statistics(
        array, **keys, then=bench.analyse, scheduler="threads", n_workers=2,
        memory_limit=bench.LIMIT,
    )
else:
    found = {{}}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([peak, found]))
"""


def run_stream(folder: Path, what: str) -> tuple[float, dict[str, Any]]:
    """Return the peak memory of a fresh process, MiB, and what it found."""
    done = subprocess.run(
        [sys.executable, "-c", _STREAM.format(root=str(ROOT)), str(folder), what],
        stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "DASK_NUM_WORKERS": "2"},
    )  # fmt: skip
    peak, found = json.loads(done.stdout.splitlines()[-1])
    return peak, found


def bench_stream(figures: dict[str, Any]) -> None:
    """Everything of every layer in one pass, in a process of its own."""
    with scratch() as folder:
        write_tokens(folder, gigabytes=GIGABYTES, hidden=HIDDEN, n_layers=N_LAYERS)
        array, keys = open_tokens(folder)
        figures["stream_gb"] = round(array.nbytes / 1e9, 2)
        idle, _ = run_stream(folder, "nothing")
        peak, found = run_stream(folder, "pass")
        figures["stream_peak_rss_mb"] = round(peak)
        figures["stream_idle_rss_mb"] = round(idle)
        need = memory_needed(
            hidden=HIDDEN, rows_per_job=2 * CHUNK_BYTES // (4 * HIDDEN), n_workers=2,
            n_cells=np.unique(keys["cells"]).size,
        )  # fmt: skip
        figures["stream_stated_mb"] = round(need.total / 2**20)
        figures["stream_found"] = {name: round(value, 4) for name, value in found["0"].items()}


# -- a cluster


def bench_cluster(figures: dict[str, Any]) -> None:
    """Run the same pass on one and on two worker processes."""
    from distributed import LocalCluster

    with scratch() as folder:
        write_tokens(folder, gigabytes=0.4 if QUICK else 2, hidden=1024, n_layers=2)
        array, keys = open_tokens(folder)
        options: dict[str, Any] = {"threads_per_worker": 1, "processes": True}
        with (
            LocalCluster(n_workers=1, dashboard_address=None, **options) as one,
            LocalCluster(n_workers=2, dashboard_address=None, **options) as two,
        ):
            passes = {
                name: partial(
                    stream_statistics, array, **keys, then=trace, task_bytes="16MiB",
                    scheduler=cluster.scheduler_address,
                )
                for name, cluster in (("one", one), ("two", two))
            }  # fmt: skip
            for warm in passes.values():
                warm()
            figures["cluster_speedup_2_processes"] = compare(
                "cluster_speedup_2_processes", passes["two"], passes["one"], repeats=REPEATS
            )


def trace(statistics: Statistics) -> float:
    """Return one number of a layer, so that no more than that comes back from a worker."""
    return statistics.total().trace


def main() -> None:
    """Run everything; print the figures."""
    figures: dict[str, Any] = {}
    bench_components(figures)
    bench_stream(figures)
    bench_cluster(figures)
    emit(figures)


if __name__ == "__main__":
    main()
