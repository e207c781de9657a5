import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import corpus_info
from actlake.extract import Worker, extract_run, open_engine, plan_extraction
from actlake.extract.costs import (
    Memory,
    check_memory,
    fit_batches,
    measure_speed,
    memory_needed,
)
from actlake.schemas import CaptureSpec, ExtractSpec, InvalidInputError
from actlake.store import create_store
from tests.extract.test_run import TEXTS
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder("llama", tmp_path_factory.mktemp("model") / "tiny-llama"))


def plan(folder, **options):
    return plan_extraction(
        TEXTS, model=folder, run="r", corpus="c",
        extract=ExtractSpec(device="cpu", **{"chunk_size": 7, "batch_tokens": 200, **options}),
    )  # fmt: skip


def test_more_tokens_larger_blocks_and_wider_types_need_more(folder):
    cpu = torch.device("cpu")
    base = memory_needed(plan(folder), cpu)["host"]
    assert base.fits
    assert base.free is None or base.free > 2**20
    for options in ({"batch_tokens": 100_000}, {"chunk_size": 24}):
        assert memory_needed(plan(folder, **options), cpu)["host"].needed > base.needed
    half = plan_extraction(
        TEXTS, model=folder, run="r", corpus="c", capture=CaptureSpec(dtype="bfloat16"),
        extract=ExtractSpec(device="cpu", chunk_size=7, batch_tokens=200),
    )  # fmt: skip
    assert memory_needed(half, cpu)["host"].needed < base.needed


def test_what_cannot_fit_is_refused_with_the_options_that_would(folder):
    prepared = plan(folder)
    check_memory(prepared, {"host": Memory(10, 10), "device": Memory(10, None)})
    with pytest.raises(InvalidInputError, match=r"device: 9\.0 GB needed, 8\.0 GB free") as found:
        check_memory(
            prepared, {"host": Memory(1, 10), "device": Memory(9_000_000_000, 8_000_000_000)}
        )
    for option in ("--batch-tokens", "--chunk-size", "--dtype bfloat16"):
        assert option in str(found.value)


def test_a_plan_that_is_absurdly_large_does_not_fit_here(folder):
    prepared = plan(folder)
    model = prepared.plan.model.model_copy(update={"n_parameters": 10**15})
    huge = replace(prepared, plan=prepared.plan.model_copy(update={"model": model}))
    with pytest.raises(InvalidInputError, match="does not fit"):
        check_memory(huge, memory_needed(huge, torch.device("cpu")))


def test_batches_are_as_large_as_fits_into_what_is_free(folder, monkeypatch):
    prepared = plan(folder, batch_tokens="auto")
    cpu = torch.device("cpu")
    assert prepared.plan.batch_tokens == 16384
    large = replace(prepared, plan=prepared.plan.model_copy(update={"batch_tokens": 65536}))
    free = memory_needed(prepared, cpu)["host"].needed
    monkeypatch.setattr("actlake.extract.costs._free_host", lambda: free)
    assert fit_batches(large, cpu).plan.batch_tokens == 8192  # a tenth is left free
    monkeypatch.setattr("actlake.extract.costs._free_host", lambda: 1)
    least = fit_batches(large, cpu)
    assert least.plan.batch_tokens == 256
    with pytest.raises(InvalidInputError, match="does not fit"):
        check_memory(least, memory_needed(least, cpu))


def test_a_run_that_was_begun_goes_on_with_its_batches(tmp_path, folder):
    store, info = create_store(tmp_path / "store"), corpus_info("c", TEXTS)
    spec = ExtractSpec(device="cpu", chunk_size=7, batch_tokens=300)
    first = extract_run(
        store, TEXTS, info, model=folder, run="r", extract=spec, worker=Worker(1, 2)
    )
    assert first.seal is None
    auto = spec.model_copy(update={"batch_tokens": "auto"})
    done = extract_run(store, TEXTS, info, model=folder, run="r", extract=auto)
    assert (done.n_blocks_kept, done.n_blocks_run) == (2, 2)
    assert store.read_plan("r").batch_tokens == 300


def test_a_probe_runs_for_as_long_as_it_may_and_stores_nothing(folder):
    prepared = plan(folder)
    extract = ExtractSpec(device="cpu")
    with open_engine(prepared, model=folder, revision=None, extract=extract) as engine:
        speed = measure_speed(prepared, engine, max_seconds=0.2)
    assert speed.tokens_per_second > 0
    assert speed.seconds == pytest.approx(prepared.plan.n_tokens / speed.tokens_per_second)
    assert speed.cost(3600.0) == pytest.approx(speed.seconds)


def test_the_command_prices_a_run_and_writes_nothing(tmp_path):
    store = str(tmp_path / "s")
    command = ["extract", "bundled:llama-organism", "--corpus", "bundled:demo", "--store", store]
    command += ["--dry-run", "--json", "--device", "cpu"]
    found = json.loads(CliRunner().invoke(cli, command).stdout)
    assert found["host_bytes_needed"] > 0
    assert "estimated_seconds" not in found
    priced = [*command, "--probe", "0.1", "--price-per-hour", "3600"]
    found = json.loads(CliRunner().invoke(cli, priced).stdout)
    assert found["estimated_cost"] == pytest.approx(found["estimated_seconds"], abs=0.1)
    expected = found["tokens"] / found["tokens_per_second"]
    assert found["estimated_seconds"] == pytest.approx(expected, abs=0.06)  # one decimal
    assert not (tmp_path / "s").exists()
    asked = CliRunner().invoke(cli, [part for part in priced if part != "--dry-run"])
    assert isinstance(asked.exception, InvalidInputError)
    assert "add --dry-run" in str(asked.exception)
