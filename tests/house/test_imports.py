"""The rooms import in one direction, and the cheap things stay cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("schemas", "store", "corpus", "extract", "analyze", "steer", "models")
ALLOWED = {
    "schemas": set(),
    "store": {"schemas"},
    "corpus": {"schemas", "store"},
    "models": {"schemas", "corpus"},
    "extract": {"schemas", "store", "corpus", "models"},
    "analyze": {"schemas", "store", "corpus"},
    "steer": {"schemas", "store", "corpus", "models", "extract"},
}
# The script that trains the organisms is a program, not a part that others import.
PROGRAMS = {"models/train.py", "models/behaviour.py", "models/card.py", "models/architectures.py"}
TORCH_FREE = ("schemas", "store", "corpus", "analyze", "models")


def modules(room):
    return sorted((ROOT / room).rglob("*.py"))


def imports(path, *, top_level_only):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_before_it(room):
    for path in modules(room):
        if str(path.relative_to(ROOT)) in PROGRAMS:
            continue
        depth = len(path.relative_to(ROOT / room).parts)
        for level, name in imports(path, top_level_only=False):
            if level > depth:
                other = name.split(".")[0]
                assert other in {room, "_version"} | ALLOWED[room], f"{path}: from ..{name}"
            assert not name.startswith("actlake"), f"{path} imports itself from outside"


@pytest.mark.parametrize("room", TORCH_FREE)
def test_rooms_for_the_laptop_never_import_torch(room):
    for path in modules(room):
        if str(path.relative_to(ROOT)) in PROGRAMS:
            continue
        names = {
            name.split(".")[0] for level, name in imports(path, top_level_only=False) if not level
        }
        assert not names & {"torch", "transformers", "vllm"}, path


@pytest.mark.parametrize("code", ["import actlake", "import actlake.cli", "import actlake.schemas"])
def test_help_and_the_bare_import_are_cheap(code):
    heavy = ["torch", "transformers", "dask", "zarr", "xarray", "pandas", "sklearn"]
    check = f"{code}; import sys; print(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist():
    import actlake

    for name in actlake.__all__:
        if name in {"extract", "steer"}:
            continue  # these two need torch; their own tests import them
        assert getattr(actlake, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'stroe'"):
        _ = actlake.stroe


def offered(room):
    """The names of a room: rooms export lazily, so a type checker takes any name for granted."""
    folder = ROOT / room if room else ROOT / "src" / "actlake"
    modules = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir()}
    for node in ast.parse((folder / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return modules | set(ast.literal_eval(node.value))
    pytest.fail(f"{folder}/__init__.py has no __all__")


def asked_of_rooms(path):
    """The rooms that a file imports from, "" for the package itself, with the names."""
    depth = 1 if path.parent == ROOT / "src" / "actlake" else 2
    inside = path.parts[len(ROOT.parts)] in {"src", *ROOMS}
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        parts = (node.module or "").split(".") if node.module else []
        if node.level and inside and node.level == depth:
            parts = ["actlake", *parts]
        if parts[:1] == ["actlake"] and (parts[1:] == [] or parts[1:] in [[r] for r in ROOMS]):
            yield "".join(parts[1:]), {alias.name for alias in node.names}


def test_every_name_that_is_imported_from_a_room_is_offered_by_it():
    names, seen = {room: offered(room) for room in ("", *ROOMS)}, 0
    for folder in ("src", "tests", "benchmarks", *ROOMS):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for room, asked in asked_of_rooms(path):
                seen += 1
                assert asked <= names[room], f"{path}: {asked - names[room]} of {room or 'actlake'}"
    assert seen > 500
