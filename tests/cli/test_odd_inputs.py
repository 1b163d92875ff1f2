"""Inputs that are legal and odd, or no files at all."""

import os
import shutil
import stat
from collections import namedtuple

import ml_dtypes
import numpy as np
import pytest

from lawa_jax.output import space, write_checkpoint
from lawa_jax.trajectory import open_checkpoint

TINY = float(np.finfo(np.float32).smallest_subnormal)


def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(lawa, tmp_path):
    for name in ("_METADATA", "params.w/0.0", "params.w/.zarray"):
        run = tmp_path / name.replace("/", "-")
        for step in (1, 2):
            write_checkpoint(run / str(step), {"params": {"w": np.ones((2, 2), np.float32)}})
        path = run / "2" / "model" / name
        path.unlink()
        os.mkfifo(path)
        done = lawa("average", run, "-k", "2", "-o", tmp_path / "out")
        assert done.code == 3
        assert "expected a regular file, found a pipe or device" in done.err


def test_names_that_command_a_terminal_are_shown_harmless(lawa, tmp_path):
    name = "w\x1b[31m\x07"
    write_checkpoint(tmp_path / "1", {name: np.ones(2, np.float32)})
    write_checkpoint(tmp_path / "2", {name: np.float32([1, np.nan])})
    shown = lawa("inspect", tmp_path / "1")
    assert "\x1b" not in shown.out
    assert r"w\x1b[31m\x07" in shown.out
    refused = lawa("average", tmp_path, "-k", "2", "-o", tmp_path / "out")
    assert (refused.code, "\x1b" in refused.err) == (3, False)


@pytest.mark.parametrize(
    "values",
    [
        np.float32([-0.0, 0.0, TINY, -TINY]),
        np.array([1.5, -0.0], ml_dtypes.bfloat16),
        np.array([1.5, -0.0], ml_dtypes.float8_e4m3fn),
        np.array([2 + 3j, -0.0j], np.complex64),
        np.array(3.25),
        np.zeros((0, 4), np.float32),
        np.zeros((3, 0), np.int32),
    ],
    ids=["subnormal", "bfloat16", "float8", "complex", "0-d", "empty", "empty-int"],
)
def test_averages_of_equal_odd_leaves_are_the_leaf(lawa, tmp_path, values):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path / "run" / str(step), {"a.b": {"w": values}, "x": np.ones(1)})
    assert lawa("average", tmp_path / "run", "-k", "3", "-o", tmp_path / "out").code == 0
    found = open_checkpoint(tmp_path / "out").read_leaf("a.b/w")
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    assert found.tobytes() == values.tobytes()
    assert lawa("verify", tmp_path / "out").code == 0


def test_bits_of_nan_are_kept_and_never_averaged(lawa, tmp_path):
    bits = np.uint32([0x7FC00001, 0xFFC12345]).view(np.float32)
    for step in (1, 2):
        write_checkpoint(tmp_path / "run" / str(step), {"w": bits, "v": np.ones(1)})
    assert open_checkpoint(tmp_path / "run").read_leaf("w").tobytes() == bits.tobytes()
    assert lawa("average", tmp_path / "run", "-k", "2", "-o", tmp_path / "out").code == 3


def test_names_that_orbax_cannot_restore_are_refused(lawa, tmp_path):
    with pytest.raises(ValueError, match=r"leaf 'a\\\\b' cannot be stored"):
        write_checkpoint(tmp_path / "1", {"a\\b": np.ones(1)})


def test_a_disk_without_room_is_found_before_anything_is_written(lawa, run, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    done = lawa("average", run, "-k", "3", "-o", tmp_path / "deep" / "out")
    assert done.code == 3
    assert "needed, 1.0 kB free on that disk" in done.err
    assert not (tmp_path / "deep").exists()


def test_sources_that_cannot_be_written_are_read_and_outputs_have_the_users_mode(
    lawa, run, tmp_path
):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    mask = os.umask(0o027)
    try:
        assert lawa("average", copy, "-k", "3", "-o", tmp_path / "out").code == 0
    finally:
        os.umask(mask)
        for path in [copy, *copy.rglob("*")]:
            path.chmod(0o755)
    modes = {p.is_dir(): stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").rglob("*")}
    assert modes == {True: 0o750, False: 0o640}
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o750
