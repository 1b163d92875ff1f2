"""A short run of the attacks, in a process of their own: it forks, and wraps system calls."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", ["kill", "error", "flip", "fuzz", "disturb"])
def test_no_promise_breaks(kind):
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--kinds", kind, "--rounds", "1",
         "--share", "0.4", "--seed", "20261127"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kind}: " in done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.slow
def test_no_promise_breaks_in_a_longer_run():
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--rounds", "8", "--seed", "20261128"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
