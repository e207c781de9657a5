"""The one file of commands that every rented machine runs, carried out for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STUDY = """
name = "rented"
[[models]]
model = "bundled:llama-organism"
[capture]
pools = ["mean_response"]
[probe]
methods = ["diff_means"]
n_bootstrap = 20
[random]
n_directions = 20
[confounds]
concepts = ["length"]
[steer]
layer = 3
n_prompts = 2
n_random = 1
controls = []
alphas = [-1, 0, 1]
"""


def test_the_rented_machine_does_what_needs_a_model_and_the_laptop_the_rest(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    env = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}", "STORE": str(tmp_path / "store"),
        "STUDY": str(tmp_path / "study.toml"), "OUT": str(tmp_path / "rented"),
        "TEARDOWN": f"touch {tmp_path}/given-back",
    }  # fmt: skip
    budget = ("--max-dollars", "50", "--price-per-hour", "1.5")
    done = subprocess.run(
        ["bash", ROOT / "deploy/run.sh", *budget], env=env, check=False, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "given-back").exists()
    assert "steer of llama-organism: done" in done.stderr
    assert "confounds" not in done.stderr  # the laptop's
    words = ("study", "run", env["STUDY"], "--store", env["STORE"], "--where", "cpu", "--json")
    rest = subprocess.run(
        [BIN / "actlake", *words, "--out", tmp_path / "laptop"], check=False, capture_output=True,
        text=True,
    )  # fmt: skip
    assert rest.returncode == 0, rest.stderr
    states = {task["task"].split()[0]: task["state"] for task in json.loads(rest.stdout)["tasks"]}
    assert states == {"probe": "was done", "pca": "done", "confounds": "done"}
    (summary,) = json.loads(rest.stdout)["summary"]
    assert summary["steer_layer"] == 3
