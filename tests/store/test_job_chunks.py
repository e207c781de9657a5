"""Chunks for a job: several row-blocks of one layer per task, fetched at the same time."""

import pickle
import time

import dask
import numpy as np
import pytest

from actlake.schemas import NotPulledError
from actlake.store import create_store, open_run, pull, reader
from benchmarks.latency_proxy import LatencyProxy
from tests.store.samples import make_plan, make_values, write_run

ARRAY = "resid_post_mean_response"
LATENCY_SECONDS = 0.06


def n_tasks(array):
    return sum(1 for _ in dask.core.flatten(array.__dask_keys__()))


def test_a_small_run_is_one_task_per_layer(store):
    plan = make_plan(n_texts=50, rows=4)
    write_run(store, plan)
    ds = open_run(store, "tiny", chunks="job")
    assert ds[ARRAY].chunks == ((50,), (1, 1, 1), (8,))
    assert n_tasks(open_run(store, "tiny")[ARRAY].data) == 13 * 3
    for name, values in make_values(plan).items():
        np.testing.assert_array_equal(ds[name].values, values)


def test_tasks_are_whole_row_blocks_of_at_most_the_size_of_a_job(store, monkeypatch):
    plan = make_plan(n_texts=50, rows=4)  # an object of 4 x 8 float32: 128 bytes
    write_run(store, plan)
    monkeypatch.setattr(reader, "JOB_BYTES", 3 * 128)
    ds = open_run(store, "tiny", chunks="job")
    assert ds[ARRAY].chunks == ((12, 12, 12, 12, 2), (1, 1, 1), (8,))
    assert ds["resid_post_norm"].chunks == ((28, 22), (3,))  # an object of 4 x 3 float32
    np.testing.assert_array_equal(ds[ARRAY].values, make_values(plan)[ARRAY])


def test_a_task_reads_only_its_layer(store, tmp_path):
    plan = make_plan()
    write_run(store, plan)
    pull(store, tmp_path / "part", layers=[2])
    ds = open_run(tmp_path / "part", "tiny", chunks="job")
    np.testing.assert_array_equal(ds[ARRAY].sel(layer=2).values, make_values(plan)[ARRAY][:, 1])
    with pytest.raises(NotPulledError):
        ds[ARRAY].sel(layer=0).compute()


def test_a_dataset_for_jobs_can_be_sent_to_another_process(any_store):
    plan = make_plan()
    write_run(any_store, plan)
    ds = pickle.loads(pickle.dumps(open_run(any_store, "tiny", chunks="job")))
    for name, values in make_values(plan).items():
        np.testing.assert_array_equal(ds[name].values, values)


def test_bit_patterns_are_widened_task_by_task(store):
    plan = make_plan(n_texts=50, rows=4)
    narrow = [
        spec.model_copy(update={"dtype": "bfloat16-bits"}) if len(spec.shape) == 3 else spec
        for spec in plan.arrays
    ]
    plan = plan.model_copy(update={"arrays": tuple(narrow)})
    write_run(store, plan)
    ds = open_run(store, "tiny", chunks="job")
    assert ds[ARRAY].chunks == ((50,), (1, 1, 1), (8,))
    assert ds[ARRAY].dtype == np.float32
    np.testing.assert_array_equal(ds[ARRAY].values, make_values(plan)[ARRAY])


def test_latency_is_paid_a_few_times_and_not_once_per_object(s3_server):
    plan = make_plan(n_texts=160, rows=1, n_layers=2)
    options = s3_server.options()
    url = f"{s3_server.url}/far-away"
    write_run(create_store(url, storage_options=options), plan)
    with LatencyProxy(s3_server.endpoint, seconds=LATENCY_SECONDS) as endpoint:
        ds = open_run(
            url, "tiny", storage_options={**options, "endpoint_url": endpoint}, chunks="job"
        )
        ds[ARRAY].sel(layer=0).compute()  # connections are made
        start = time.monotonic()
        found = ds[ARRAY].sel(layer=2).values
        seconds = time.monotonic() - start
    np.testing.assert_array_equal(found, make_values(plan)[ARRAY][:, 1])
    assert seconds < 160 * LATENCY_SECONDS / 4  # one after another: 9.6 s
