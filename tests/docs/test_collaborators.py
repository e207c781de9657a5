"""The collaborators' notebook runs against a real S3 server, with keys that can only read."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from actlake.schemas import StorageError
from actlake.store import create_store, open_run, open_store
from tests.servers import rclone_server

pytestmark = pytest.mark.torch

DOCS = Path(__file__).parents[2] / "docs"
ACTLAKE = str(Path(sys.executable).with_name("actlake"))
EXECUTE = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def environment(server):
    return os.environ | {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_ACCESS_KEY_ID": server.key,
        "AWS_SECRET_ACCESS_KEY": server.secret,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture(scope="module")
def shared():
    """A store that one server can write, and another only read, with keys of its own."""
    with rclone_server() as owner:
        subprocess.run(
            [ACTLAKE, "extract", "bundled:llama-organism", "--corpus", "bundled:demo", "--store",
             f"{owner.url}/empathy", "--pools", "mean_response,last_prompt"],
            check=True, capture_output=True, env=environment(owner),
        )  # fmt: skip
        with rclone_server(
            owner.folder.parent, key="reader", secret="reader-secret-0815", read_only=True
        ) as reader:
            yield owner, reader


def test_the_notebook_runs_with_keys_that_can_only_read(shared, tmp_path):
    _, reader = shared
    env = environment(reader) | {
        "ACTLAKE_STORE": f"{reader.url}/empathy", "ACTLAKE_COPY": str(tmp_path / "copy"),
        "IPYTHONDIR": str(tmp_path), "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, DOCS / "collaborators.ipynb", tmp_path / "run.ipynb"],
        env=env, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = (tmp_path / "run.ipynb").read_text()
    run = open_run(f"{reader.url}/empathy", "llama-organism", storage_options=reader.options())
    assert f"content digest {run.attrs['content_digest']}" in printed
    assert "verified" in printed
    assert reader.secret not in printed
    copied = open_run(tmp_path / "copy", "llama-organism", pulled_only=True)
    assert copied.sizes["layer"] == 1 < run.sizes["layer"]
    assert list(copied.data_vars)
    assert not any("last_prompt" in name for name in copied.data_vars)


def test_those_keys_cannot_write(shared):
    owner, reader = shared
    with pytest.raises(StorageError):
        create_store(f"{reader.url}/other", storage_options=reader.options())
    assert not (owner.folder / "other").exists()
    found = open_store(f"{reader.url}/empathy", storage_options=reader.options())
    assert found.run_ids() == ["llama-organism"]
    wrong = reader.options(key=owner.key, secret=owner.secret)
    with pytest.raises(StorageError):  # the owner's keys are not the reader's
        open_store(f"{reader.url}/empathy", storage_options=wrong)


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(DOCS / "collaborators.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) >= 6
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None
        assert max(map(len, cell.source.splitlines())) <= 100
