"""Analyses at scale: components against scikit-learn, memory of a pass, speed of a cluster.

Ratios within one run. QUICK=1 streams 2 GB of tokens instead of 20 GB, from a made-up run in a
local store. Names of parts as arguments (components, stream, cluster) run those alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Timer
from typing import Any

import numpy as np
import xarray as xr
from sklearn.decomposition import IncrementalPCA

from actlake.analyze import auroc, pca_run
from actlake.analyze.auroc import auroc_columns
from actlake.analyze.geometry import principal_axes
from actlake.analyze.nulls import isotropic_aurocs, isotropic_directions
from actlake.analyze.statistics import Statistics
from actlake.analyze.stream_memory import memory_needed
from actlake.analyze.streamed import (
    repool,
    streamed_axes,
    streamed_diff_means,
    streamed_lda,
    streamed_ridge,
)
from actlake.analyze.streaming import project_rows, stream_statistics
from actlake.schemas import CancelledError, PcaSpec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.harness import QUICK, compare, emit
from benchmarks.token_run import ARRAY, RUN, held_out, open_token_run, write_token_run

ROOT = Path(__file__).resolve().parent.parent
N_TEXTS, N_COMPONENTS = 400, 50
PCA_HIDDEN, PCA_LAYERS = 4096, 4 if QUICK else 32
GIGABYTES = float(os.environ.get("BENCH_GB", "2" if QUICK else "20"))
CLUSTER_GIGABYTES = 1 if QUICK else 4
HIDDEN, N_LAYERS = (1024, 2) if QUICK else (4096, 4)
WORKERS = 2
N_MATCHED = 100  # draws of the count-matched ablation
LIMIT = "600MiB" if QUICK else "1800MiB"
SECONDS = os.environ.get("BENCH_SECONDS")
CHUNK_BYTES = 16 * 2**20
POOLED = "resid_post_mean_response"
REPEATS = 3


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Yield a folder for one part: of BENCH_DIR, where it is kept, or one that is deleted."""
    kept = os.environ.get("BENCH_DIR")
    if kept is not None:
        yield Path(kept) / name
        return
    folder = Path(tempfile.mkdtemp(prefix="actlake-bench-"))
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
        folder / "pooled.zarr", mode="w", zarr_format=3, consolidated=False,
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
    with scratch("components") as folder:
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


def analyse(statistics: Statistics) -> tuple[dict[str, Any], np.ndarray]:
    """Return what is asked of one layer, from its statistics alone, and its directions."""
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
        pooled = repool(statistics, n_marks=2, drop=drop)
        test = held_out(pooled.texts)
        values, labels = pooled.values[test], pooled.texts[test] % 2 == 1
        for name, probe in probes.items():
            found[f"{name}, {arm}"] = auroc(probe.score(values), labels)
        n = min(int(labels.sum()), int((~labels).sum()))
        pairs = np.stack([values[labels][:n], values[~labels][:n]])
        directions = isotropic_directions(1000, values.shape[1], seed=0)
        null = isotropic_aurocs(pairs, directions, members=[np.arange(n)])
        found[f"random, {arm}"] = float(null.std())
    return found, np.stack([probe.unit for probe in probes.values()], axis=1)


def matched_ablation(scores: np.ndarray, cells: np.ndarray) -> dict[str, float]:
    """Return the AUROC of the probes without as many random tokens as each text has keywords.

    ``scores`` has dims (token, probe): pooling is linear, so that no draw reads a token again.
    """
    text, marked = np.divmod(cells, 2)
    chosen = held_out(text)
    text, marked, scores = text[chosen], marked[chosen], scores[chosen].astype(np.float64)
    names, code, counts = np.unique(text, return_inverse=True, return_counts=True)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    n_marked = np.bincount(code, weights=marked)
    rng, areas = np.random.default_rng(0), []
    for _ in range(N_MATCHED):
        order = np.lexsort((rng.random(code.size), code))  # shuffled inside of every text
        kept = order[np.arange(code.size) - starts[code] >= n_marked[code]]
        sums = [np.bincount(code[kept], weights=column[kept]) for column in scores.T]
        means = np.stack(sums, axis=1) / (counts - n_marked)[:, None]
        areas.append(auroc_columns(means, names % 2 == 1))
    middle = np.median(areas, axis=0)
    return {
        f"{name}, without {N_MATCHED} x as many random tokens": float(area)
        for name, area in zip(("diff_means", "ridge", "lda"), middle, strict=True)
    }


def stream(folder: Path) -> dict[str, Any]:
    """Return everything of every layer of the run in ``folder``, as far as the time went.

    All layers are one graph; where the time of a call is limited, each is one of its own, whose
    results are kept.
    """
    array, keys = open_token_run(folder)
    cancel = Event()
    layers = [int(layer) for layer in array["token_layer"].values]
    calls = [layers]
    if SECONDS is not None:
        timer = Timer(float(SECONDS), cancel.set)
        timer.daemon = True
        timer.start()
        calls = [[layer] for layer in layers]
    options: dict[str, Any] = {"scheduler": "threads", "cancel": cancel}
    found: dict[str, Any] = {}
    for wanted in calls:
        kept = folder / f"found-{wanted[0]}.json"
        if SECONDS is not None and kept.is_file():
            found |= json.loads(kept.read_text())
            continue
        try:
            made = stream_statistics(
                array, **keys, layers=wanted, then=analyse, n_workers=WORKERS,
                memory_limit=LIMIT, cache=folder / "cache", identity=str(array.shape), **options,
            )  # fmt: skip
            scores = project_rows(array, {layer: of[1] for layer, of in made.items()}, **options)
        except CancelledError:
            break
        of_call = {
            str(layer): of[0] | matched_ablation(scores[layer], keys["cells"])
            for layer, of in made.items()
        }
        kept.write_text(json.dumps(of_call))
        found |= of_call
    return found


