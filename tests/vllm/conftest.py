"""vLLM in the process of the tests, so that a model loads in seconds."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep vLLM's core in this process: a process of its own imports everything again."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
