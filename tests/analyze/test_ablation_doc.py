"""The commands of docs/ablation.md take the options that it shows, and its names are real."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from actlake.cli import cli
from actlake.schemas import LEXICAL_ARMS, AblationRow

DOC = (Path(__file__).parents[2] / "docs/ablation.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", DOC, re.DOTALL) for line in block.splitlines()
]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_takes_its_words(line):
    command, words = cli, shlex.split(line)[1:]
    while isinstance(command, click.Group):
        if words[0] not in command.commands:
            words = ["run", *words]  # `extract MODEL` is `extract run MODEL`
        command, words = command.commands[words[0]], words[1:]
    # A usage error where it does not. Commands keep the help option of their first context.
    whole = click.Context(cli, info_name="actlake", **cli.context_settings)
    command.make_context("shown", words, parent=whole)


def test_every_arm_and_every_named_column_exists():
    table = re.findall(r"^\| `(\w+)`", DOC, re.MULTILINE)
    assert set(table) == set(LEXICAL_ARMS)
    _, _, what = DOC.partition("## What comes out")
    listed = re.findall(r"`(\w+)`", what.partition("`ablation_draws`")[0])
    known = {*AblationRow.model_fields, "auroc", "d_prime", "paired_change"}
    assert set(listed) - known == set()


def test_the_options_that_the_prose_names_exist():
    options = {n for p in cli.commands["analyze"].commands["ablation"].params for n in p.opts}
    prose = re.sub(r"```sh\n.*?```", "", DOC, flags=re.DOTALL)
    named = set(re.findall(r"--[a-z][a-z-]*", prose)) - {"--tokens"}
    assert {"--variants", "--lexicon", "--memory"} <= named <= options