_CHILD = """
import json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import benchmarks.analyze_scale as bench
from benchmarks.harness import peak_mib
found = bench.stream(Path(sys.argv[1])) if sys.argv[2] == "pass" else {{}}
if sys.argv[2] != "pass":
    bench.open_token_run(Path(sys.argv[1]))
print(json.dumps([peak_mib(), found]))
"""


def run_stream(
    folder: Path, what: str, *, seconds: float | None = None
) -> tuple[float, dict[str, Any]]:
    """Return the peak memory of a fresh process, MiB, and what it found."""
    limit: dict[str, str] = {} if seconds is None else {"BENCH_SECONDS": str(max(1, seconds))}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD.format(root=str(ROOT)), str(folder), what],
        stdout=subprocess.PIPE, text=True, check=True,
        env={**os.environ, "DASK_NUM_WORKERS": str(WORKERS), **limit},
    )  # fmt: skip
    peak, found = json.loads(done.stdout.splitlines()[-1])
    return peak, found


def bench_stream(figures: dict[str, Any]) -> None:
    """Everything of every layer in one pass, in a process of its own.

    With BENCH_DIR the run is written there and kept, and with BENCH_SECONDS a call ends after
    so long: the next one goes on from the layers that were finished.
    """
    with scratch("stream") as folder:
        began = time.perf_counter()
        if not (folder / "runs" / RUN / "seal.json").is_file():
            write_token_run(folder, gigabytes=GIGABYTES, hidden=HIDDEN, n_layers=N_LAYERS)
        print(f"stream: the run is there after {time.perf_counter() - began:.0f} s", flush=True)
        array, keys = open_token_run(folder)
        need = memory_needed(
            hidden=HIDDEN, rows_per_job=2 * CHUNK_BYTES // (4 * HIDDEN), n_workers=WORKERS,
            n_cells=np.unique(keys["cells"]).size,
        )  # fmt: skip
        idle, _ = run_stream(folder, "nothing")
        print(f"stream: expected {idle:.0f} MiB idle, and {need.sentence()}", flush=True)
        so_far = time.perf_counter() - began
        left = None if SECONDS is None else float(SECONDS) - so_far
        peak, found = run_stream(folder, "pass", seconds=left)
        figures["stream_gb"] = round(array.nbytes / 1e9, 2)
        figures["stream_stored_gb"] = round(
            sum(p.stat().st_size for p in folder.glob(f"runs/{RUN}/data.zarr/{ARRAY}/**/*")
                if p.is_file()) / 1e9, 2,
        )  # fmt: skip
        figures["stream_seconds"] = round(time.perf_counter() - began - so_far)
        figures["stream_peak_rss_mb"] = round(peak)
        figures["stream_idle_rss_mb"] = round(idle)
        figures["stream_stated_mb"] = round(idle + need.total / 2**20)
        figures["stream_layers"] = f"{len(found)} of {N_LAYERS}"
        figures["stream_found"] = {
            layer: {name: round(value, 4) for name, value in of.items()}
            for layer, of in found.items()
        }


# -- a cluster


def bench_cluster(figures: dict[str, Any]) -> None:
    """Run the same pass on one and on two worker processes, that read for themselves.

    ``cluster_cpu_speedup`` is what their own seconds allow where every worker has a core: on a
    machine with as many cores as workers the scheduler and the client take theirs from them.
    """
    from distributed import Client, LocalCluster

    with scratch("cluster") as folder:
        write_token_run(folder, gigabytes=CLUSTER_GIGABYTES, hidden=1024, n_layers=4)
        array, keys = open_token_run(folder)
        options: dict[str, Any] = {"threads_per_worker": 1, "processes": True}
        with (
            LocalCluster(n_workers=1, dashboard_address=None, **options) as one,
            LocalCluster(n_workers=2, dashboard_address=None, **options) as two,
            Client(one, set_as_default=False) as of_one,
            Client(two, set_as_default=False) as of_two,
        ):
            passes = {
                name: partial(
                    stream_statistics, array, **keys, then=trace,
                    scheduler=cluster.scheduler_address,
                )
                for name, cluster in (("one", one), ("two", two))
            }  # fmt: skip
            for warm in passes.values():
                warm()
            before = [worker_seconds(of_one), worker_seconds(of_two)]
            figures["cluster_speedup_2_processes"] = compare(
                "cluster_speedup_2_processes", passes["two"], passes["one"], repeats=REPEATS
            )
            alone = worker_seconds(of_one) - before[0]
            shared = worker_seconds(of_two) - before[1]
    figures["cluster_cpu_speedup"] = round(2 * alone / shared, 3)


def worker_seconds(client: Any) -> float:
    """Return the processor time of all workers of a cluster."""
    return float(sum(client.run(time.process_time).values()))


def trace(statistics: Statistics) -> float:
    """Return one number of a layer, so that no more than that comes back from a worker."""
    return statistics.total().trace


PARTS = {"components": bench_components, "stream": bench_stream, "cluster": bench_cluster}


def scale_figures(names: Sequence[str] = tuple(PARTS)) -> dict[str, Any]:
    """Return the figures of some parts, all of them by default."""
    figures: dict[str, Any] = {}
    for name in names:
        PARTS[name](figures)
    return figures


if __name__ == "__main__":
    emit(scale_figures(sys.argv[1:] or tuple(PARTS)))
