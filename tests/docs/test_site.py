"""The documentation builds strictly, and its references are those of the code."""

import ast
import importlib
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from actlake.cli import cli

pytestmark = pytest.mark.torch  # the reference shows the rooms that need it

ROOT = Path(__file__).parents[2]
ROOMS = ("store", "corpus", "extract", "analyze", "steer", "models")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def words_of(page):
    return " ".join(unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))).split())


def walk(command, path=("actlake",)):
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


def test_every_command_and_option_is_in_the_reference(site):
    shown = words_of(site / "cli.html")
    n_commands = 0
    for path, command in walk(cli):
        n_commands += 1
        assert " ".join(path) in shown, path
        for parameter in command.params:
            for name in parameter.opts:
                if name.startswith("--"):
                    assert name in shown, (path, name)
    assert n_commands > 40


def test_every_public_name_is_in_the_python_reference(site):
    page = (site / "python.html").read_text(encoding="utf-8")
    for room in ROOMS:
        for name in importlib.import_module(f"actlake.{room}").__all__:
            assert re.search(rf'id="actlake\.{room}\.(\w+\.)?{name}"', page), f"{room}.{name}"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf"- {re.escape(page.name)}$", text, flags=re.MULTILINE), page.name


def test_modules_that_the_pages_name_exist():
    for page in (ROOT / "docs").glob("*.md"):
        for name in re.findall(r"`((?:analyze|steer|store|extract|corpus|tests)/[\w/]+(?:\.py)?)`",
                               page.read_text(encoding="utf-8")):  # fmt: skip
            assert (ROOT / name).exists(), (page.name, name)


def test_benchmarks_that_the_page_names_exist():
    page = (ROOT / "docs/benchmarks.md").read_text()
    named = set(re.findall(r"^\| `make bench-(\w+)`", page, flags=re.MULTILINE))
    there = {
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if any(isinstance(n, ast.If) for n in ast.parse(path.read_text()).body)
    }
    assert named == there


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', text)
        assert not fetched, (page.name, fetched)
