"""An average shared between processes is the average, with the same digests."""

import functools

import numpy as np
import pytest

from lawa_jax.distributed import ALONE
from lawa_jax.errors import CorruptCheckpointError, OutputExistsError, SelectionError
from lawa_jax.offline import plan as plan_
from lawa_jax.offline.prepare import average_checkpoints, prepare
from lawa_jax.offline.recipe import window_recipe
from lawa_jax.output import StepWriter
from lawa_jax.trajectory import open_checkpoint, verify_checkpoint
from lawa_jax.tree import LeafSpec

SHAPES = {"params/kernel": (32, 24), "params/bias": (24,), "params/scale": (), "step": ()}


@pytest.fixture
def run(tmp_path):
    """Three epochs, the kernel stored in 8 chunks, as 8 devices would."""
    rng = np.random.default_rng(0)
    specs = {
        name: LeafSpec(shape, np.dtype("int32" if name == "step" else "float32"))
        for name, shape in SHAPES.items()
    }
    keys = {name: tuple(name.split("/")) for name in specs}
    for epoch in (1, 2, 3):
        with StepWriter(
            tmp_path / "run" / "epochs" / str(epoch), specs, keys, chunks={"params/kernel": (4, 24)}
        ) as writer:
            for name, spec in specs.items():
                value = np.asarray(rng.normal(size=spec.shape) * 9, spec.dtype)
                writer.write(name, tuple(slice(0, n) for n in spec.shape), value)
            writer.finish()
    return tmp_path / "run"


def shared(run, out, group):
    return prepare([window_recipe(run, k=3)], group=group).written([out])[0]


@pytest.mark.parametrize("count", [2, 4])
def test_values_and_digests_are_those_of_one_process(as_processes, run, tmp_path, count):
    alone = shared(run, tmp_path / "alone", ALONE)
    results = as_processes(count, functools.partial(shared, run, tmp_path / "many"))
    for result in results:
        assert result.digests == alone.digests
        assert result.input_digests == alone.input_digests
    many = open_checkpoint(tmp_path / "many", include=("*",))
    assert many.checksums == open_checkpoint(tmp_path / "alone", include=("*",)).checksums
    assert verify_checkpoint(many) == len(many.leaves)
    expected = average_checkpoints(run, k=3)["params"]
    for name, leaf in many.read_tree()["params"].items():
        assert np.array_equal(leaf, expected[name])


def test_every_block_is_read_by_one_process(as_processes, run, tmp_path):
    def read(group):
        seen = []
        recipe = window_recipe(run, k=3)
        prepare([recipe], group=group).written([tmp_path / "out"], progress=seen.append)
        return sum(seen)

    parts = as_processes(2, read)
    assert sum(parts) == 3 * 4 * (32 * 24 + 24 + 1)
    # Balanced to within the largest chunk of three checkpoints.
    assert abs(parts[0] - parts[1]) <= 3 * 4 * (4 * 24 + 24)


def test_a_large_chunk_is_cut_for_several_processes(as_processes, run, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_, "CUT_BYTES", 64)
    alone = shared(run, tmp_path / "alone", ALONE)
    results = as_processes(3, functools.partial(shared, run, tmp_path / "many"))
    assert [r.digests for r in results] == [alone.digests] * 3
    assert open_checkpoint(tmp_path / "many", include=("*",)).chunk_shape("params/bias") == (8,)


def test_damage_in_one_share_ends_all_and_leaves_nothing(as_processes, run, tmp_path):
    chunk = run / "epochs" / "2" / "model" / "params.kernel" / "5.0"
    data = bytearray(chunk.read_bytes())
    data[9] ^= 1
    chunk.write_bytes(data)
    for error in as_processes(2, functools.partial(shared, run, tmp_path / "out")):
        assert isinstance(error, CorruptCheckpointError)
        assert "@2, leaf 'params/kernel': bytes changed since saving" in str(error)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_existing_output_is_refused_in_all(as_processes, run, tmp_path):
    (tmp_path / "out").mkdir()
    for error in as_processes(2, functools.partial(shared, run, tmp_path / "out")):
        assert isinstance(error, OutputExistsError)
        assert "already exists" in str(error)


def test_an_interruptible_pass_is_for_one_process(as_processes, run, tmp_path):
    def work(group):
        recipe = window_recipe(run, k=3)
        prepare([recipe], group=group).written([tmp_path / "out"], journal=tmp_path / "journal")

    assert all(isinstance(e, SelectionError) for e in as_processes(2, work))
