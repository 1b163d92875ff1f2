"""The converters as users start them: messages, exit codes, no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def test_exit_codes(tmp_path, source):
    run = tmp_path / "run"
    assert "no such file" in refused(2, "state_dicts", tmp_path / "nothing", run)
    assert "--epochs" in refused(2, "state_dicts", source, run, "--epochs", "9:1")
    assert "is no resnet50" in refused(2, "resnet50", source, run)
    assert "is no RoBERTa" in refused(2, "roberta", source, run)
    (source / "checkpoint3.pt").write_bytes((source / "checkpoint2.pt").read_bytes()[:-50])
    assert "checkpoint3.pt" in refused(3, "state_dicts", source, run)
    assert not run.exists() or "3" not in os.listdir(run / "epochs")
