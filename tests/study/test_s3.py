"""The whole way over a real S3 server: extract, list, verify, probe, steer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

ACTLAKE = str(Path(sys.executable).with_name("actlake"))
RUN = "llama-organism"


def environment(server):
    """Credentials and endpoint as a user would give them: in the environment."""
    options = server.options()
    return os.environ | {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": options["key"],
        "AWS_SECRET_ACCESS_KEY": options["secret"],
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.mark.parametrize("fixture", ["s3_server", "moto_server"])
def test_a_study_over_s3_equals_the_same_study_in_a_folder(fixture, request, tmp_path):
    server = request.getfixturevalue(fixture)
    env = environment(server)
    url = f"{server.url}/study-{fixture}".replace("_", "-")

    def actlake(*args):
        done = subprocess.run(
            [ACTLAKE, *map(str, args), "--json"],
            capture_output=True, text=True, check=False, env=env, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert server.options()["secret"] not in done.stdout + done.stderr
        return json.loads(done.stdout)

    options = ("--corpus", "bundled:demo", "--pools", "mean_response", "--chunk-size", "128")
    remote = actlake("extract", f"bundled:{RUN}", "--store", url, *options)
    local = actlake("extract", f"bundled:{RUN}", "--store", tmp_path / "store", *options)
    assert remote["data_digest"] == local["data_digest"]
    assert remote["blocks_run"] > 1
    again = actlake("extract", f"bundled:{RUN}", "--store", url, *options)
    assert (again["blocks_run"], again["data_digest"]) == (0, remote["data_digest"])
    (listed,) = actlake("store", "ls", url)
    assert (listed["run"], listed["state"]) == (RUN, "sealed")
    assert actlake("store", "verify", url, RUN)["ok"]
    far = actlake("probe", url, RUN, "--out", tmp_path / "far", "--random", "50")
    near = actlake("probe", tmp_path / "store", RUN, "--out", tmp_path / "near", "--random", "50")
    assert far == near
