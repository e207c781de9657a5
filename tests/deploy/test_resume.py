"""An extraction that the budget ended goes on, and ends in the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

BIN = Path(sys.executable).parent
EXTRACT = (
    "actlake extract bundled:llama-organism --corpus bundled:demo --store {store}"
    " --chunk-size 4 --batch-tokens 256 --pools mean_response"
)


def run(*words):
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(
        list(map(str, words)), env=env, check=False, capture_output=True, text=True
    )


@pytest.mark.slow
def test_work_that_the_guard_stopped_is_completed_by_the_same_command(tmp_path):
    stages = tmp_path / "stages.txt"
    stages.write_text(EXTRACT.format(store=tmp_path / "store") + "\n")
    guarded = ("actlake", "cloud", "guard", "--commands", stages, "--price-per-hour", "3600")
    # The work is stopped as soon as the first blocks are there: by time would be by luck.
    stopper = (
        f"until ls {tmp_path}/store/runs/llama-organism/commits/*.json; do sleep 0.02; done; "
        "kill -INT $PPID"
    )
    first = tmp_path / "first.txt"
    first.write_text(f"({stopper}) > /dev/null 2>&1 & " + stages.read_text())
    ended = run(*guarded[:4], first, *guarded[5:], "--max-dollars", "500")
    assert ended.returncode == 130, ended.stderr
    info = json.loads(run("actlake", "store", "ls", tmp_path / "store", "--json").stdout)
    assert info[0]["state"] != "sealed"
    done = run(*guarded, "--max-dollars", "500")
    assert done.returncode == 0, done.stderr
    whole = run(*EXTRACT.format(store=tmp_path / "whole").split(), "--json")
    again = run(*EXTRACT.format(store=tmp_path / "store").split(), "--json")
    assert json.loads(again.stdout)["blocks_run"] == 0
    assert json.loads(again.stdout)["data_digest"] == json.loads(whole.stdout)["data_digest"]


@pytest.mark.slow
def test_the_tasks_of_a_slurm_array_share_an_extraction(tmp_path):
    script = Path(__file__).parents[2] / "deploy/slurm-array.sh"
    settings = {
        "MODEL": "bundled:llama-organism", "CORPUS": "bundled:demo",
        "STORE": str(tmp_path / "store"),
        "PATH": f"{BIN}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_COUNT": "2",
        "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "2", "SLURM_ARRAY_TASK_STEP": "1",
    }  # fmt: skip
    for task in ("1", "2"):
        env = os.environ | settings | {"SLURM_ARRAY_TASK_ID": task}
        done = subprocess.run(
            ["bash", script, "--chunk-size", "100", "--pools", "mean_response", "--json"],
            env=env, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["blocks_run"] > 0
    (listed,) = json.loads(run("actlake", "store", "ls", tmp_path / "store", "--json").stdout)
    assert listed["state"] == "sealed"
