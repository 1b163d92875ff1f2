"""What pyproject.toml declares is what is used, and the other way round."""

import ast
import functools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"lawa_jax", "train", "convert", "configs", "benchmarks", "tests"}


def distribution(requirement):
    """``orbax-checkpoint`` of ``orbax-checkpoint>=0.12,<0.13``."""
    return re.split(r"[\[<>=!~; ]", requirement)[0].replace("_", "-").lower()


@functools.cache
def imported(*folders):
    """Distributions imported anywhere in these folders, None for those that are not installed."""
    distributions = packages_distributions()
    found = set()
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [str(node.module)]
            else:
                continue
            for module in (module.split(".")[0] for module in modules):
                local = (path.parent / f"{module}.py").exists()
                if module not in sys.stdlib_module_names and module not in OURS and not local:
                    names = distributions.get(module, [module])
                    found |= {name.replace("_", "-").lower() for name in names}
    return found


DEPENDENCIES = {distribution(line) for line in PROJECT["dependencies"]}
EXTRAS = {
    extra: {distribution(line) for line in lines}
    for extra, lines in PROJECT["optional-dependencies"].items()
}


def test_what_the_package_imports_is_declared():
    declared = DEPENDENCIES | EXTRAS["convert"] | EXTRAS["tfds"]
    assert imported("lawa_jax", "train", "convert", "configs") <= declared


@pytest.mark.parametrize("name", sorted(DEPENDENCIES | EXTRAS["convert"] | EXTRAS["tfds"]))
def test_what_is_declared_is_imported(name):
    assert name in imported("lawa_jax", "train", "convert", "configs", "benchmarks")


@pytest.mark.parametrize("name", sorted(EXTRAS["test-torch"]))
def test_what_tests_need_is_imported_by_them(name):
    assert name in imported("tests")


def test_the_default_environment_has_no_libtpu():
    # With it JAX reports errors at every start on a machine without a TPU.
    assert not any(re.search(r"libtpu|jax\[tpu|tpu-plan", line)
                   for extra in ("dev", "test", "test-torch")
                   for line in PROJECT["optional-dependencies"][extra])  # fmt: skip


def test_types_are_shipped():
    assert (ROOT / "lawa_jax" / "py.typed").is_file()
