"""The arrows between the rooms, asserted: who may import whom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lawa_jax"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up: a room may import rooms of lower or equal level.
LEVELS = {
    "errors": 0,
    "tree": 1,
    "script": 1,
    "untrusted": 1,
    "display": 1,
    "averaging": 2,
    "distributed": 2,
    "models": 3,
    "data": 3,
    "trajectory": 4,
    "output": 5,
    "interop": 6,
    "online": 6,
    "offline": 6,
    "search": 7,
    "report": 8,
    "training": 9,
    "planning": 10,
    "cli": 11,
    "__init__": 11,
}
MATHEMATICS = ("tree", "averaging")


def imports(path):
    """Modules a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_arrows_only_point_up(path):
    own = room(path)
    assert own in LEVELS, f"{own} is a new room: give it a level"
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "lawa_jax" and len(parts) > 1 and parts[1] in LEVELS:
            assert LEVELS[parts[1]] <= LEVELS[own], f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_libraries_stay_in_their_rooms(path):
    roots = {module.split(".")[0] for module in imports(path)}
    assert not roots & {"train", "convert", "configs", "benchmarks", "tests"}
    if room(path) != "training":
        assert "orbax" not in roots
    if path != PACKAGE / "trajectory" / "formats" / "torch_files.py":
        assert "torch" not in roots
    if room(path) in MATHEMATICS:
        assert not roots & {"flax", "orbax", "etils", "os", "pathlib", "io", "tensorstore"}
    if room(path) in ("models", "data"):
        assert not any(m.startswith("lawa_jax.training") for m in imports(path))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400


def classes_of(path):
    """Names of the classes and type aliases that a file defines at its top level."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            # CamelCase: an alias or a type variable; CAPITALS are constants.
            yield from (n for n in names if n[0].isupper() and not n.isupper())


def test_one_name_for_one_thing():
    files = [path.name for path in MODULES if path.name != "__init__.py"]
    classes = [found for path in MODULES for found in classes_of(path)]
    for names in (files, classes):
        assert sorted({n for n in names if names.count(n) > 1}) == []
