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
    "script": 3,
    "window": 2,
    "coefficients": 2,
    "summation": 2,
    "host_averaging": 2,
    "averaging": 3,
    "digest": 2,
    "distributed": 2,
    "checkpoints": 4,
    "jobs": 5,
    "record": 6,
    "journal": 6,
    "outputs": 6,
    "provenance": 7,
    "streaming": 5,
    "trajectory": 6,
    "batch_norm": 2,
    "models": 2,
    "data": 2,
    "interop": 7,
    "training": 7,
    "planning": 8,
    "report": 7,
    "online": 4,
    "soup": 4,
    "posthoc_ema": 3,
    "evaluators": 1,
    "results": 5,
    "evaluation": 7,
    "trainable": 4,
    "commands": 8,
    "cli": 9,
    "__init__": 9,
}
MATHEMATICS = ("tree", "window", "coefficients", "summation", "averaging", "host_averaging")


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
    if room(path) != "checkpoints":
        assert "orbax" not in roots
    if path != PACKAGE / "interop" / "torch_files.py":
        assert "torch" not in roots
    if room(path) in MATHEMATICS:
        assert not roots & {"flax", "orbax", "etils", "os", "pathlib", "io", "tensorstore"}
    if room(path) in ("models", "data"):
        assert not any(m.startswith("lawa_jax.training") for m in imports(path))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_files_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
