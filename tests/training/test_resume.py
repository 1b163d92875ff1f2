import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from lawa_jax.errors import CheckpointNotFoundError, ConfigError
from lawa_jax.output import write_checkpoint
from lawa_jax.training import resume
from lawa_jax.training.log import JsonLog
from lawa_jax.training.loop import train
from lawa_jax.training.optim import sgd
from lawa_jax.trajectory import list_steps

sys.path.insert(0, str(Path(__file__).parent))
from tiny import tiny_task


def test_leaves_are_paired_by_name_into_the_containers_of_the_template():
    template = {"a": (np.zeros(2), [np.zeros(3)])}
    stored = {"a": {"1": {"0": np.ones(3)}, "0": np.full(2, 2.0)}}
    filled = resume.fill(template, stored, "RUN@1")
    assert isinstance(filled["a"], tuple)
    assert filled["a"][0].tolist() == [2, 2]
    assert filled["a"][1][0].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({}, "RUN@1: leaf 'w' is missing"),
        ({"w": np.zeros(2), "v": np.zeros(1)}, "RUN@1: leaf 'v' is not expected"),
        ({"w": np.zeros(3)}, r"leaf 'w': expected float64\[2\], found float64\[3\]"),
        ({"w": np.zeros(2, np.float32)}, r"expected float64\[2\], found float32\[2\]"),
    ],
)
def test_a_state_of_another_model_is_refused(stored, message):
    with pytest.raises(ConfigError, match=message):
        resume.fill({"w": np.zeros(2)}, stored, "RUN@1")


def test_starting_from_a_checkpoint_takes_its_weights_and_a_fresh_optimizer(tmp_path):
    task = tiny_task(seed=0)
    other = tiny_task(seed=1).init()["model"]
    write_checkpoint(tmp_path / "average", other)
    state = resume.initial_model(str(tmp_path / "average"), task)
    assert np.array_equal(state["model"]["params"]["w"], other["params"]["w"])
    assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(state["opt_state"]))


def test_starting_from_another_models_checkpoint_is_refused(tmp_path):
    write_checkpoint(tmp_path / "other", {"params": {"v": np.zeros(3, np.float32)}})
    with pytest.raises(ConfigError, match=r"--init_from .*other.*leaf"):
        resume.initial_model(str(tmp_path / "other"), tiny_task())


def test_sgd_states_that_were_saved_under_former_names_resume():
    params = {"conv": {"w": np.arange(3.0, dtype=np.float32)}}
    template = {"model": params, "opt_state": sgd().init(params)}
    stored = {
        "model": params,
        "opt_state": {"momentum_buffer": {"conv": {"w": params["conv"]["w"] + 1}}},
    }
    filled = resume.fill(template, stored, "RUN@1")
    assert filled["opt_state"][1].trace["conv"]["w"].tolist() == [1, 2, 3]
    assert filled["model"]["conv"]["w"].tolist() == [0, 1, 2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three epochs with models and two resume states."""
    run = epath.Path(tmp_path_factory.mktemp("trained") / "run")
    run.mkdir()
    task = tiny_task()
    state = task.place.state(task.init())
    train(task, run, state, resume.Position(), epochs=3, lawa_k=2)
    return run


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return epath.Path(tmp_path / "run")


def restored(run, lawa_k=2):
    said = []
    found = resume.restore_newest(run, tiny_task(), lawa_k=lawa_k, say=said.append)
    return (None if found is None else found[1].finished_epochs), said


def damage(step):
    """Flip a bit in the largest file of a step."""
    largest = max(Path(step).rglob("*/[0-9]*"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(bytes(content))


def resume_steps(run):
    return list_steps(run / "resume")


def test_the_newest_state_is_taken(run):
    assert restored(run) == (3, [])


def test_a_run_that_has_saved_nothing_starts_at_the_beginning(tmp_path):
    assert restored(epath.Path(tmp_path)) == (None, [])


def test_a_run_killed_after_its_first_model_begins_again(run):
    shutil.rmtree(run / "resume")
    for epoch in (2, 3):
        shutil.rmtree(run / "epochs" / str(epoch))
    finished, said = restored(run)
    assert finished is None
    assert "epoch 1 was saved, but no resume state after it" in said[0]


def test_a_damaged_newest_state_falls_back_to_the_older_one_with_a_note(run):
    newest = resume_steps(run)[-1]
    damage(run / "resume" / str(newest))
    finished, said = restored(run)
    assert finished == 2
    (note,) = said
    assert note.startswith(f"note: resume state {newest} is damaged")


@pytest.mark.parametrize("lost", [[3], [2, 3], [1, 2, 3]])
def test_missing_models_are_named_and_never_trained_again_silently(run, lost):
    for epoch in lost:
        shutil.rmtree(run / "epochs" / str(epoch))
    if lost == [3]:
        # The older state needs epochs 1 and 2 alone.
        finished, said = restored(run)
        assert finished == 2
        assert "needs the models of epochs 2, 3, of which 3 is missing" in said[0]
        return
    with pytest.raises(CheckpointNotFoundError, match=r"cannot be resumed: .*missing.*nothing was"):
        restored(run)


def test_a_model_that_no_later_window_needs_may_be_missing(run):
    shutil.rmtree(run / "epochs" / "1")
    assert restored(run) == (3, [])


def test_without_a_usable_state_the_error_says_what_is_there(run):
    for step in resume_steps(run):
        damage(run / "resume" / str(step))
    with pytest.raises(CheckpointNotFoundError, match=r"is damaged.*of epochs 1\.\.3.*--init_from"):
        restored(run)
    shutil.rmtree(run / "resume")
    with pytest.raises(CheckpointNotFoundError, match="it holds no resume state"):
        restored(run)


def test_a_damaged_old_model_ends_the_windows_that_need_it_and_not_the_training(run, capsys):
    damage(run / "epochs" / "2")
    task = tiny_task()
    found = resume.restore_newest(run, task, lawa_k=2, say=print)
    (run / "log.jsonl").unlink()
    train(task, run, *found, epochs=5, lawa_k=2)
    assert list_steps(run) == [1, 2, 3, 4, 5]
    log = JsonLog(run / "log.jsonl")
    assert {row["end"] for row in log.events("lawa")} == {4, 5}
    assert {row["end"] for row in log.events("lawa_failed")} == {2, 3}
    assert "end   3 could not be evaluated: " in capsys.readouterr().err
