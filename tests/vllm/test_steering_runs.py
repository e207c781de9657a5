"""Steered generation and sweeps on the command line, in vLLM's own processes."""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch

from actlake.corpus import bundled_corpus
from actlake.schemas import Direction
from actlake.steer import read_generated

pytestmark = pytest.mark.vllm

MODEL = "bundled:llama-organism"


@pytest.fixture(scope="module")
def direction(tmp_path_factory):
    vector = torch.randn(128, generator=torch.Generator().manual_seed(0))
    made = Direction(
        method="diff_means", site="resid_post", layer=2, pool="mean_response", norm=2.0, bias=0.0,
        vector=tuple((vector / vector.norm()).tolist()), model="llama-organism", run="r",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("direction") / "direction.json"
    path.write_text(made.to_json())
    return path


def call(*args):
    environment = {n: v for n, v in os.environ.items() if n != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    done = subprocess.run(
        [sys.executable, "-c", "from actlake.cli import main; main()", *map(str, args)],
        capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def generate(direction, out, *options):
    return call(
        "steer", "generate", MODEL, "bundled:demo", "--directions", direction, "--layer", "2",
        "--alphas=-4,0,4", "--temperature", "1.5", "--random", "1", "--prompts", "4",
        "--max-new-tokens", "12", "--out", out, "--json", *options,
    )  # fmt: skip


def test_the_texts_are_those_of_transformers_and_folders_are_not_mixed(direction, tmp_path):
    code, out, err = generate(direction, tmp_path / "v", "--engine", "vllm", "--dry-run")
    assert code == 0, err
    assert json.loads(out)["rows"] == 24
    code, out, err = generate(
        direction, tmp_path / "v", "--engine", "vllm", "--dry-run", "--probe", "0"
    )
    assert code == 0, err
    assert json.loads(out)["estimated_seconds"] > 0
    assert not (tmp_path / "v").exists()
    code, out, err = generate(direction, tmp_path / "v", "--engine", "vllm")
    assert code == 0, err
    facts = json.loads(out)  # vLLM says nothing where the data goes
    assert facts["texts"] == 24
    code, _, err = generate(direction, tmp_path / "t")
    assert code == 0, err
    ours, theirs = read_generated(tmp_path / "v"), read_generated(tmp_path / "t")
    for column in ("prompt", "direction", "alpha", "seed", "text", "ended", "n_new", "n_prompt"):
        assert ours[column].tolist() == theirs[column].tolist(), column
    assert ours["text"].nunique() > 3
    code, _, err = generate(direction, tmp_path / "v")
    assert code == 2
    assert "made with another model" in err
    code, _, err = generate(direction, tmp_path / "x", "--engine", "vllm", "--device", "cpu")
    assert code == 2
    assert "vLLM's own choice" in err
    code, _, err = generate(direction, tmp_path / "x", "--tensor-parallel", "2")
    assert code == 2
    assert "needs engine = 'vllm'" in err


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A store with a run of a part of the demo corpus, and its probe's results."""
    folder = tmp_path_factory.mktemp("store")
    chosen, n_of = [], {}
    for text in bundled_corpus("demo")[1]:
        if text.pair is not None and text.subset == "plain":
            n_of[text.scenario] = n_of.get(text.scenario, 0) + 1
            if n_of[text.scenario] <= 6:
                chosen.append(text)
    source = folder / "texts.jsonl"
    source.write_text("".join(text.to_json(indent=None).strip() + "\n" for text in chosen))
    for args in (
        ("extract", "run", MODEL, "--corpus", source, "--store", folder / "store",
         "--pools", "mean_response"),
        ("probe", folder / "store", "llama-organism", "--out", folder / "results",
         "--random", "20"),
    ):  # fmt: skip
        code, _, err = call(*args)
        assert code == 0, err
    return folder


def test_a_sweep_with_its_controls_is_that_of_transformers(probed):
    stage = probed / "results" / "llama-organism" / "steer"

    def run(*options):
        code, out, err = call(
            "steer", "run", probed / "store", "llama-organism", "--model", MODEL, "--out",
            probed / "results", "--prompts", "3", "--random", "2", "--shuffled", "1", "--alphas",
            "-1,0,1", "--top-layers", "2", "--together", "--json", *options,
        )  # fmt: skip
        assert code == 0, err
        return json.loads(out)

    run()
    theirs = pd.read_parquet(stage / "samples.parquet")
    layers = pd.read_csv(stage / "layers.csv")
    cost = run("--engine", "vllm", "--dry-run", "--probe", "0")
    assert cost["layers"] == "to be chosen"  # what another engine did is not done
    assert cost["estimated_seconds"] > 0
    run("--engine", "vllm")
    ours = pd.read_parquet(stage / "samples.parquet")
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-3, atol=5e-4)
    assert set(ours["direction"]) >= {"diff_means", "random", "shuffled", "system_prompt"}
    pd.testing.assert_frame_equal(pd.read_csv(stage / "layers.csv"), layers, rtol=1e-3, atol=5e-4)
    record = json.loads((stage / "spec.json").read_text())
    assert record["model"]["attn_implementation"] == "vllm"
    assert run("--engine", "vllm", "--dry-run")["layers"] == "done"
