"""Checkpoints written by code that knows nothing of this package, once a session."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes  # noqa: F401
import numpy as np
import pytest


@pytest.fixture(scope="session")
def foreign(tmp_path_factory):
    """Directory of checkpoints in many layouts; see `foreign_writer.py`."""
    root = tmp_path_factory.mktemp("foreign")
    script = Path(__file__).with_name("foreign_writer.py")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, str(script), str(root)],
        check=True,
        cwd=root,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    return root


@pytest.fixture(scope="session")
def expected(foreign):
    """What was saved: leaves by name, of the checkpoint with this name."""

    def load(name):
        stored = np.load(foreign / f"{name}.expected.npz")
        return {
            leaf: np.frombuffer(stored[leaf].tobytes(), np.dtype(dtype)).reshape(shape)
            for leaf, (dtype, shape) in json.loads(str(stored["kinds"])).items()
        }

    return load
