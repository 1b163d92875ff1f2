"""Addresses and directory names."""

import subprocess
import sys

import pytest

from lawa_jax.errors import CheckpointNotFoundError, SelectionError
from lawa_jax.trajectory import list_steps, open_checkpoint, parse_address
from lawa_jax.trajectory.step_names import step_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RUN", ("RUN", None)),
        ("RUN@90", ("RUN", 90)),
        ("a@b/RUN@0090", ("a@b/RUN", 90)),
        ("a@b/RUN", ("a@b/RUN", None)),
        ("gs://bucket/run@3", ("gs://bucket/run", 3)),
    ],
)
def test_addresses(text, expected):
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["RUN@", "RUN@latest", "RUN@-1", "RUN@1.5", "@"])
def test_wrong_addresses(text):
    with pytest.raises(SelectionError, match="expected RUN@STEP with a whole number"):
        parse_address(text)


def test_paths_that_hold_an_at_sign(tmp_path):
    path = tmp_path / "run@home"
    path.mkdir()
    assert parse_address(str(path)) == (str(path), None)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("90", 90),
        ("000090", 90),
        ("checkpoint_90", 90),
        ("my_run_90", 90),
        ("run90", None),
        ("90.orbax-checkpoint-tmp", None),
        ("90.orbax-checkpoint-tmp-17", None),
        ("_90", None),
        ("model", None),
        (".90", None),
    ],
)
def test_step_names(name, step):
    assert step_of(name) == step


def test_a_directory_without_checkpoints(tmp_path):
    (tmp_path / "2").mkdir()
    (tmp_path / "3").write_text("a file")
    assert list_steps(tmp_path) == []


def test_msgpack_files_are_not_orbax_checkpoints(tmp_path):
    (tmp_path / "checkpoint_100").write_bytes(b"...")
    with pytest.raises(CheckpointNotFoundError, match="restore them with flax"):
        open_checkpoint(tmp_path)


def test_listing_imports_nothing_heavy(foreign):
    code = (
        "import sys; from lawa_jax.trajectory import list_steps, open_checkpoint;"
        f"assert list_steps({str(foreign / 'raw')!r}) == [2, 10];"
        f"assert open_checkpoint({str(foreign / 'raw')!r}).nbytes > 0;"
        "heavy = {'jax', 'orbax', 'tensorstore', 'flax', 'torch'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    environment = {"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)
