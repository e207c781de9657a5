"""Fixtures that several rooms share: real S3-compatible servers."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import servers

# Before torch is imported, and for every process that a test starts: models here are so small that
# threads only wait for each other, for seconds where something else runs on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: what else the machine does is no property of the code.
settings.register_profile("house", deadline=None)
settings.load_profile("house")

_NEEDS = {
    "torch": "torch",
    "vllm": "vllm",
    "oracle": "transformer_lens",
}  # marks, and their library
MISSING = [mark for mark, name in _NEEDS.items() if importlib.util.find_spec(name) is None]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave out the files that are marked as needing a library which is not installed.

    They import it at their top, which a mark alone cannot prevent.
    """
    if MISSING and collection_path.name.startswith("test_"):
        text = collection_path.read_text()
        marks = re.findall(r"^pytestmark = (.*)$", text, flags=re.MULTILINE)
        return any(f"pytest.mark.{name}" in mark for name in MISSING for mark in marks) or None
    return None


@pytest.fixture(scope="session")
def s3_server() -> Iterator[servers.S3Server]:
    """A real S3 server over a local folder, which ignores create-only conditions."""
    with servers.rclone_server() as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[servers.S3Server]:
    """An S3 server that honours create-only conditions."""
    with servers.moto_server() as server:
        yield server
