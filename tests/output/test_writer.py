"""Written checkpoints: ordinary to Orbax, whole or absent, never replaced silently."""

import errno
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawa_jax.errors import CheckpointWriteError, CorruptCheckpointError, OutputExistsError
from lawa_jax.output import StepWriter, publish, write_checkpoint
from lawa_jax.trajectory import list_steps, open_checkpoint, verify_checkpoint
from lawa_jax.trajectory.digest import combine, leaf_digest, leaf_digest_block, to_hex
from lawa_jax.tree import LeafSpec, named_leaves

HERE = Path(__file__).parent


def tree():
    return {
        "params": {
            "w": np.arange(12, dtype=np.float32).reshape(3, 4),
            "half": jnp.arange(3, dtype=jnp.bfloat16),
            "list": [np.ones(2), np.zeros((2, 1), bool)],
            "10": {"k": np.float64(2.5)},
            "f8": jnp.ones(4, jnp.float8_e4m3fn),
            "c": np.array([1 + 2j], np.complex64),
            "linear/~/w": np.ones((2, 2), np.float32),  # as Haiku names them
        },
        "batch_stats": {"count": np.int64(7)},
        "lr": 0.5,
        "epoch": 3,
    }


def everything(path):
    return open_checkpoint(path, include=["*"])


