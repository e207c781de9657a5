"""The memory that an analysis states before it reads is what it takes."""

from __future__ import annotations

import tracemalloc

import pytest

from actlake.analyze.battery import analyze_parts
from actlake.analyze.geometry_run import geometry_run
from actlake.analyze.memory import (
    JobMemory,
    geometry_memory,
    similarity_memory,
    transfer_memory,
)
from actlake.analyze.nulls import isotropic_directions
from actlake.analyze.similarity_run import similarity_run
from actlake.analyze.transfer_run import transfer_run
from actlake.schemas import (
    AnalyzeSpec,
    GeometrySpec,
    InvalidInputError,
    SimilaritySpec,
    TransferSpec,
)

MIB = 2**20


@pytest.mark.parametrize(
    ("parts", "shape"),
    [
        (["probe"], {"hidden": 2000, "pairs_per_scenario": 40}),
        (["nulls"], {"hidden": 2000, "pairs_per_scenario": 40}),
        (["probe", "random", "nulls", "confounds"], {"hidden": 100, "pairs_per_scenario": 60}),
        (["random"], {"hidden": 4000, "n_neutral": 400}),
    ],
    ids=["probe", "nulls", "narrow", "random"],
)
def test_a_job_takes_no_more_than_was_said_and_not_much_less(synthetic_run, parts, shape):
    spec = AnalyzeSpec.parse(
        {
            "probe": {"methods": ["diff_means", "lda", "logistic", "ridge", "pca_diff"],
                      "n_bootstrap": 20, "n_reliability": 2, "c_grid": [0.01, 1.0]},
            "random": {"n_directions": 300}, "nulls": {"n_draws": 300},
        },
        where="test",
    )  # fmt: skip
    options = {"spec": spec, "parts": parts, "scheduler": "synchronous"}
    small = synthetic_run(n_layers=1, chunked=False)
    analyze_parts(small.ds, small.texts, **options)  # what modules themselves take is not counted
    run = synthetic_run(n_layers=1, chunked=False, n_scenarios=5, **shape)
    said: list[str] = []
    isotropic_directions.cache_clear()
    tracemalloc.start()
    try:
        found = analyze_parts(run.ds, run.texts, say=said.append, **options)
        taken = tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()
    assert list(found) == parts
    expected = float(said[0].split("expected memory: ")[1].split(" MiB")[0].replace(",", ""))
    assert 0.2 * expected <= taken <= expected, (said, taken)


def test_fewer_jobs_run_at_once_where_memory_is_short(monkeypatch):
    import actlake.analyze.memory as room

    monkeypatch.setattr(room, "CPU_COUNT", 8)
    need = JobMemory(job=100 * MIB, shared=50 * MIB, held=20 * MIB, n_jobs=12)
    assert need.workers_within() == 8
    assert need.workers_within(400 * MIB) == 3
    assert need.total(3) <= 400 * MIB < need.total(4)
    assert need.workers_within("1GiB") == 8
    assert need.workers_within(scheduler="synchronous") == 1
    assert need.workers_within(400 * MIB, scheduler="tcp://there:1") is None
    with pytest.raises(InvalidInputError, match="one layer alone needs 170 MiB, more than the 160"):
        need.workers_within(160 * MIB)
    with pytest.raises(InvalidInputError, match="needs 150 MiB, more than the 149"):
        need.workers_within(149 * MIB, scheduler="tcp://there:1")
    assert "8 jobs at once of 100 MiB" in need.sentence(8)
    assert "150 MiB a job on a worker" in need.sentence(None)


def measured(work):
    """Return the peak of ``work`` in MiB."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "shape", [{"hidden": 1500, "pairs_per_scenario": 10}, {"hidden": 60, "pairs_per_scenario": 40}],
    ids=["wide", "long"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["geometry", "similarity", "transfer"])
def test_comparisons_take_no_more_than_was_said(synthetic_run, name, shape):
    fields = {"n_layers": 1, "n_scenarios": 6, "n_neutral": 60, "chunked": False}
    runs = {
        key: synthetic_run(**(fields | shape | {"seed": seed})).ds for seed, key in enumerate("ab")
    }
    n_texts, hidden = runs["a"].sizes["text"], shape["hidden"]
    sizes = {"n_texts": n_texts, "n_jobs": 2}
    if name == "geometry":
        spec = GeometrySpec(n_permutations=300, n_bootstrap=300, n_splits=100, tsne_seeds=())
        need = geometry_memory(hidden=hidden, spec=spec, **sizes)
        work = lambda ds: geometry_run(ds["a"], spec=spec, scheduler="synchronous")  # noqa: E731
    elif name == "similarity":
        spec = SimilaritySpec()
        need = similarity_memory(hidden=hidden, spec=spec, **sizes)
        work = lambda ds: similarity_run(ds, spec=spec, scheduler="synchronous")  # noqa: E731
    else:
        spec = TransferSpec(n_permuted=2, n_random=200, n_bootstrap=300)
        need = transfer_memory(widths=(hidden, hidden), spec=spec, **sizes)
        work = lambda ds: transfer_run(ds, spec=spec, scheduler="synchronous")  # noqa: E731
    small = synthetic_run(n_layers=1, n_neutral=60, chunked=False).ds
    work({"a": small, "b": small})
    taken, expected = measured(lambda: work(runs)), need.total(1) / MIB
    assert 0.15 * expected <= taken <= expected, (taken, expected)
