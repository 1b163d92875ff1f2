"""One run by several processes: the same figures, and it survives the death of any of them."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest

from lawa_jax.trajectory import list_steps, open_checkpoint, verify_checkpoint

pytestmark = pytest.mark.multiprocess
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "train" / "resnet_imagenet.py"
# 360 validation images do not divide by the batch of 64.
DIGITS = [
    SCRIPT, "--config", ROOT / "configs" / "resnet_digits.py", "--lawa_k", 2,
    "--learning_rate", 0.001, "--bn_batches", 4, "--loader_threads", 2,
]  # fmt: skip


def rows(run, event):
    lines = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


def figures(run):
    return [
        {n: v for n, v in row.items() if n.startswith(("val/", "train/"))}
        for event in ("epoch", "lawa")
        for row in rows(run, event)
    ]


def only_line(log, message, *, advice=True):
    """The one line of an error, and no stack trace of Python's or C++'s."""
    text = log.read_text()
    (line,) = [line for line in text.splitlines() if "error" in line.lower()]
    assert re.match(f"error: {message}", line), text
    assert ("--resume" in line) == advice
    for trace in ("Traceback", "stack trace", "terminate called", "    @ "):
        assert trace not in text


def finish(processes):
    assert processes.wait() == [0] * len(processes.all), processes.text()
    return processes


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            if name.endswith("loss"):
                assert a[name] == pytest.approx(b[name], rel=1e-5)
            else:
                # Counts over counts: not one image more or less.
                assert a[name] == b[name], name


def test_two_processes_give_the_figures_of_one(start, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    # So little learning that rounding does not grow into another prediction.
    command = [*DIGITS, "--epochs", 2, "--learning_rate", 1e-5, "--run_dir"]
    finish(start([*command, alone], 1, devices=4))
    done = finish(start([*command, both], 2))
    same(figures(both), figures(alone))
    assert list_steps(both) == [1, 2]
    for epoch in (1, 2):
        saved = open_checkpoint(both, step=epoch, include=("*",))
        assert verify_checkpoint(saved) == len(saved.leaves) == len(saved.checksums)
        other = open_checkpoint(alone, step=epoch, include=("*",))
        for name in saved.leaves:
            np.testing.assert_allclose(
                saved.read_leaf(name), other.read_leaf(name), rtol=1e-3, atol=1e-4
            )
    # One process speaks, the other is silent.
    assert "LAWA k=2, end   2" in done.logs[0].read_text()
    assert "epoch" not in done.logs[1].read_text()


def test_a_killed_process_stops_the_others_and_the_run_goes_on_with_another_number(start, tmp_path):
    run = tmp_path / "run"
    command = [*DIGITS, "--epochs", 30, "--run_dir", run, "--peer_timeout", 10]
    four = start(command, 4, devices=1)
    four.wait_for(run / "epochs" / "2")
    four.kill(2)
    assert four.wait(120) == [1, 1, -signal.SIGKILL, 1], four.text()
    for index in (0, 1, 3):
        only_line(
            four.logs[index], r"process 2 \(.*\) has given no sign of life for 10 s; stopping"
        )
    last = list_steps(run)[-1]
    assert last >= 2
    # SIGTERM to one of them ends both after the same update, saved.
    two = start([*command, "--resume"], 2)
    two.wait_for(run / "epochs" / str(last + 2))
    two.kill(1, signal.SIGTERM)
    assert two.wait(120) == [143, 143], two.text()
    assert "resuming" in two.logs[0].read_text()
    for epoch in list_steps(run):
        verify_checkpoint(open_checkpoint(run, step=epoch, include=("*",)))
    logged = [row["epoch"] for row in rows(run, "epoch")]
    assert sorted(set(logged)) == list_steps(run)
    states = list_steps(run / "resume")
    assert len(states) == 2
    assert not list((run / "resume").glob("*tmp*"))


def test_the_death_of_process_0_is_told_by_the_others(start, tmp_path):
    run = tmp_path / "run"
    both = start([*DIGITS, "--epochs", 30, "--run_dir", run], 2, devices=1)
    both.wait_for(run / "epochs" / "1")
    both.kill(0)
    assert both.wait(120) == [-signal.SIGKILL, 1], both.text()
    only_line(both.logs[1], r"process 0 \(.*\), which coordinates the others, is gone; stopping")


def test_configurations_that_differ_are_an_error_that_names_the_field(start, tmp_path):
    both = start([*DIGITS, "--run_dir", tmp_path / "run"], 2, own=(["--seed", 1], ["--seed", 2]))
    assert both.wait(120) == [2, 2], both.text()
    for log in both.logs:
        only_line(log, r"the processes were started with different arguments", advice=False)
        assert "seed: 1 in process 0, 2 in process 1" in log.read_text()
    assert not (tmp_path / "run").exists()


def test_a_mistake_of_one_is_the_message_of_all(start, tmp_path):
    command = [*DIGITS, "--epochs", 1, "--run_dir", tmp_path / "run", "--batch_size", 6]
    both = start(command, 2)
    assert all(code != 0 for code in both.wait(120))
    assert "batch size 6 does not divide over 4 devices" in both.text()
