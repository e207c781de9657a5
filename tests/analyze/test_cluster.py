"""The same numbers from separate processes that read a real S3 server for themselves."""

from __future__ import annotations

import threading
import uuid

import numpy as np
import pandas as pd
import pytest
from distributed import LocalCluster

from actlake.analyze import JobCache, analyze_parts
from actlake.analyze.geometry_run import geometry_run
from actlake.analyze.similarity_run import similarity_run
from actlake.analyze.streamed import streamed_axes, streamed_diff_means
from actlake.analyze.streaming import stream_statistics
from actlake.analyze.transfer_run import transfer_run
from actlake.schemas import (
    AnalyzeSpec,
    CancelledError,
    GeometrySpec,
    SimilaritySpec,
    TransferSpec,
)
from actlake.store import create_store, open_runs
from tests.analyze.stored import ARRAY, write_run


@pytest.fixture(scope="module")
def runs(synthetic_run, s3_server):
    """Two runs of the same texts on S3, opened with the server's credentials."""
    store = create_store(f"{s3_server.url}/{uuid.uuid4().hex}", storage_options=s3_server.options())
    for name, hidden in (("a", 12), ("b", 9)):
        run = synthetic_run(n_neutral=12, hidden=hidden, strength=2.0, n_test_scenarios=2)
        write_run(store, run.ds, name=name, rows=20)
    return open_runs(store)


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as made:
        yield made.scheduler_address


def analyses(scheduler):
    """The run analyses by name, on one scheduler."""
    return {
        "geometry": lambda runs: (
            geometry_run(
                runs["a"],
                spec=GeometrySpec(n_permutations=50, n_splits=5, n_bootstrap=5, tsne_seeds=()),
                scheduler=scheduler,
            ).rows
        ),
        "similarity": lambda runs: similarity_run(runs, spec=SimilaritySpec(), scheduler=scheduler),
        "transfer": lambda runs: transfer_run(
            runs,
            spec=TransferSpec(n_permuted=3, n_random=20, n_bootstrap=50, maps=("ridge",)),
            scheduler=scheduler,
        ),
    }


@pytest.mark.parametrize("name", ["geometry", "similarity", "transfer"])
def test_a_cluster_gives_the_tables_of_threads(runs, cluster, name):
    here, there = (analyses(scheduler)[name](runs) for scheduler in ("threads", cluster))
    pd.testing.assert_frame_equal(here, there)


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


def test_row_blocks_are_read_by_the_workers_and_add_up_the_same(runs, cluster):
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
        array, **options, scheduler=cluster, progress=lambda *at: told.append(at)
    )
    assert here.keys() == there.keys() == {0, 1}
    for layer in here:
        for one, other in zip(here[layer], there[layer], strict=True):
            np.testing.assert_array_equal(one, other)
    assert told[-1] == (2, 2)


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
