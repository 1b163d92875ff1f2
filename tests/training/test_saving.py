"""What training saves through Orbax: durable in order, whole or not at all, and never unnoticed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from lawa_jax.errors import CheckpointWriteError, CorruptCheckpointError, TreeMismatchError
from lawa_jax.output import publish as publish_
from lawa_jax.output import write_checkpoint
from lawa_jax.training import resume
from lawa_jax.training.loop import train
from lawa_jax.training.run_writer import RunWriter
from lawa_jax.training.step_saver import StepSaver
from lawa_jax.trajectory import list_steps, open_checkpoint, verify_checkpoint
from lawa_jax.tree import named_leaves

sys.path.insert(0, str(Path(__file__).parent))
from tiny import tiny_task

HERE = Path(__file__).parent
TREE = {"params": {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "n": np.int64(3)}}


def script(name, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, str(HERE / name), *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def train_tiny(run, **changes):
    task = tiny_task()
    restored = resume.restore_newest(run, task, lawa_k=1, say=print)
    start = restored or (task.place.state(task.init()), resume.Position())
    train(task, run, *start, **{"epochs": 3, "lawa_k": 2, "keep_resume": 9, **changes})


def newest(run):
    """The step that a resumed run goes on from, None at the beginning."""
    restored = resume.restore_newest(run, tiny_task(), lawa_k=1, say=print)
    return None if restored is None else restored[1].step


def checksums(run):
    return {e: open_checkpoint(run, step=e, include=("*",)).checksums for e in list_steps(run)}


def models(run):
    """The bytes of every model, each compared with its digests."""
    found = {}
    for epoch in list_steps(run):
        checkpoint = open_checkpoint(run, step=epoch, include=("*",))
        assert verify_checkpoint(checkpoint) == len(checkpoint.leaves)
        found[epoch] = {n: checkpoint.read_leaf(n).tobytes() for n in checkpoint.leaves}
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = epath.Path(tmp_path_factory.mktemp("run"))
    train_tiny(run)
    return run


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return epath.Path(tmp_path / "run")


def test_plain_orbax_restores_models_and_resume_states_in_another_process(finished):
    done = script("plain_restore.py", finished, 2, 8)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["epochs"] == [1, 2, 3]
    assert found["states"] == [4, 8, 12]
    assert found["algorithm"] == "lawa-sum64-v1"
    model = open_checkpoint(finished, step=2, include=("*",))
    assert found["metrics"] == found["same metrics"] == model.metrics
    state = open_checkpoint(finished / "resume", step=8, include=("*",))
    for tree, checkpoint in ((found["model"], model), (found["state"], state)):
        assert tree == {
            name: [spec.dtype.name, checkpoint.read_leaf(name).tobytes().hex()]
            for name, spec in checkpoint.leaves.items()
        }


def test_chunks_are_read_in_place(finished):
    model = open_checkpoint(finished, step=2, include=("*",))
    assert all(model.is_raw(name) for name in model.leaves)
    assert set(model.kinds.values()) == {"np.ndarray"}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a.b": np.ones(1), "a": {"b": np.ones(1)}}, "'a/b' and 'a.b' would be saved under one"),
        ({"a\\b": np.ones(1)}, "Orbax cannot restore an array of this name"),
        ({"": np.ones(1)}, "Orbax cannot restore an array of this name"),
        ({"a": {"..": np.ones(1)}}, None),
        (np.ones(1), "Orbax cannot restore an array of this name"),
        ({"a": np.ones((2, 0))}, r"leaf 'a' is float64\[2,0\]: Orbax cannot save an array without"),
    ],
)
def test_what_orbax_saves_wrongly_is_refused_before_saving(tmp_path, tree, message):
    with RunWriter(epath.Path(tmp_path)) as writer:
        if message is None:
            # Keys joined by dots make this a plain folder: it is saved, and restored.
            writer.save_epoch(1, tree, {})
            writer.wait()
            assert ocp.CheckpointManager(tmp_path / "epochs").restore(1)["model"] == tree
            return
        with pytest.raises(TreeMismatchError, match=message):
            writer.save_epoch(1, tree, {})
    assert list((tmp_path / "epochs").iterdir()) == []


def test_training_does_not_start_with_a_leaf_that_cannot_be_saved(tmp_path):
    task = tiny_task()
    state = task.place.state(task.init())
    state["model"]["batch_stats"]["none"] = jnp.zeros((0, 3))
    with pytest.raises(TreeMismatchError, match="batch_stats/none"):
        train(task, epath.Path(tmp_path), state, resume.Position(), epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_those_of_the_call_whatever_becomes_of_the_dict(tmp_path, monkeypatch):
    save, gate = StepSaver.save, threading.Event()

    def late(*arguments):
        assert gate.wait(60)
        return save(*arguments)

    monkeypatch.setattr(StepSaver, "save", late)
    metrics = {"val/loss": 0.5}
    with RunWriter(epath.Path(tmp_path)) as writer:
        writer.save_epoch(1, TREE, metrics)
        metrics["learning_rate"] = 0.1
        gate.set()
    assert open_checkpoint(tmp_path, step=1).metrics == {"val/loss": 0.5}


def test_the_tree_is_that_of_the_call_whatever_becomes_of_its_arrays(tmp_path):
    tree = {"w": np.zeros(1 << 16, np.float32)}
    with RunWriter(epath.Path(tmp_path)) as writer:
        writer.save_epoch(1, tree, {})
        tree["w"] += 1
    saved = open_checkpoint(tmp_path, step=1, include=("*",))
    assert not saved.read_leaf("w").any()
    assert verify_checkpoint(saved) == 1


def failing_sync(*arguments, **named):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def failing_write(*arguments, **named):
    failing_sync()


def no_save(self, *arguments, **named):
    return False


@pytest.mark.parametrize(
    ("owner", "name", "failing", "message"),
    [
        (publish_, "fsync_path", failing_sync, "No space left on device"),
        (ocp.CheckpointManager, "save", no_save, "Orbax did not save it"),
        (ocp.JsonCheckpointHandler, "_save_fn", failing_write, "No space left on device"),
        (ocp.JsonCheckpointHandler, "async_save", failing_sync, "No space left on device"),
    ],
    ids=["sync", "refused", "write", "begin"],
)
def test_a_failed_save_is_an_error_and_leaves_nothing_that_looks_finished(
    tmp_path, monkeypatch, owner, name, failing, message
):
    writer = RunWriter(epath.Path(tmp_path))
    writer.save_epoch(1, TREE, {})
    writer.wait()
    monkeypatch.setattr(owner, name, failing)
    writer.save_epoch(2, TREE, {})
    with pytest.raises(CheckpointWriteError, match=message) as caught:
        writer.wait_for_epoch(2)
    assert f"cannot write {tmp_path}/epochs/2: " in str(caught.value)
    # The next save says it, too, and so does the end.
    with pytest.raises(CheckpointWriteError, match=message):
        writer.save_epoch(3, TREE, {})
    with pytest.raises(CheckpointWriteError, match=message), writer:
        pass
    assert list_steps(tmp_path) == [1]
    monkeypatch.undo()
    with RunWriter(epath.Path(tmp_path)) as writer:
        writer.save_epoch(2, TREE, {})
    assert sorted(p.name for p in (tmp_path / "epochs").iterdir()) == ["1", "2"]


def test_a_write_that_failed_last_is_an_error_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(ocp.CheckpointManager, "save", no_save)
    with pytest.raises(CheckpointWriteError), RunWriter(epath.Path(tmp_path)) as writer:
        writer.save_resume(4, TREE)


def test_bytes_that_change_before_they_are_read_back_are_never_published(tmp_path, monkeypatch):
    complete = StepSaver._complete

    def damaging(self):
        chunk = self._staging / "model" / "params.w" / "0.0"
        data = bytearray(chunk.read_bytes())
        data[7] ^= 4
        chunk.write_bytes(bytes(data))
        complete(self)

    monkeypatch.setattr(StepSaver, "_complete", damaging)
    with (
        pytest.raises(CorruptCheckpointError, match="leaf 'params/w': bytes changed"),
        RunWriter(epath.Path(tmp_path)) as writer,
    ):
        writer.save_epoch(1, TREE, {})
    assert list((tmp_path / "epochs").iterdir()) == []


def test_models_are_durable_before_the_resume_state_that_follows_them(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, os.rename

    def recording_fsync(fd):
        fsync(fd)
        events.append(("sync", os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path)))

    def recording_rename(old, new, **named):
        rename(old, new, **named)
        events.append(("rename", os.path.relpath(new, tmp_path)))

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording_rename)
    with RunWriter(epath.Path(tmp_path)) as writer:
        writer.save_epoch(1, TREE, {"val/loss": 1.0})
        writer.save_resume(4, TREE)
    for step in ("epochs/1", "resume/4"):
        published = events.index(("rename", step))
        synced = {path for what, path in events[:published] if what == "sync"}
        for path in (tmp_path / step).rglob("*"):
            inside = path.relative_to(tmp_path / step)
            # Orbax stamps the step after that; the stamp is synced before anything follows.
            if inside.name != "commit_success.txt" or len(inside.parts) > 1:
                assert f"{step}.orbax-checkpoint-tmp/{inside}" in synced
    state = next(i for i, (_, path) in enumerate(events) if path.startswith("resume/"))
    for path in ("epochs/1", "epochs/1/_CHECKPOINT_METADATA", "epochs/1/commit_success.txt"):
        assert events.index(("rename", "epochs/1")) < events.index(("sync", path)) < state
    assert ("sync", "epochs") in events[events.index(("rename", "epochs/1")) : state]


def test_an_epoch_is_replaced_by_the_whole_new_one_in_one_rename(tmp_path, monkeypatch):
    complete, seen = StepSaver._complete, []

    def looking(self):
        seen.append(list_steps(tmp_path) and open_checkpoint(tmp_path, step=1).metrics)
        complete(self)

    monkeypatch.setattr(StepSaver, "_complete", looking)
    with RunWriter(epath.Path(tmp_path)) as writer:
        for loss in (2.0, 1.0):
            writer.save_epoch(1, TREE, {"val/loss": loss})
    assert seen == [[], {"val/loss": 2.0}]
    assert open_checkpoint(tmp_path, step=1).metrics == {"val/loss": 1.0}
    assert sorted(p.name for p in (tmp_path / "epochs").iterdir()) == ["1"]


def test_a_failed_replacement_leaves_the_old_epoch(tmp_path, monkeypatch):
    with RunWriter(epath.Path(tmp_path)) as writer:
        writer.save_epoch(1, TREE, {"val/loss": 2.0})
    monkeypatch.setattr(publish_, "fsync_path", failing_sync)
    with pytest.raises(CheckpointWriteError), RunWriter(epath.Path(tmp_path)) as writer:
        writer.save_epoch(1, TREE, {"val/loss": 1.0})
    assert open_checkpoint(tmp_path, step=1).metrics == {"val/loss": 2.0}


def test_resume_states_last_saved_are_kept_also_below_one_that_cannot_be_used(tmp_path):
    with RunWriter(epath.Path(tmp_path), keep_resume=2) as writer:
        for step in (1, 2, 9):
            writer.save_resume(step, TREE)
    assert list_steps(tmp_path / "resume") == [2, 9]
    with RunWriter(epath.Path(tmp_path), keep_resume=2) as writer:
        writer.save_resume(3, TREE)
        writer.save_resume(4, TREE)
    assert list_steps(tmp_path / "resume") == [3, 4]


@pytest.mark.parametrize("place", ["epochs/3/model/params.w", "resume/12/model/state.opt_state"])
def test_damage_is_found_when_it_is_read(copied, place):
    folder = next((copied / place).parent.glob(f"{Path(place).name}*"))
    chunk = folder / "0"
    data = bytearray(chunk.read_bytes())
    data[1] ^= 16
    chunk.write_bytes(bytes(data))
    read = {
        "resume": lambda: verify_checkpoint(open_checkpoint(copied / "resume", include=["*"])),
        "epochs": lambda: verify_checkpoint(open_checkpoint(copied, step=3)),
    }
    with pytest.raises(CorruptCheckpointError, match="bytes changed since saving"):
        read[Path(place).parts[0]]()


def test_a_run_of_the_writer_before_orbax_is_resumed_to_the_same_bits(finished, tmp_path):
    for folder, step, metrics in (("epochs", 1, {"val/loss": 1.0}), ("resume", 4, None)):
        tree = open_checkpoint(finished / folder, step=step, include=("*",)).read_tree()
        write_checkpoint(tmp_path / folder / str(step), tree, metrics=metrics)
    run = epath.Path(tmp_path)
    assert newest(run) == 4
    train_tiny(run)
    assert models(run) == models(finished)
    last = open_checkpoint(run / "resume", step=12, include=("*",))
    assert last.checksums == open_checkpoint(finished / "resume", step=12, include="*").checksums


SAVER = "lawa_jax.training.step_saver"
MANAGER = "orbax.checkpoint.CheckpointManager"
SOON = [
    # Orbax is writing the second model.
    (MANAGER, "wait_until_finished", 6, [1], 4),
    # The second model is durable, its resume state is not begun.
    (SAVER, "StepSaver.save", 4, [1, 2], 4),
]
LATER = [
    (SAVER, "StepSaver.save", 1, [], None),
    (SAVER, "StepSaver._complete", 3, [1], 4),
    (SAVER, "StepSaver._complete", 4, [1, 2], 4),
    (SAVER, "_check", 6, [1, 2, 3], 8),
    (SAVER, "_sync", 2, [1], None),
    (SAVER, "_sync", 4, [1], 4),
]


@pytest.mark.parametrize(
    ("module", "attribute", "call", "epochs", "state"),
    [*SOON, *(pytest.param(*moment, marks=pytest.mark.slow) for moment in LATER)],
)
def test_kill_9_while_saving_then_resume_gives_the_same_bits(
    finished, tmp_path, module, attribute, call, epochs, state
):
    run = epath.Path(tmp_path)
    name = "CheckpointManager." + attribute if module == MANAGER else attribute
    module = "orbax.checkpoint" if module == MANAGER else module
    done = script("killed_training.py", run, module, name, call)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list_steps(run) == epochs
    assert newest(run) == state
    models(run)
    train_tiny(run)
    assert models(run) == models(finished)
    assert checksums(run) == checksums(finished)
    assert not list(run.glob("*/*tmp*"))


@pytest.mark.parametrize(
    ("attribute", "call"),
    [
        ("StepSaver._complete", 1),
        pytest.param("_swap", 1, marks=pytest.mark.slow),
        pytest.param("publish", 1, marks=pytest.mark.slow),
    ],
)
def test_kill_9_while_an_epoch_is_replaced_keeps_the_old_one(copied, finished, attribute, call):
    for step in (8, 12):
        (copied / "resume" / str(step)).rmtree()
    before = (copied / "epochs" / "2" / "_CHECKPOINT_METADATA").read_text()
    done = script("killed_training.py", copied, SAVER, attribute, call)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert models(copied) == models(finished)
    assert (copied / "epochs" / "2" / "_CHECKPOINT_METADATA").read_text() == before
    train_tiny(copied)
    assert models(copied) == models(finished)
    assert (copied / "epochs" / "2" / "_CHECKPOINT_METADATA").read_text() != before
    assert not list(copied.glob("*/*tmp*"))


def test_names_are_those_of_the_tree(finished):
    state = resume.restore_newest(finished, tiny_task(), lawa_k=1, say=print)[0]
    saved = open_checkpoint(finished / "resume", step=12, include=("state",))
    assert {f"state/{name}" for name in named_leaves(state)} == set(saved.leaves)
