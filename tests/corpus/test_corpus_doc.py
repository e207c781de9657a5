"""The commands of docs/corpus.md are run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from actlake.cli import cli
from actlake.corpus import bundled_corpus, read_jsonl
from actlake.schemas import ArmNames

DOC = (Path(__file__).parents[2] / "docs/corpus.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", DOC, re.DOTALL) for line in block.splitlines()
]


def test_what_the_page_shows_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) == 7
    for line in COMMANDS:
        done = CliRunner().invoke(cli, shlex.split(line)[1:])
        assert done.exit_code == 0, (line, done.output, done.exception)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["n_accepted"] == report["n_pairs"]
    assert {p.name for p in (tmp_path / "review").iterdir()} == {
        "sheet.csv", "form.html", "key.json",
    }  # fmt: skip
    arms = ArmNames(positive="empathic", negative="task_focused")
    assert read_jsonl(tmp_path / "pairs.jsonl", arms=arms) == bundled_corpus("empathy")[1]


@pytest.mark.parametrize("name", ["read", "generate"])
def test_options_that_the_prose_names_exist(name):
    (shown,) = re.findall(rf"`(actlake\s+corpus\s[^`]*\b{name}\b[^`]*--[^`]*)`", DOC)
    words = shlex.split(shown.replace("\n", " "))[1:]
    command = cli
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_figures_on_the_page_are_those_of_the_corpus():
    info, texts = bundled_corpus("empathy")
    n_neutral = sum(t.arm == "neutral" for t in texts)
    said = " ".join(DOC.split())
    assert f"holds {info.n_pairs} contrastive pairs over {info.n_scenarios} scenarios" in said
    assert f"and {n_neutral} neutral texts" in said
