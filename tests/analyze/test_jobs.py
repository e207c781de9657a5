"""Jobs that are kept: what comes back is what was computed, and only what is missing is."""

from __future__ import annotations

import dataclasses
import math
import threading

import numpy as np
import pytest
from dask.delayed import delayed
from hypothesis import given
from hypothesis import strategies as st

from actlake.analyze import JobCache
from actlake.analyze.battery import analyze_parts
from actlake.analyze.jobs import job_name, run_jobs
from actlake.analyze.packing import load_value, save_value
from actlake.analyze.parts import Failure
from actlake.schemas import (
    AnalyzeSpec,
    CancelledError,
    CorruptError,
    InvalidInputError,
    ProbeSpec,
    Reliability,
)

SPEC = AnalyzeSpec.parse(
    {
        "probe": {"methods": ["diff_means", "ridge", "logistic"], "n_bootstrap": 10,
                  "c_grid": [0.01, 1.0], "n_reliability": 2},
        "random": {"n_directions": 9}, "nulls": {"n_draws": 9},
    },
    where="test",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Kept:
    numbers: np.ndarray
    name: str
    inner: object = None


def equal(one, two):
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
    if isinstance(one, float) and isinstance(two, float):
        return one == two or (math.isnan(one) and math.isnan(two))
    if isinstance(one, dict):
        pairs = zip(one.values(), two.values(), strict=True)
        return list(one) == list(two) and all(equal(a, b) for a, b in pairs)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(equal, one, two))
    if dataclasses.is_dataclass(one):
        return type(one) is type(two) and equal(vars(one), vars(two))
    return type(one) is type(two) and one == two


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
arrays = st.lists(st.floats(width=32), max_size=4).map(lambda v: np.array(v, dtype=np.float32))
values = st.recursive(
    scalars | arrays,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.lists(inside, max_size=3).map(tuple)
        | st.dictionaries(st.tuples(st.text(max_size=2), st.none() | st.integers()), inside,
                          max_size=3)
        | st.builds(Kept, arrays, st.text(max_size=3), inside)
    ),
    max_leaves=8,
)  # fmt: skip


@given(value=values)
def test_a_value_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.npz"
    save_value(value, path)
    assert equal(load_value(path, records=[Kept]), value)


def test_records_come_back_and_what_is_not_expected_does_not(tmp_path):
    cosines = {"split_half": 0.5, "spearman_brown": 0.7, "bootstrap": 0.9, "bootstrap_low": 0.1}
    firm = Reliability(**cosines, n_draws=3)
    save_value({"a": firm, "b": Kept(np.arange(3), "x")}, tmp_path / "v.npz")
    assert load_value(tmp_path / "v.npz", records=[Reliability, Kept])["a"] == firm
    with pytest.raises(CorruptError, match="holds no result of a job"):
        load_value(tmp_path / "v.npz", records=[Reliability])
    (tmp_path / "v.npz").write_bytes(b"PK")
    with pytest.raises(CorruptError, match=r"delete it and run again"):
        load_value(tmp_path / "v.npz", records=[])
    for strange in (np.array([object()]), object(), {1, 2}):
        with pytest.raises(TypeError, match="cannot be kept"):
            save_value(strange, tmp_path / "s.npz")
    assert not (tmp_path / "s.npz").exists()


def counted(calls, number):
    calls.append(number)
    return number * 2.0


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_what_is_kept_is_read_and_what_is_damaged_is_computed_again(tmp_path, scheduler):
    jobs = JobCache(tmp_path, "content").jobs("some", {"a": 1})
    calls: list[int] = []
    told: list[tuple[int, int]] = []

    def run(numbers):
        return run_jobs(
            {job_name("pool", n): delayed(counted)(calls, n) for n in numbers},
            jobs=jobs,
            scheduler=scheduler,
            progress=lambda *at: told.append(at),
        )

    first = run([0, 1])
    assert list(first.values()) == [0.0, 2.0]
    assert told == [(1, 2), (2, 2)]
    assert run([0, 1, 2])["pool-0002"] == 4.0
    assert sorted(calls) == [0, 1, 2]
    assert told[2:] == [(3, 3)]
    jobs.path("pool-0001").write_bytes(b"torn")
    assert list(run([0, 1, 2]).values()) == [0.0, 2.0, 4.0]
    assert sorted(calls) == [0, 1, 1, 2]


def test_another_spec_version_or_content_is_another_folder(tmp_path, monkeypatch):
    import actlake.analyze.jobs as room

    one = JobCache(tmp_path, "content").jobs("some", {"a": 1})
    assert JobCache(tmp_path, "content").jobs("some", {"a": 1}) == one
    other = [
        JobCache(tmp_path, "content").jobs("some", {"a": 2}),
        JobCache(tmp_path, "other").jobs("some", {"a": 1}),
    ]
    monkeypatch.setattr(room, "JOB_VERSION", room.JOB_VERSION + 1)
    other.append(JobCache(tmp_path, "content").jobs("some", {"a": 1}))
    assert len({one.folder, *(of.folder for of in other)}) == 4
    someone = JobCache(tmp_path, "content").jobs("someone", {})
    JobCache(tmp_path, "content").keep_only(one, "some")
    assert one.folder.is_dir()
    assert someone.folder.is_dir()
    assert not any(of.folder.exists() for of in other)


