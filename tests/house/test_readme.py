"""What the README shows is what the tool does."""

import json
import re
import tomllib
from pathlib import Path

import click
from click.testing import CliRunner

from actlake.cli import cli
from actlake.cli_check import ExtractGroup
from actlake.corpus import read_jsonl
from actlake.schemas import ArmNames, StudyFile

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_texts_are_a_corpus(tmp_path):
    (lines,) = blocks("json")
    (tmp_path / "pairs.jsonl").write_text(lines)
    arms = ArmNames(positive="empathic", negative="task_focused")
    assert len(read_jsonl(tmp_path / "pairs.jsonl", arms=arms)) == len(lines.splitlines())
    assert all(json.loads(line)["prompt"] for line in lines.splitlines())


def test_the_example_study_is_valid():
    (study,) = blocks("toml")
    assert len(StudyFile.parse(tomllib.loads(study)).models) == 2


def commands():
    """Every actlake command line that the README shows."""
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("actlake "):
                yield line.split("#")[0].split()[1:]


def test_every_command_shown_exists_with_its_options():
    shown = list(commands())
    assert len(shown) >= 6
    for words in shown:
        command: click.Command = cli
        rest = words
        while isinstance(command, click.Group):
            if isinstance(command, ExtractGroup) and rest[0] not in command.commands:
                command = command.commands["run"]
                break
            command, rest = command.commands[rest[0]], rest[1:]
        options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        assert {word for word in rest if word.startswith("--")} <= options, words


def walk(command, path=()):
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


def test_every_command_has_help_with_an_example():
    for path, command in walk(cli):
        shown = CliRunner().invoke(cli, [*path, "-h"])
        assert shown.exit_code == 0, path
        assert "Example: actlake" in shown.output, path
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (path, parameter.name)


def test_commands_that_read_print_json():
    of_store = [["store", name] for name in ("ls", "info", "verify")]
    for path in (["probe"], ["steer", "run"], *of_store):
        assert "--json" in CliRunner().invoke(cli, [*path, "-h"]).output
