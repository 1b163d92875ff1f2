"""The real command in real processes: what the README promises."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import lawa_jax
from lawa_jax.output import write_checkpoint
from lawa_jax.trajectory import list_steps, open_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = [sys.executable, str(ROOT / "train" / "resnet_imagenet.py")]
DIGITS = ["--config", str(ROOT / "configs" / "resnet_digits.py"), "--epochs", "3", "--lawa_k", "2"]
ENVIRONMENT = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}


def command(*arguments, cwd):
    return subprocess.run(
        [*SCRIPT, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True,
        timeout=600, check=False,
    )  # fmt: skip


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run the script in this process; it must end with `code` and one message."""

    def run(code, *arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [SCRIPT[1], *map(str, arguments)])
        previous = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as caught:
                runpy.run_path(SCRIPT[1], run_name="__main__")
        finally:
            signal.signal(signal.SIGTERM, previous)
        assert caught.value.code == code
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        return message

    return run


def events(run):
    found = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[row["event"], row.get("epoch", row.get("end"))] = {
            name: value for name, value in row.items() if name.startswith(("val/", "train/"))
        }
    return found


def stored(run):
    """Digests of all models of a run, as computed when they were saved, and of what is read."""
    return {e: open_checkpoint(run, step=e, include=("*",)).checksums for e in list_steps(run)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    done = command(*DIGITS, "--run_dir", folder / "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_a_run_ends_with_a_table_a_plot_and_all_its_checkpoints(finished):
    run, done = finished
    assert list_steps(run) == [1, 2, 3]
    assert "LAWA k=2 loss" in done.stdout
    assert "epochs saved" in done.stdout
    assert (run / "report" / "curves.png").stat().st_size > 10_000
    assert "images/s" in done.stderr
    assert "ETA" in done.stderr
    assert json.loads((run / "config.json").read_text())["epochs"] == 3
    assert {("lawa", e) for e in (2, 3)} <= events(run).keys()
    assert ("lawa", 1) not in events(run)


def test_kill_9_anywhere_then_resume_gives_the_same_bits(finished, tmp_path):
    run = tmp_path / "run"
    arguments = [*DIGITS, "--run_dir", str(run), "--save_every_steps", "7"]
    with subprocess.Popen(
        [*SCRIPT, *arguments], cwd=tmp_path, env=ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while process.poll() is None and not (run / "epochs" / "1").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    saved = list_steps(run)
    assert saved[:1] == [1]
    assert len(saved) < 3
    done = command(*arguments, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert stored(run) == stored(finished[0])
    assert events(run) == events(finished[0])


def test_evaluation_afterwards_reproduces_the_figures_bit_for_bit(finished):
    run, _ = finished
    done = command(
        "--evaluate", run, "--lawa_k", 2, "--end", 2, 3, "--json", cwd=run.parent
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["end"] for row in rows] == [2, 3]
    for row in rows:
        for name, value in events(run)["lawa", row["end"]].items():
            assert row[name] == value


def test_training_starts_from_an_average(finished, tmp_path):
    run, _ = finished
    write_checkpoint(tmp_path / "average", lawa_jax.average_checkpoints(run, k=2, end=3))
    done = command(
        *DIGITS, "--epochs", 1, "--lawa_k", 0, "--learning_rate", 0, "--weight_decay", 0,
        "--init_from", tmp_path / "average", "--run_dir", tmp_path / "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # With learning rate 0 the weights stay the average.
    ours, theirs = (
        open_checkpoint(path, include=("params",))
        for path in (tmp_path / "run", tmp_path / "average")
    )
    for name in ours.leaves:
        assert np.array_equal(ours.read_leaf(name), theirs.read_leaf(name))


def test_no_imagenet_is_one_message_that_helps(tmp_path):
    done = command("--lawa_k", 5, cwd=tmp_path)
    assert done.returncode == 2
    message = done.stderr
    assert message.startswith(f"error: ImageNet was not found in {tmp_path}/data/imagenet")
    for part in ("imagenet2012", "train/<class>", "tfds build", "configs/resnet_digits.py"):
        assert part in message


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--lawa_k", -1], "lawa_k: expected >= 0, found -1"),
        (["--config", "nowhere.py"], "nowhere.py: no such file"),
        (["--evaluate", "nowhere"], "nowhere holds no run"),
        (["--resume", "--run_dir", "nowhere"], "nowhere holds no run"),
        (["--end", 3], "go with --evaluate"),
    ],
)
def test_mistakes_are_explained(refused, arguments, part, tmp_path):
    assert part in refused(2, *arguments, cwd=tmp_path)


def test_an_unknown_flag_is_a_usage_error(tmp_path):
    done = command("--no_such_flag", 1, cwd=tmp_path)
    assert done.returncode == 2
    assert "no_such_flag" in done.stderr


def test_windows_that_do_not_exist_list_what_does(refused, finished):
    run, _ = finished
    message = refused(2, "--evaluate", run, "--lawa_k", 9, cwd=run.parent)
    assert "3 checkpoints, fewer than --lawa_k 9" in message
    message = refused(2, "--evaluate", run, "--lawa_k", 2, "--end", 7, cwd=run.parent)
    assert "existing: 1..3" in message


def test_a_run_of_another_model_is_refused(refused, finished):
    run, _ = finished
    message = refused(2, "--evaluate", run, "--lawa_k", 2, "--arch", "resnet34", cwd=run.parent)
    assert "these weights are of another model" in message


def test_a_run_is_never_started_over_another(refused, finished):
    run, _ = finished
    before = stored(run)
    message = refused(2, *DIGITS, "--run_dir", run, cwd=run.parent)
    assert "already holds a run with 3 epochs; go on with --resume" in message
    message = refused(2, *DIGITS, "--run_dir", run, "--resume", "--seed", 1, cwd=run.parent)
    assert "seed was 0, now 1" in message
    assert stored(run) == before


def test_a_flipped_bit_is_found_and_named(refused, finished, tmp_path):
    run = tmp_path / "run"
    subprocess.run(["cp", "-r", str(finished[0]), str(run)], check=True)
    chunk = next((run / "epochs" / "2" / "model" / "params.fc.kernel").glob("[0-9]*"))
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    message = refused(3, "--evaluate", run, "--lawa_k", 2, "--end", 3, cwd=tmp_path)
    assert "params/fc/kernel" in message
    assert "@2" in message


@pytest.mark.slow
def test_dummy_data_has_imagenets_shapes(tmp_path):
    done = command(
        "--dummy", "--arch", "resnet18", "--epochs", 2, "--lawa_k", 2, "--batch_size", 8,
        "--dummy_examples", 16, "--run_dir", tmp_path / "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    saved = open_checkpoint(tmp_path / "run", include=("*",))
    assert saved.leaves["params/fc/kernel"].shape == (512, 1000)
    assert saved.leaves["params/conv1/kernel"].shape == (7, 7, 3, 64)
