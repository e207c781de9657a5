"""The same numbers from separate processes that read a real S3 server for themselves."""

from __future__ import annotations

import functools
import threading
import uuid
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import dask
import numpy as np
import pandas as pd
import pytest
from dask.multiprocessing import initialize_worker_process
from distributed import LocalCluster

from actlake.analyze import JobCache, analyze_parts
from actlake.analyze.battery import PARTS, analyze_run
from actlake.analyze.components import pca_run
from actlake.analyze.geometry_run import geometry_run
from actlake.analyze.similarity_run import similarity_run
from actlake.analyze.streamed import streamed_axes, streamed_diff_means
from actlake.analyze.streaming import project_rows, stream_statistics
from actlake.analyze.transfer_run import transfer_run
from actlake.schemas import (
    AnalyzeSpec,
    CancelledError,
    GeometrySpec,
    PcaSpec,
    SimilaritySpec,
    TransferSpec,
)
from actlake.store import create_store, open_runs
from tests.analyze.stored import ARRAY, write_run

SPEC = AnalyzeSpec.parse(
    {
        "probe": {"methods": ["diff_means", "lda", "logistic", "ridge", "pca_diff"],
                  "n_bootstrap": 10, "c_grid": [0.1], "lambda_grid": [0.1, 10.0],
                  "n_reliability": 2},
        "random": {"n_directions": 19},
        "nulls": {"n_draws": 19},
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def written(synthetic_run, s3_server):
    """A store on S3 with two runs of the same texts, and the texts."""
    store = create_store(f"{s3_server.url}/{uuid.uuid4().hex}", storage_options=s3_server.options())
    for name, hidden in (("a", 12), ("b", 9)):
        run = synthetic_run(n_neutral=12, hidden=hidden, strength=2.0, n_test_scenarios=2)
        write_run(store, run.ds, name=name, rows=20)
    return store, run.texts


@pytest.fixture(scope="module")
def runs(written):
    """The runs, opened with the server's credentials."""
    return open_runs(written[0])


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as made:
        yield made.scheduler_address


@pytest.fixture(scope="module")
def pool():
    """Dask's own processes, started once for all tests."""
    with ProcessPoolExecutor(
        2, mp_context=get_context("spawn"), initializer=initialize_worker_process
    ) as made:
        yield made


@pytest.fixture(params=["processes", "cluster"])
def elsewhere(request):
    """The schedulers whose tasks run outside of this process."""
    if request.param == "cluster":
        yield request.getfixturevalue("cluster")
        return
    with dask.config.set(pool=request.getfixturevalue("pool")):
        yield "processes"


def suite_tables(runs, texts, scheduler):
    """Every table of the suite."""
    found = analyze_run(runs["a"], texts, spec=SPEC, scheduler=scheduler)
    assert list(found) == list(PARTS)
    rows = [of.rows for name, of in found.items() if name != "random"]
    return [found["random"].bands, found["nulls"].bands, *rows]


def analyses(scheduler, texts):
    """The run analyses by name, on one scheduler; each gives its tables."""
    return {
        "suite": lambda runs: suite_tables(runs, texts, scheduler),
        "pca": lambda runs: [
            pca_run(runs["a"], spec=PcaSpec(n_components=4), scheduler=scheduler).rows
        ],
        "geometry": lambda runs: [
            geometry_run(
                runs["a"],
                spec=GeometrySpec(n_permutations=50, n_splits=5, n_bootstrap=5, tsne_seeds=()),
                scheduler=scheduler,
            ).rows
        ],
        "similarity": lambda runs: [
            similarity_run(runs, spec=SimilaritySpec(), scheduler=scheduler)
        ],
        "transfer": lambda runs: [
            transfer_run(
                runs,
                spec=TransferSpec(n_permuted=3, n_random=20, n_bootstrap=50, maps=("ridge",)),
                scheduler=scheduler,
            )
        ],
    }


@pytest.fixture(scope="module")
def on_threads(runs, written):
    """The tables that threads give, by the name of the analysis, each made once."""
    return functools.cache(lambda name: analyses("threads", written[1])[name](runs))


@pytest.mark.parametrize("name", ["suite", "pca", "geometry", "similarity", "transfer"])
def test_other_processes_give_the_tables_of_threads(runs, written, on_threads, elsewhere, name):
    tables = analyses(elsewhere, written[1])[name](runs)
    for here, there in zip(on_threads(name), tables, strict=True):
        pd.testing.assert_frame_equal(here, there, rtol=1e-7, atol=1e-9)


def test_other_processes_give_the_projections_of_threads(runs, elsewhere):
    array = runs["a"][ARRAY].rename(text="token")
    drawn = np.random.default_rng(0).standard_normal((2, 12, 3))
    options = {"directions": dict(enumerate(drawn)), "task_bytes": 20 * 12 * 4}
    here = project_rows(array, **options, scheduler="threads")
    there = project_rows(array, **options, scheduler=elsewhere)
    assert here.keys() == there.keys()
    for layer in here:
        np.testing.assert_array_equal(here[layer], there[layer])


def test_parts_on_a_cluster_are_those_of_threads_and_are_kept_here(
    runs, cluster, synthetic_run, tmp_path
):
    """The layers are computed by processes that read S3; their results are kept by this one."""
    texts = synthetic_run(n_neutral=12, hidden=12, strength=2.0, n_test_scenarios=2).texts
    spec = AnalyzeSpec.parse(
        {"probe": {"methods": ["diff_means", "logistic"], "n_bootstrap": 5, "n_reliability": 2,
                   "c_grid": [0.01, 1.0]},
         "random": {"n_directions": 9}, "nulls": {"n_draws": 9}},
        where="test",
    )  # fmt: skip
    cache, told, said = JobCache(tmp_path, "content"), [], []
    here = analyze_parts(runs["a"], texts, spec=spec, scheduler="threads")
    there = analyze_parts(
        runs["a"], texts, spec=spec, scheduler=cluster, cache=cache, say=said.append,
        progress=lambda *at: told.append(at),
    )  # fmt: skip
    assert told == [(1, 2), (2, 2)]
    assert "a job on a worker" in said[0]
    assert len(list(tmp_path.rglob("*.npz"))) == 2 * len(here)
    kept = analyze_parts(runs["a"], texts, spec=spec, scheduler="tcp://127.0.0.1:9", cache=cache)
    for part, result in here.items():
        for name in ("rows", "bands", "null", "scores"):
            if hasattr(result, name):
                expected = getattr(result, name)
                pd.testing.assert_frame_equal(getattr(there[part], name), expected)
                pd.testing.assert_frame_equal(getattr(kept[part], name), expected)


def finished(statistics):
    total = statistics.total()
    return streamed_axes(total, n_components=2).variance, streamed_diff_means(total).weight


def test_row_blocks_are_read_by_the_workers_and_add_up_the_same(runs, elsewhere):
    array = runs["a"][ARRAY].rename(text="token")
    label = runs["a"]["label"].values
    options = {
        "parts": np.where(label < 0, -1, np.arange(label.size) % 3),
        "targets": (label == 1).astype(float)[:, None],
        "then": finished,
        "task_bytes": 20 * 12 * 4,
        "memory_limit": "64MiB",
    }
    told: list[tuple[int, int]] = []
    here = stream_statistics(array, **options, scheduler="threads")
    there = stream_statistics(
        array, **options, scheduler=elsewhere, progress=lambda *at: told.append(at)
    )
    assert here.keys() == there.keys() == {0, 1}
    for layer in here:
        for one, other in zip(here[layer], there[layer], strict=True):
            np.testing.assert_array_equal(one, other)
    done, total = told[-1]
    assert done == total >= 2


def test_a_cancelled_cluster_job_ends(runs, cluster):
    cancel = threading.Event()
    cancel.set()
    label = runs["a"]["label"].values
    with pytest.raises(CancelledError, match="cancelled after 0 of 2 tasks"):
        stream_statistics(
            runs["a"][ARRAY].rename(text="token"),
            parts=label.astype(np.int64),
            scheduler=cluster,
            cancel=cancel,
        )
