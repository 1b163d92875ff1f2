"""A strict JAX for every test: no silent promotion, no silent broadcasting, several devices."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Child processes inherit the number of devices through the environment.
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import jax
import ml_dtypes  # noqa: F401
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# In the background of a shell SIGINT is ignored, and in all children too, some of which are tested
# by interrupting them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Compilation makes the first example slow; no test depends on the clock.
hypothesis.settings.register_profile("lawa", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("lawa")


@pytest.fixture(scope="session")
def foreign(tmp_path_factory):
    """Directory of checkpoints in many layouts; see `foreign_writer.py`."""
    root = tmp_path_factory.mktemp("foreign")
    script = Path(__file__).parent / "conformance" / "foreign_writer.py"
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
