import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from lawa_jax.averaging.host import BlockAverage
from lawa_jax.errors import CheckpointNotFoundError, TrainingFailedError
from lawa_jax.script import Terminated
from lawa_jax.training import lawa, resume
from lawa_jax.training.log import JsonLog
from lawa_jax.training.loop import train
from lawa_jax.trajectory import list_steps, open_checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from tiny import tiny_task

EPOCHS, K = 5, 3


def run_from_scratch(task, run, **options):
    state = task.place.state(task.init())
    options = {"epochs": EPOCHS, "lawa_k": K, **options}
    train(task, run, state, resume.Position(), **options)


def resume_run(task, run, **options):
    restored = resume.restore_newest(run, task, lawa_k=options.get("lawa_k", K), say=print)
    train(task, run, *restored, **{"epochs": EPOCHS, "lawa_k": K, **options})


def newest(run, lawa_k=1):
    """The step that a resumed run goes on from."""
    return resume.restore_newest(run, tiny_task(), lawa_k=lawa_k, say=print)[1].step


def checksums(run):
    return {e: open_checkpoint(run, step=e, include=("*",)).checksums for e in list_steps(run)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = epath.Path(tmp_path_factory.mktemp("run"))
    run_from_scratch(tiny_task(), run)
    return run


def test_every_epoch_is_saved_with_metrics_and_checksums(finished):
    assert list_steps(finished) == [1, 2, 3, 4, 5]
    last = open_checkpoint(finished, step=5, include=("*",))
    assert set(last.leaves) == {"params/w", "batch_stats/seen"} == set(last.checksums)
    assert last.read_leaf("batch_stats/seen") == 20
    logged = JsonLog(finished / "log.jsonl").by("epoch", "epoch")[5]
    assert last.metrics["val/loss"] == logged["val/loss"] < logged["train/loss"]


def test_training_learns_and_metrics_count_every_sample(finished):
    task = tiny_task()
    model = task.place.state(open_checkpoint(finished, step=5, include=("*",)).read_tree())
    x = np.concatenate([b["x"][b["mask"]] for b in task.eval_batches("val")]).astype(np.float64)
    y = np.concatenate([b["y"][b["mask"]] for b in task.eval_batches("val")]).astype(np.float64)
    expected = np.mean((x @ np.asarray(model["params"]["w"], np.float64) - y) ** 2)
    np.testing.assert_allclose(lawa.evaluate(task, model)["loss"], expected, rtol=1e-5)


def test_lawa_starts_at_epoch_k_and_averages_exactly_the_k_latest(finished):
    rows = JsonLog(finished / "log.jsonl").by("lawa", "end")
    assert sorted(rows) == [3, 4, 5]
    average = lawa.average_on_device(finished, k=K, end=4, task=tiny_task())
    assert average.steps == (2, 3, 4)


def test_average_in_training_is_the_average_afterwards_bit_for_bit(finished):
    device = np.asarray(
        lawa.average_on_device(finished, k=K, end=5, task=tiny_task()).model["params"]["w"]
    )
    host = BlockAverage(3, np.dtype(np.float32))
    for step in (3, 4, 5):
        host.add(open_checkpoint(finished, step=step).read_leaf("params/w"), 1.0)
    assert device.tobytes() == host.mean(3.0, np.dtype(np.float32)).tobytes()
    row = JsonLog(finished / "log.jsonl").by("lawa", "end")[5]
    again = lawa.evaluate_latest(tiny_task(), finished, k=K, end=5, bn="recalibrate")
    assert again["val/loss"] == row["val/loss"]


def test_the_average_differs_from_the_newest_weights(finished):
    average = lawa.average_on_device(finished, k=K, end=5, task=tiny_task())
    assert np.any(np.asarray(average.model["params"]["w"]) != average.newest["params"]["w"])


@pytest.mark.parametrize("updates", [1, 6, 8, 13])
def test_stopping_anywhere_and_resuming_changes_no_bit(finished, tmp_path, updates):
    run, task = epath.Path(tmp_path), tiny_task()
    seen = 0

    def stopping_step(*arguments):
        nonlocal seen
        seen += 1
        if seen == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return task.train_step(*arguments)

    with pytest.raises(Terminated):
        run_from_scratch(task._replace(train_step=stopping_step), run)
    assert newest(run) == updates
    resume_run(tiny_task(), run)
    assert checksums(run) == checksums(finished)
    for event, key in (("epoch", "epoch"), ("lawa", "end")):
        ours, theirs = (JsonLog(r / "log.jsonl").by(event, key) for r in (run, finished))
        assert ours.keys() == theirs.keys()
        for at in ours:
            figures = {n: v for n, v in ours[at].items() if "/" in n}
            assert figures == {n: v for n, v in theirs[at].items() if "/" in n}


def test_resume_states_in_mid_epoch_give_the_same_bits_too(finished, tmp_path):
    run = epath.Path(tmp_path)
    run_from_scratch(tiny_task(), run, epochs=2, save_every_steps=3, keep_resume=9)
    assert list_steps(run / "resume") == [3, 4, 6, 8]
    for step in (4, 8):
        (run / "resume" / str(step)).rmtree()
    assert newest(run) == 6
    resume_run(tiny_task(), run)
    assert checksums(run) == checksums(finished)


def test_a_resume_state_whose_epoch_is_gone_is_passed_over(tmp_path):
    run = epath.Path(tmp_path)
    run_from_scratch(tiny_task(), run, epochs=3, keep_resume=9)
    assert newest(run) == 12
    (run / "epochs" / "3").rmtree()
    assert newest(run) == 8
    (run / "epochs" / "1").rmtree()
    assert newest(run) == 8
    with pytest.raises(CheckpointNotFoundError, match=r"needs the models of epochs .* missing"):
        newest(run, lawa_k=2)


def test_half_written_checkpoints_are_neither_listed_nor_kept(finished, tmp_path):
    run = epath.Path(tmp_path)
    run_from_scratch(tiny_task(), run, epochs=2)
    half = run / "epochs" / "3.orbax-checkpoint-tmp-123"
    (half / "model").mkdir(parents=True)
    assert list_steps(run) == [1, 2]
    resume_run(tiny_task(), run)
    assert not half.exists()
    assert checksums(run) == checksums(finished)


def test_a_killed_log_is_completed_on_resume(finished, tmp_path):
    run = epath.Path(tmp_path)
    run_from_scratch(tiny_task(), run, epochs=4)
    log = run / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:3]) + lines[3][:20])
    resume_run(tiny_task(), run)
    ours, theirs = (JsonLog(r / "log.jsonl") for r in (run, finished))
    assert ours.by("epoch", "epoch").keys() == theirs.by("epoch", "epoch").keys()
    assert ours.by("lawa", "end").keys() == theirs.by("lawa", "end").keys()
    assert ours.by("epoch", "epoch")[4]["val/loss"] == theirs.by("epoch", "epoch")[4]["val/loss"]
    assert all(json.loads(line) for line in log.read_text().splitlines())


def test_a_loss_that_is_not_finite_stops_and_keeps_what_was_good(tmp_path):
    run = epath.Path(tmp_path)
    # Update 10 (in epoch 3) is the first whose parameters are NaN, update 11 the first to lose.
    with pytest.raises(TrainingFailedError, match="loss is nan at update 11 in epoch 3"):
        run_from_scratch(tiny_task(poison_at=9), run)
    assert list_steps(run) == [1, 2]
    assert newest(run) == 8
    assert np.isfinite(open_checkpoint(run, step=2).read_leaf("params/w")).all()


def test_lawa_can_be_turned_off(tmp_path):
    run_from_scratch(tiny_task(), epath.Path(tmp_path), epochs=2, lawa_k=0)
    assert JsonLog(epath.Path(tmp_path) / "log.jsonl").events("lawa") == []


def test_save_stall_and_wait_are_reported(finished):
    log = JsonLog(finished / "log.jsonl")
    assert all(row["seconds"]["save_stall"] >= 0 for row in log.events("epoch"))
    assert all(row["waited_for_save"] >= 0 for row in log.events("lawa"))
