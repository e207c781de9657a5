"""Every command and every piece of code that README and docs show is run, or says what it needs.

A block that needs what is not here, a GPU or a cloud account, says so in its first line or in a
comment before it. Of those the commands and options are checked. What needs vLLM is run where that
is, by ``tests/vllm/test_vllm_doc.py``.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.cli_check import ExtractGroup
from tests.store.small import fill_store

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
BLOCK = re.compile(r"(?:<!-- (needs [^>]*?) -->\n)?```(sh|bash|python)\n(.*?)```", re.DOTALL)
NEEDS = {"needs a GPU", "needs a cloud account", "needs vLLM"}
ELSEWHERE = {"corpus.md": "tests/corpus/test_corpus_doc.py"}  # runs that page's commands
LONG = {"README.md", "collaborators.md", "plan.md", "quickstart.md"}  # they run a model
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def blocks(page):
    """Yield (language, code, what it needs) of a page's blocks."""
    for before, language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        first = code.partition("\n")[0].removeprefix("# ")
        yield language, code, before or (first if first.startswith("needs ") else "")


def commands(code):
    """Return the words of each command of a block, as a shell would split them."""
    lines = code.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


def check_options(words):
    """Fail where an actlake command or one of its options does not exist."""
    command: click.Command = cli
    rest = words[1:]
    while isinstance(command, click.Group):
        if isinstance(command, ExtractGroup) and rest[0] not in command.commands:
            command = command.commands["run"]
            break
        command, rest = command.commands[rest[0]], rest[1:]
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    assert {word for word in rest if word.startswith("--")} <= options, words


def check_install(words):
    """Fail where `pip install` names an extra that there is not."""
    (extras,) = re.findall(r"^actlake(?:\[([\w,]+)\])?$", words[2])
    assert set(filter(None, extras.split(","))) <= set(EXTRAS), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_of_its_needs_is_known(page):
    for language, code, needs in blocks(page):
        assert needs in {"", *NEEDS}, (page.name, needs)
        if language == "python":
            compile(code, page.name, "exec")
            continue
        for words in commands(code):
            if "actlake" in words:
                check_options(words[words.index("actlake") :])
            elif words[0] in {"deploy/setup.sh", "deploy/run.sh"}:
                assert (ROOT / words[0]).exists()


def prepare(page, server, folder):
    """Make what a page takes for granted: a store somebody has filled, files of activations."""
    run = CliRunner()
    organism = ["extract", "bundled:llama-organism", "--corpus", "bundled:demo"]
    if page == "README.md":
        words = [*organism, "--store", "actlake-demo/store", "--pools", "mean_response"]
        assert run.invoke(cli, words).exit_code == 0
    elif page == "collaborators.md":
        words = [*organism, "--store", f"{server.url}/empathy", "--pools", "mean_response"]
        assert run.invoke(cli, words).exit_code == 0
    elif page == "sharing.md":
        from actlake.store import create_store

        store = create_store(f"{server.url}/store")
        for name in ("llama-3-8b", "gemma-2-9b"):
            fill_store(store, run=name, n_layers=14)
        (folder / "acts").mkdir()
        texts = [
            f'{{"id": "t{i}", "pair": "p{i // 2}", "scenario": "s{i // 4}", "arm": "{arm}", '
            f'"prompt": "What now?", "response": "Answer number {i}."}}'
            for i, arm in enumerate(["empathic", "task_focused"] * 4)
        ]
        (folder / "pairs.jsonl").write_text("\n".join(texts) + "\n")
        values = np.random.default_rng(0).normal(size=(8, 3, 16)).astype(np.float32)
        np.save(folder / "acts" / "all.npy", values)


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.slow) if p.name in LONG else p for p in PAGES],
    ids=lambda page: page.name,
)
def test_what_a_page_shows_works(page, s3_server, tmp_path, monkeypatch):
    if page.name in ELSEWHERE:
        assert page.name in (ROOT / ELSEWHERE[page.name]).read_text()
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    prepare(page.name, s3_server, tmp_path)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for language, code, needs in blocks(page):
        if needs:
            continue
        if language == "python":
            exec(compile(code, page.name, "exec"), {"__name__": "shown"})
            continue
        for words in commands(code):
            if words[0] == "make":  # what this suite is itself a part of
                assert words[1] in targets
            elif words[:2] == ["pip", "install"]:
                check_install(words)
            else:
                assert words[0] == "actlake", words
                done = CliRunner().invoke(cli, words[1:])
                assert done.exit_code == 0, (words, done.output, done.exception)
