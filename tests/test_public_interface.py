"""What README and docs tell people to import and to start exists, and is public."""

import functools
import importlib
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import lawa_jax

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/RESULTS.md"]
TEXT = "\n".join(page.read_text() for page in PAGES)
STARTED = sorted(set(re.findall(r"-m (lawa_jax[\w.]*\w)", TEXT)))
IMPORTED = sorted(
    {f"lawa_jax.{name}" for line in re.findall(r"from lawa_jax import (.*)", TEXT)
     for name in re.findall(r"\w+", line)}
    | set(re.findall(r"\blawa_jax(?:\.\w+)+", TEXT))
    - set(STARTED)
)  # fmt: skip
FOLDERS = "lawa_jax|train|convert|configs|benchmarks|docs|tests"
FILES = sorted(set(re.findall(rf"\b(?:{FOLDERS})/[\w/]+\.(?:py|md|png)", TEXT)))


def test_docs_import_something():
    assert {"lawa_jax.average", "lawa_jax.average_checkpoints"} <= set(IMPORTED)


@pytest.mark.parametrize("name", IMPORTED)
def test_documented_names_are_public(name):
    first, *rest = name.split(".")[1:]
    assert first in lawa_jax.__all__
    functools.reduce(getattr, rest, getattr(lawa_jax, first))


def test_docs_import_no_internal_module():
    assert not re.findall(r"(?:from|import) lawa_jax\.\S+", TEXT)


@pytest.mark.parametrize("module", STARTED)
def test_documented_modules_can_be_started(module):
    assert "__main__" in Path(importlib.import_module(module).__file__).read_text()


@pytest.mark.parametrize("place", FILES)
def test_documented_files_exist(place):
    assert (ROOT / place).exists()


@pytest.mark.parametrize("name", lawa_jax.__all__)
def test_every_public_name_is_there_and_described(name):
    assert getattr(lawa_jax, name) is not None
    assert re.search(rf"\b{name}\b", lawa_jax.__doc__)
    assert name in dir(lawa_jax)


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'averaged'"):
        _ = lawa_jax.averaged


def test_version():
    done = subprocess.run(
        [sys.executable, "-m", "lawa_jax.cli.main", "--version"], cwd=ROOT, check=True, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.stdout == f"lawa {lawa_jax.__version__}\n"
    assert lawa_jax.__version__ == metadata.version("lawa-jax")


def test_a_checkout_that_is_not_installed_says_so(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert lawa_jax.__version__ == "unknown"