def files_below(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_what_is_written_is_read_back(tmp_path):
    write_checkpoint(tmp_path / "epochs/3", tree(), metrics={"val/loss": 0.25})
    checkpoint = everything(tmp_path)
    assert checkpoint.metrics == {"val/loss": 0.25}
    assert checkpoint.step == 3
    saved = named_leaves(tree())
    assert set(checkpoint.leaves) == set(saved) == set(checkpoint.checksums)
    for name, leaf in saved.items():
        assert checkpoint.read_leaf(name).tobytes() == np.asarray(leaf).tobytes()
        assert checkpoint.is_raw(name)
        assert checkpoint.checksums[name] == to_hex(leaf_digest(leaf))
    assert verify_checkpoint(checkpoint) == len(saved)
    stored = json.loads((tmp_path / "epochs/3/checksums/metadata").read_text())
    assert stored["leaves"]["params/w"] == {
        "digest": to_hex(leaf_digest(tree()["params"]["w"])),
        "shape": [3, 4],
        "dtype": "float32",
    }
    assert [p.name for p in (tmp_path / "epochs").iterdir()] == ["3"]


def test_plain_orbax_loads_it_in_every_way(tmp_path):
    expected = {
        name: np.array([np.asarray(leaf).dtype.name, np.asarray(leaf).tobytes().hex()])
        for name, leaf in named_leaves(tree()).items()
    }
    np.savez(tmp_path / "expected.npz", **expected)
    write_checkpoint(
        tmp_path / "epochs/3",
        tree(),
        metrics={"val/loss": 0.25},
        json_items={"record": {"why": "test"}},
    )
    done = subprocess.run(
        [sys.executable, HERE / "plain_loader.py", tmp_path, "3", tmp_path / "expected.npz"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok") == 5


def test_prng_keys_and_sharded_arrays(tmp_path):
    mesh = jax.make_mesh((4,), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    key = jax.random.key(3)
    sharded = jax.device_put(jnp.arange(8.0), sharding)
    write_checkpoint(tmp_path / "1", {"key": key, "x": sharded})
    read = everything(tmp_path).read_tree()
    np.testing.assert_array_equal(read["x"], np.arange(8, dtype=np.float32))
    np.testing.assert_array_equal(read["key"], jax.random.key_data(key))


def test_structure_of_a_foreign_checkpoint_is_kept(foreign, tmp_path):
    source = everything(foreign / "state")
    with StepWriter(
        tmp_path / "1",
        source.leaves,
        source.keys,
        key_types=source.key_types,
        kinds=source.kinds,
        nodes=source.nodes,
        strings=source.strings,
    ) as writer:
        for name, spec in source.leaves.items():
            index = tuple(slice(0, n) for n in spec.shape)
            writer.write(name, index, source.read_leaf(name))
        writer.finish()
    copy = everything(tmp_path / "1")
    assert copy.key_types == source.key_types
    assert copy.empty == source.empty
    assert copy.strings == source.strings == {"note": "hello"}
    assert copy.kinds["lr"] == "scalar"
    assert copy.leaves == source.leaves


def test_existing_output_is_refused_and_unchanged(tmp_path):
    write_checkpoint(tmp_path / "3", {"x": np.ones(2)})
    with pytest.raises(OutputExistsError, match=r"/3 already exists .* say overwrite"):
        write_checkpoint(tmp_path / "3", {"x": np.zeros(2)})
    assert everything(tmp_path / "3").read_leaf("x").tolist() == [1, 1]
    write_checkpoint(tmp_path / "3", {"x": np.zeros(2)}, overwrite=True)
    assert everything(tmp_path / "3").read_leaf("x").tolist() == [0, 0]
    assert os.listdir(tmp_path) == ["3"]


@pytest.mark.parametrize("kernel", ["renameat2", "without"])
def test_a_rename_never_replaces(tmp_path, monkeypatch, kernel):
    if kernel == "without":
        monkeypatch.setattr(publish, "_renameat2", lambda: None)
    for name in ("new", "full", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/file").write_text("precious")
    (tmp_path / "plain").write_text("precious")
    for target in ("full", "empty", "plain"):
        with pytest.raises(OutputExistsError, match=f"/{target} already exists"):
            publish.publish(tmp_path / "new", tmp_path / target, overwrite=False)
    publish.publish(tmp_path / "new", tmp_path / "free", overwrite=False)
    assert sorted(os.listdir(tmp_path)) == ["empty", "free", "full", "plain"]
    publish.publish(tmp_path / "free", tmp_path / "full", overwrite=True)
    publish.publish(tmp_path / "full", tmp_path / "plain", overwrite=True)
    assert files_below(tmp_path) == ["empty", "plain"]


def write_one(directory, *, written=2, checksums=None, meanwhile=lambda: None):
    """A writer of one leaf of two ones, of which `written` are given to it."""
    spec = LeafSpec((2,), np.dtype("f4"))
    with StepWriter(directory, {"x": spec}, {"x": ("x",)}) as writer:
        writer.write("x", (slice(0, written),), np.ones(written, np.float32))
        meanwhile()
        writer.finish(checksums)


def test_published_by_somebody_else_meanwhile(tmp_path):
    def other():
        write_checkpoint(tmp_path / "3", {"x": np.zeros(2)})

    with pytest.raises(OutputExistsError, match="already exists"):
        write_one(tmp_path / "3", meanwhile=other)
    assert os.listdir(tmp_path) == ["3"]
    assert everything(tmp_path / "3").read_leaf("x").tolist() == [0, 0]


def test_missing_blocks_are_not_published(tmp_path):
    with pytest.raises(CorruptCheckpointError, match="leaf 'x': 1 of 2 elements were written"):
        write_one(tmp_path / "3", written=1)
    assert os.listdir(tmp_path) == []


def test_bytes_that_changed_on_the_way_are_not_published(tmp_path, monkeypatch):
    from lawa_jax.output import chunk_files

    real = os.pwrite

    def faulty(fd, data, offset):
        data = bytearray(data)
        data[3] ^= 4
        return real(fd, data, offset)

    monkeypatch.setattr(chunk_files.os, "pwrite", faulty)
    with pytest.raises(CorruptCheckpointError, match="leaf 'x': bytes changed since saving"):
        write_checkpoint(tmp_path / "3", {"x": np.ones(2)})
    assert os.listdir(tmp_path) == []


def test_given_checksums_must_hold(tmp_path):
    with pytest.raises(CorruptCheckpointError, match="bytes changed"):
        write_one(tmp_path / "3", checksums={"x": "0" * 16})
    assert os.listdir(tmp_path) == []
    write_one(tmp_path / "3", checksums={"x": to_hex(leaf_digest(np.ones(2, np.float32)))})


def test_staging_is_continued(tmp_path):
    spec, array = LeafSpec((4,), np.dtype("f4")), np.arange(4, dtype=np.float32)
    first, second = (slice(0, 2),), (slice(2, 4),)
    staging = tmp_path / "out.orbax-checkpoint-tmp-mine"
    before = StepWriter(tmp_path / "out", {"x": spec}, {"x": ("x",)}, staging=staging)
    before.write("x", first, array[:2])
    del before  # the process was killed here
    with StepWriter(tmp_path / "out", {"x": spec}, {"x": ("x",)}, staging=staging) as writer:
        writer.adopt("x", first, leaf_digest_block(array[:2], (4,), first))
        writer.write("x", second, array[2:])
        writer.finish()
    assert everything(tmp_path / "out").read_leaf("x").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("function", ["open", "pwrite", "ftruncate", "fsync"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, function):
    write_checkpoint(tmp_path / "2", {"x": np.ones(3)})
    before = files_below(tmp_path)
    real, messages = getattr(os, function), []

    def fails_at(limit):
        calls = itertools.count(1)

        def call(*args, **kwargs):
            if next(calls) == limit:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return call

    for limit in itertools.count(1):
        monkeypatch.setattr(os, function, fails_at(limit))
        try:
            write_checkpoint(tmp_path / "3", {"x": np.ones(3), "y": np.ones(3)})
        except (CheckpointWriteError, CorruptCheckpointError) as error:  # writing, reading back
            messages.append(str(error))
        else:
            break
        finally:
            monkeypatch.undo()
        assert files_below(tmp_path) == before
    assert len(messages) >= 2
    assert all("No space left on device" in message for message in messages)
    assert verify_checkpoint(everything(tmp_path / "3")) == 2


def test_no_permission_is_named(tmp_path):
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(CheckpointWriteError, match=r"cannot write .*/file/3: .*nothing was pub"):
        write_checkpoint(tmp_path / "file/3", {"x": np.ones(3)})


def test_killed_at_any_moment(tmp_path):
    done = subprocess.run(
        [sys.executable, HERE / "interrupted_writer.py", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path.cwd(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report["fresh"]) > 20
    assert report["fresh"][-1] == report["overwrite"][-1] == "finished: new"
    # Nothing, until all is there: never a mixture, never a part.
    switch = report["fresh"].index("new")
    assert set(report["fresh"][:switch]) == {"nothing"}
    assert set(report["fresh"][switch:-1]) == {"new"}
    switch = report["overwrite"].index("new")
    assert set(report["overwrite"][:switch]) == {"old"}
    assert set(report["overwrite"][switch:-1]) == {"new"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, "stored in one folder 'a.b'"),
        ({"a": np.ones(1), "a/b": np.ones(1)}, "'a/b' would be stored inside leaf 'a'"),
        ({"a/../b": np.ones(1)}, "make no folder name"),
        ({"/a": np.ones(1)}, "make no folder name"),
        ({"..": np.ones(1)}, "make no folder name"),
        (np.ones(1), "make no folder name"),
    ],
)
def test_names_that_cannot_be_stored(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        write_checkpoint(tmp_path / "1", bad)
    assert os.listdir(tmp_path) == []


def test_blocks_must_fit(tmp_path):
    spec = LeafSpec((4,), np.dtype("f4"))
    with StepWriter(tmp_path / "3", {"x": spec}, {"x": ("x",)}) as writer:
        with pytest.raises(ValueError, match=r"leaf 'x': block .* found float64\[2\]"):
            writer.write("x", (slice(0, 2),), np.ones(2))
        writer.abort()
    assert list_steps(tmp_path) == []


def test_threads_may_write_at_once(tmp_path):
    array = np.random.default_rng(0).standard_normal((64, 33)).astype(np.float32)
    spec = LeafSpec(array.shape, array.dtype)
    cuts = [(slice(i, i + 2), slice(a, b)) for i in range(0, 64, 2) for a, b in ((0, 10), (10, 33))]
    chunks = {"w": (16, 8)}
    with StepWriter(tmp_path / "1", {"w": spec}, {"w": ("w",)}, chunks=chunks) as writer:
        with ThreadPoolExecutor(8) as pool:
            digests = list(pool.map(lambda cut: writer.write("w", cut, array[cut]), cuts))
        assert combine(*digests) == leaf_digest(array)
        assert writer.digests() == {"w": to_hex(leaf_digest(array))}
        writer.finish()
    np.testing.assert_array_equal(everything(tmp_path / "1").read_leaf("w"), array)


def test_a_directory_that_cannot_be_listed_is_not_taken_for_synced(tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    original = os.scandir

    def refusing(path):
        if str(path).endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="secret"):
        publish.fsync_tree(tmp_path)
