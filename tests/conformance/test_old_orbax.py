"""Checkpoints of an older Orbax, which lives in an environment of its own."""

import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.trajectory import open_checkpoint

OLD = ("orbax-checkpoint==0.6.4", "jax==0.4.34", "numpy<2.2")


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    root = tmp_path_factory.mktemp("old")
    venv.create(root / "venv", with_pip=True)
    python = root / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = subprocess.run(
        [python, "-m", "pip", "install", "-q", *OLD],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if install.returncode != 0:
        pytest.skip(f"{' '.join(OLD)} cannot be installed here: {install.stderr[-300:]}")
    script = Path(__file__).with_name("old_orbax_writer.py")
    subprocess.run(
        [python, script, root], check=True, cwd=root, env={}, capture_output=True, timeout=300
    )
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", ["default", "raw", "zarr3", "bare"])
def test_checkpoints_of_an_older_orbax(old, name):
    checkpoint = open_checkpoint(old / name)
    assert checkpoint.step == (None if name == "bare" else 5)
    assert {keys[0] for keys in checkpoint.keys.values()} == {"params"}
    for i in range(11):
        leaf = checkpoint.read_leaf(f"params/{i}/w")
        np.testing.assert_array_equal(leaf, np.full((2, 3), i, np.float32))
    assert checkpoint.read_leaf("params/half").dtype.name == "bfloat16"
    sharded = checkpoint.read_leaf("params/sharded")
    np.testing.assert_array_equal(sharded, np.arange(8, dtype=np.float32))
    # This Orbax left zarr 3 chunks of zeros out; of zarr 2 it stored them.
    np.testing.assert_array_equal(checkpoint.read_leaf("params/zeros"), np.zeros(4, np.float32))
    assert checkpoint.missing_reads_as_fill("params/zeros") == (name == "zarr3")
    assert open_checkpoint(old / name, include=["step"]).read_leaf("step") == 5


@pytest.mark.slow
def test_a_missing_chunk_of_an_older_checkpoint_is_an_error(old):
    (old / "raw/5/state/params.zeros/0").unlink()
    with pytest.raises(CorruptCheckpointError, match="params/zeros"):
        open_checkpoint(old / "raw").read_leaf("params/zeros")
