"""Object stores: no rename, so a commit marker written last, which readers require.

A local directory stands for the object store; writing goes through TensorStore as it would there.
"""

import numpy as np
import pytest

from lawa_jax.errors import CheckpointNotFoundError, CheckpointWriteError, OutputExistsError
from lawa_jax.output import StepWriter, destination, write_checkpoint
from lawa_jax.trajectory import list_steps, open_checkpoint, storage, verify_checkpoint
from lawa_jax.tree import LeafSpec

SPEC = LeafSpec((4, 3), np.dtype("float32"))
ARRAY = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    for module in (storage, destination):
        monkeypatch.setattr(module, "is_object_store", lambda path: True)
    return tmp_path


def started(path, **options):
    writer = StepWriter(path, {"w": SPEC}, {"w": ("w",)}, chunks={"w": (2, 2)}, **options)
    writer.write("w", (slice(0, 3), slice(0, 3)), ARRAY[:3])
    writer.write("w", (slice(3, 4), slice(0, 3)), ARRAY[3:])
    return writer


def test_visible_only_with_the_marker(bucket, monkeypatch):
    writer = started(bucket / "run/3")
    assert list_steps(bucket / "run") == []
    writer.finish()
    assert list_steps(bucket / "run") == [3]
    checkpoint = open_checkpoint(bucket / "run")
    assert verify_checkpoint(checkpoint) == 1
    np.testing.assert_array_equal(checkpoint.read_leaf("w"), ARRAY)

    (bucket / "run/3/commit_success.txt").unlink()
    assert list_steps(bucket / "run") == []
    with pytest.raises(CheckpointNotFoundError, match="or its commit marker is missing"):
        open_checkpoint(bucket / "run")


def test_the_marker_is_written_last(bucket, monkeypatch):
    written = []
    real = destination.ObjectStoreDestination.write_text

    def noted(self, name, text):
        written.append(name)
        real(self, name, text)

    monkeypatch.setattr(destination.ObjectStoreDestination, "write_text", noted)
    started(bucket / "3").finish()
    assert written[-1] == "commit_success.txt"
    assert written.count("commit_success.txt") == 1


def test_existing_output_is_refused(bucket):
    started(bucket / "3").finish()
    with pytest.raises(OutputExistsError, match="/3 already exists"):
        started(bucket / "3")
    writer = started(bucket / "3", overwrite=True)
    assert list_steps(bucket) == []  # the old one went first: object stores cannot swap
    writer.finish()
    assert list_steps(bucket) == [3]


def test_a_failed_write_leaves_nothing(bucket, monkeypatch):
    def full(self, bounds, block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(destination.TensorStoreSink, "write", full)
    with pytest.raises(CheckpointWriteError, match="No space left on device; nothing was publish"):
        write_checkpoint(bucket / "3", {"w": ARRAY})
    assert not (bucket / "3").exists()


def test_gs_paths_are_object_stores():
    assert storage.is_object_store("gs://bucket/run")
    assert not storage.is_object_store("/data/run")
