"""The Python that docs/vllm.md shows is run with vLLM."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm
PAGE = Path(__file__).parents[2] / "docs/vllm.md"


def test_the_intervention_of_the_page_runs(monkeypatch):
    # vLLM's core in this process: one of its own imports everything again.
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    (code,) = re.findall(r"```python\n# needs vLLM\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    shown: dict[str, object] = {}
    exec(compile(code, PAGE.name, "exec"), shown)
    assert len(shown["texts"]) == len(shown["logprobs"]) == 2
