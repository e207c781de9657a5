"""The wheel and the sdist hold the whole package, and it imports where nothing else is."""

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("schemas", "store", "corpus", "extract", "analyze", "steer", "models")
FOLDERS = (*ROOMS, "studies")  # rooms of code, and data beside it


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel built from the sdist, as a package index would see them."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
    )
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def expected_files():
    """Every file of the folders and of the facade, as the package should name it."""
    for room in FOLDERS:
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"actlake/{path.relative_to(ROOT)}"
    for path in (ROOT / "src/actlake").iterdir():
        if path.is_file():
            yield f"actlake/{path.name}"


def test_the_wheel_holds_every_file_and_no_other_top_level_name(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    missing = set(expected_files()) - names
    assert not missing
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"actlake"}


def test_the_sdist_holds_what_the_wheel_is_built_from(built):
    with tarfile.open(built[1]) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "constraints.txt", "Makefile"} <= names
    assert {f"{room}/__init__.py" for room in ROOMS} <= names


def test_the_wheel_imports_in_an_environment_without_the_sources(built, tmp_path):
    # The dependencies come from this environment; actlake itself must come from the wheel.
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env/bin/python"
    site = next((tmp_path / "env/lib").glob("python3*/site-packages"))
    zipfile.ZipFile(built[0]).extractall(site)
    mine = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    code = (
        f"import sys; sys.path = [p for p in sys.path if p] + [{str(mine)!r}]\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"
        "import importlib, actlake\n"
        f"assert actlake.__file__.startswith({str(site)!r}), actlake.__file__\n"
        "rooms = ['schemas', 'store', 'corpus', 'analyze', 'models', 'cli', 'study', 'stages']\n"
        "try:\n    import torch\n    rooms += ['extract', 'steer']\nexcept ImportError:\n    pass\n"
        "for room in rooms: importlib.import_module('actlake.' + room)\n"
        "from actlake.corpus import bundled_corpus\n"
        "from actlake.models import organism_names, organism_path\n"
        "from actlake.study import load_study\n"
        "print(bundled_corpus('demo')[0].n_texts, load_study('bundled:demo').name)\n"
        "print([organism_path(n).name for n in organism_names()])\n"
    )
    done = subprocess.run(
        [python, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "llama-organism" in done.stdout


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = list(project["dependencies"])
    for extra in ("extract", "report", "paper", "vllm"):
        declared += extras[extra]
    names = {re.split(r"[\[<>=;~ ]", line)[0].lower().replace("-", "_") for line in declared}
    names |= {"distributed"} if "dask[array,distributed]" in "".join(declared) else set()
    imported_as = {
        "scikit_learn": "sklearn",
        "vadersentiment": "vaderSentiment",
        "vl_convert_python": "vl_convert",
    }
    known = {imported_as.get(name, name) for name in names}
    for room in (*ROOMS, "src/actlake"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found = {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found = {str(node.module).split(".")[0]}
                else:
                    continue
                assert found <= known | sys.stdlib_module_names, f"{path} imports {found}"


def test_the_repository_names_no_machine_and_no_registry():
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode != 0:
        pytest.fail("run the suite in a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        if path.is_symlink() or path.suffix in {".safetensors"} or not path.exists():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        assert "file://" + "/" not in text or name.endswith((".py", ".md", ".js")), name
        for pattern in ("/ro" + "ot/", "/ho" + "me/", "pypi" + ".org", "files.python" + "hosted"):
            assert pattern not in text, f"{name} holds {pattern}"
