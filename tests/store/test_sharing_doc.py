"""What docs/sharing.md shows is what the commands take."""

import re
from pathlib import Path

import click

from actlake.cli import cli

DOC = (Path(__file__).parents[2] / "docs" / "sharing.md").read_text()


def test_every_command_shown_exists_with_its_options():
    lines = [
        line.split()[1:]
        for block in re.findall(r"```sh\n(.*?)```", DOC, flags=re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    assert [words[1] for words in lines] == ["pull", "push", "card", "import"]
    for words in lines:
        command: click.Command = cli
        rest = words
        while isinstance(command, click.Group):
            command, rest = command.commands[rest[0]], rest[1:]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, words


def test_the_code_shown_is_python():
    found = re.findall(r"```python\n(.*?)```", DOC, flags=re.DOTALL)
    assert found
    for block in found:
        compile(block, "sharing.md", "exec")
