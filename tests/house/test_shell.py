"""Every shell script of the repository passes shellcheck."""

import subprocess
from pathlib import Path

import yaml

from tests.servers import tool

ROOT = Path(__file__).parents[2]


def tracked():
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def is_shell(name):
    with (ROOT / name).open("rb") as file:
        first = file.readline(80)
    return name.endswith(".sh") or (first.startswith(b"#!") and b"sh" in first.split(b"/")[-1])


def test_every_script_passes_shellcheck():
    scripts = [name for name in tracked() if is_shell(name)]
    assert {"deploy/run.sh", "deploy/setup.sh", "src/actlake/machine.sh", ".ci/run"} <= set(scripts)
    done = subprocess.run(
        [tool("shellcheck"), *scripts], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_scripts_inside_the_skypilot_task_pass_shellcheck(tmp_path):
    task = yaml.safe_load((ROOT / "deploy/skypilot.yaml").read_text())
    for part in ("setup", "run"):
        (tmp_path / part).write_text(f"#!/usr/bin/env bash\n{task[part]}")
        done = subprocess.run(
            [tool("shellcheck"), "--exclude=SC1091", tmp_path / part],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
    assert task["resources"]["autostop"]["down"] is True
    assert all(value is None for value in task["secrets"].values())  # named here, never written
