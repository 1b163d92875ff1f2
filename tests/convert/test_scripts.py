"""The converters as users start them: messages, exit codes, no traceback."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lawa_jax.interop import state_dicts
from lawa_jax.interop.conversion import ConvertOptions, convert_trajectory
from lawa_jax.trajectory import list_steps, open_checkpoint, verify_checkpoint

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}


def command(script, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "convert" / f"{script}.py"), *map(str, arguments)],
        env=ENVIRONMENT,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


def refused(code, script, *arguments):
    done = command(script, *arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for epoch in (1, 2):
        state = {"w": torch.full((2,), float(epoch))}
        torch.save({"epoch": epoch, "model": state}, folder / f"checkpoint{epoch}.pt")
    return folder


def test_there_and_back(tmp_path, source):
    done = command("state_dicts", source, tmp_path / "run", "--verify", "--epochs", "1:2")
    assert done.returncode == 0, done.stderr
    assert "2 epochs converted (0.0 MB, every tensor verified)" in done.stdout
    assert "B/s" in done.stderr
    done = command("state_dicts", "--export", f"{tmp_path / 'run'}@2", tmp_path / "two.pt")
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "two.pt")["model"]["w"][0] == 2


def test_an_average_in_a_copy_of_the_trainers_file(tmp_path, source):
    run, out = tmp_path / "run", tmp_path / "out.pt"
    assert command("state_dicts", source, run).returncode == 0
    donor = ("--donor", source / "checkpoint1.pt")
    done = command("state_dicts", "--export", f"{run}@2", out, *donor)
    assert done.returncode == 0, done.stderr
    found = torch.load(out, weights_only=True)
    assert found["epoch"] == 1
    assert found["model"]["w"][0] == 2
    assert "--overwrite" in refused(2, "state_dicts", "--export", f"{run}@2", out, *donor)


def test_exit_codes(tmp_path, source):
    run = tmp_path / "run"
    assert "no such file" in refused(2, "state_dicts", tmp_path / "nothing", run)
    assert "--epochs" in refused(2, "state_dicts", source, run, "--epochs", "9:1")
    assert "is no resnet50" in refused(2, "resnet50", source, run)
    assert "--dry_run goes with converting" in refused(
        2, "state_dicts", "--export", run, tmp_path / "x.pt", "--dry_run"
    )
    assert "--style goes with --export" in refused(
        2, "roberta", source, run, "--style", "huggingface"
    )
    assert "--stub os.system: nothing of Python itself" in refused(
        2, "state_dicts", source, run, "--stub", "os.system"
    )
    assert "--heads goes with converting" in refused(
        2, "roberta", "--export", run, tmp_path / "x.pt", "--heads", "2"
    )
    assert "--style chooses the names" in refused(
        *(2, "roberta", "--export", run, tmp_path / "x.pt"),
        *("--names", run, "--style", "huggingface"),
    )
    assert "--workers: expected >= 1, found -3" in refused(
        2, "state_dicts", source, run, "--workers", "-3"
    )
    assert "is no RoBERTa" in refused(2, "roberta", source, run)
    (source / "checkpoint3.pt").write_bytes((source / "checkpoint2.pt").read_bytes()[:-50])
    assert "checkpoint3.pt" in refused(3, "state_dicts", source, run)
    assert not run.exists() or "3" not in os.listdir(run / "epochs")


def test_killed_in_the_middle(tmp_path):
    """kill -9: what is listed is whole, and the same command goes on."""
    source, run, last = tmp_path / "source", tmp_path / "run", 30
    source.mkdir()
    for epoch in range(1, last + 1):
        state = {str(i): torch.full((999,), float(epoch)) for i in range(40)}
        torch.save({"model": state}, source / f"checkpoint{epoch}.pt")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "convert" / "state_dicts.py"), str(source), str(run)],
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    epochs = run / "epochs"
    while process.poll() is None and not (epochs.is_dir() and list_steps(run)):
        time.sleep(0.001)
    process.kill()
    process.wait()
    finished = list_steps(run)
    assert 0 < len(finished) < last
    for epoch in finished:
        verify_checkpoint(open_checkpoint(run, step=epoch))
    summary = convert_trajectory(source, run, state_dicts.convert, ConvertOptions())
    assert set(finished) <= set(summary.finished_before)
    assert sorted(p.name for p in epochs.iterdir()) == sorted(map(str, range(1, last + 1)))
    assert open_checkpoint(run, step=last).read_leaf("params/7")[0] == last