def test_what_was_done_before_a_cancellation_stays(tmp_path):
    jobs = JobCache(tmp_path, "content").jobs("some", {})
    cancel = threading.Event()
    calls: list[int] = []

    def stop(done, total):
        if done == 2:
            cancel.set()

    tasks = {job_name("p", n): delayed(counted)(calls, n) for n in range(5)}
    options = {"jobs": jobs, "scheduler": "synchronous"}
    with pytest.raises(CancelledError, match="run it again to go on"):
        run_jobs(tasks, progress=stop, cancel=cancel, **options)
    assert len(list(jobs.folder.glob("*.npz"))) == len(calls) == 2
    assert list(run_jobs(tasks, **options).values()) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert len(calls) == 5


def analyse(run, cache, **changes):
    spec = SPEC.model_copy(update=changes)
    parts = ["probe", "nulls", "confounds", "random"]
    return analyze_parts(
        run.ds, run.texts, spec=spec, parts=parts, scheduler="synchronous", cache=cache
    )


@pytest.fixture(scope="module")
def two_pools(synthetic_run):
    return synthetic_run(pools=("mean_response", "last_prompt"), n_layers=2, n_neutral=3,
                         n_test_scenarios=1)  # fmt: skip


def fits(monkeypatch):
    """Record which part was computed on which layer of which pool."""
    import actlake.analyze.parts as room

    seen = []
    real = room._fit_parts

    def watched(values, shared, *, which, pool, layer):
        seen.extend((pool, layer, at) for at in which)
        return real(values, shared, which=which, pool=pool, layer=layer)

    monkeypatch.setattr(room, "_fit_parts", watched)
    return seen


def test_kept_layers_give_the_tables_of_a_first_call(two_pools, tmp_path, monkeypatch):
    seen = fits(monkeypatch)
    cache = JobCache(tmp_path, "content")
    first = analyse(two_pools, cache)
    assert len(seen) == 2 * 2 * 4
    again = analyse(two_pools, cache)
    assert len(seen) == 2 * 2 * 4
    for part in first:
        for name in ("rows", "bands", "null", "scores"):
            if hasattr(first[part], name):
                assert getattr(first[part], name).equals(getattr(again[part], name)), (part, name)
    assert first["probe"].directions.identical(again["probe"].directions)
    assert first["random"].aurocs.identical(again["random"].aurocs)


def test_only_what_a_changed_spec_touches_is_computed_again(two_pools, tmp_path, monkeypatch):
    cache = JobCache(tmp_path, "content")
    one_pool = {"probe": SPEC.probe.model_copy(update={"pools": ("mean_response",)})}
    seen = fits(monkeypatch)
    analyse(two_pools, cache, **one_pool)
    assert {pool for pool, _, _ in seen} == {"mean_response"}
    seen.clear()
    analyse(two_pools, cache)  # all pools: the other one alone is computed
    assert {pool for pool, _, _ in seen} == {"last_prompt"}
    seen.clear()
    analyse(two_pools, cache, nulls=SPEC.nulls.model_copy(update={"n_draws": 5}))
    assert {at for _, _, at in seen} == {1}
    seen.clear()
    analyse(two_pools, JobCache(tmp_path, "other content"))
    assert len(seen) == 2 * 2 * 4


def test_a_part_that_fails_leaves_the_others_their_results(synthetic_run, tmp_path):
    run = synthetic_run(responses=lambda _arm, _k: "!!! ...")  # no word for a bag of words
    found = analyse(run, JobCache(tmp_path, "content"))
    assert isinstance(found["probe"], Failure)
    assert "bag of words found no word" in str(found["probe"].error)
    assert isinstance(found["confounds"], Failure)
    assert len(found["nulls"].rows)
    assert len(found["random"].bands)


def test_a_layer_that_fails_is_not_kept_and_the_good_ones_are(synthetic_run, tmp_path, monkeypatch):
    run = synthetic_run(chunked=False)
    broken = run.ds.copy(deep=True)
    broken["resid_post_mean_response"][3, 1, 0] = np.nan
    cache = JobCache(tmp_path, "content")
    options = {"spec": SPEC, "parts": ["nulls"], "scheduler": "synchronous", "cache": cache}
    found = analyze_parts(broken, run.texts, **options)
    assert "layer 1: 1 of 96 rows have NaN" in str(found["nulls"].error)
    seen = fits(monkeypatch)
    mended = analyze_parts(run.ds, run.texts, **options)
    assert [(pool, layer) for pool, layer, _ in seen] == [("mean_response", 1)]
    assert len(mended["nulls"].rows)


def test_a_limit_that_one_layer_breaks_is_refused_before_anything_is_read(synthetic_run):
    run = synthetic_run()
    with pytest.raises(InvalidInputError, match="one layer alone needs"):
        analyze_parts(run.ds, run.texts, spec=SPEC, parts=["random"], memory_limit=1000)


def test_names_of_jobs_are_names_of_files():
    assert job_name("mean_span:advice", 3) == "mean_span+advice-0003"
    assert job_name("pool", "a", "b", 1, 2) == "pool-a-b-0001-0002"


def test_pools_are_no_part_of_a_jobs_key():
    assert ProbeSpec.model_fields["pools"].default is None
