"""Damaged and odd sources: each ends in the named error and its code, and nothing is written."""

import json
import shutil

import numpy as np
import pytest

from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory.digest import leaf_digest, to_hex


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def chunk(step):
    return next((step / "model" / "params.dense.kernel").glob("[0-9]*"))


def flip(step):
    data = bytearray(chunk(step).read_bytes())
    data[40] ^= 16
    chunk(step).write_bytes(bytes(data))


def truncate(step):
    chunk(step).write_bytes(chunk(step).read_bytes()[:-3])


def lose(step):
    chunk(step).unlink()


def rename(step):
    folder = step / "model" / "params.dense.kernel"
    folder.rename(folder.with_name("params.dense.weight"))


def spoil_header(step):
    (step / "model" / "params.dense.kernel" / ".zarray").write_text('{"shape": [20')


def spoil_tree(step):
    (step / "model" / "_METADATA").write_text("{}")


def poison(step):
    array = np.frombuffer(chunk(step).read_bytes(), np.float32).copy()
    array[7] = np.nan
    chunk(step).write_bytes(array.tobytes())
    path = step / "checksums" / "metadata"
    checksums = json.loads(path.read_text())
    checksums["leaves"]["params/dense/kernel"]["digest"] = to_hex(leaf_digest(array.reshape(20, 6)))
    path.write_text(json.dumps(checksums))


def other_shape(step):
    shutil.rmtree(step)
    write_checkpoint(step, {"params": {"dense": {"kernel": np.zeros((6, 20), np.float32)}}})


@pytest.mark.parametrize(
    ("damage", "code", "message"),
    [
        (flip, 3, "@9, leaf 'params/dense/kernel': bytes changed since saving"),
        (truncate, 3, "@9, leaf 'params/dense/kernel'"),
        (lose, 3, "@9, leaf 'params/dense/kernel'"),
        (rename, 3, "@9: array 'params.dense.kernel' is missing"),
        (spoil_header, 3, "params.dense.kernel/.zarray"),
        (spoil_tree, 3, "_METADATA"),
        (poison, 3, "@9, leaf 'params/dense/kernel': nan at [1, 1]; leave this checkpoint out"),
        (other_shape, 2, "Only checkpoints of one model can be averaged"),
        (shutil.rmtree, 2, "the window 6..10 misses checkpoint 9 of a run saved every 1"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_damage_is_named(lawa, copy, tmp_path, damage, code, message):
    damage(copy / "epochs" / "9")
    for command in ("average", "sweep"):
        ends = ["--end", "10"]
        done = lawa(command, copy, "-k", "4", *ends, "-o", tmp_path / "outs" / command)
        assert (done.code, message in done.err) == (code, True), done.err
        assert not (tmp_path / "outs" / "average").exists()
        assert not (tmp_path / "outs" / "sweep" / "k4-end10-uniform").exists()
    # The others can still be averaged.
    assert lawa("average", copy, "-k", "2", "--end", "8", "-o", tmp_path / "fine").code == 0


def test_layers_stored_in_another_order_are_paired_by_name(lawa, tmp_path):
    """JSON keeps the order of keys: "10" before "2" in one checkpoint, after it in the other."""
    for step, names in ((1, ["10", "2", "1"]), (2, ["1", "2", "10"])):
        layers = {name: np.full(2, int(name) + step, np.float32) for name in names}
        write_checkpoint(tmp_path / "run" / str(step), {"params": {"layers": layers}})
        path = tmp_path / "run" / str(step) / "model" / "_METADATA"
        metadata = json.loads(path.read_text())
        key = {name: k for k in metadata["tree_metadata"] for name in names if f"'{name}'" in k}
        metadata["tree_metadata"] = {key[n]: metadata["tree_metadata"][key[n]] for n in names}
        path.write_text(json.dumps(metadata))
    assert lawa("average", tmp_path / "run", "-k", "2", "-o", tmp_path / "out").code == 0
    for name in ("1", "2", "10"):
        stored = (tmp_path / "out" / "model" / f"params.layers.{name}" / "0").read_bytes()
        assert np.frombuffer(stored, np.float32).tolist() == [int(name) + 1.5] * 2
