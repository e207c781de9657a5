"""Steered generation on the command line, in vLLM's own processes."""

import json
import os
import subprocess
import sys

import pytest
import torch

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


def generate(direction, out, *options):
    environment = {n: v for n, v in os.environ.items() if n != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    done = subprocess.run(
        [
            sys.executable, "-c", "from actlake.cli import main; main()", "steer", "generate",
            MODEL, "bundled:demo", "--directions", str(direction), "--layer", "2",
            "--alphas=-4,0,4", "--temperature", "1.5", "--random", "1", "--prompts", "4",
            "--max-new-tokens", "12", "--out", str(out), "--json", *options,
        ],
        capture_output=True, text=True, env=environment, timeout=240, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_texts_are_those_of_transformers_and_folders_are_not_mixed(direction, tmp_path):
    code, out, err = generate(direction, tmp_path / "v", "--engine", "vllm", "--dry-run")
    assert code == 0, err
    assert json.loads(out)["rows"] == 24
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
