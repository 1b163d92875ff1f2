"""The real command on real text in real processes: what it shares with the ResNet script holds."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lawa_jax.data.text import prepare_text
from lawa_jax.trajectory import list_steps, open_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = [sys.executable, str(ROOT / "train" / "roberta_wikitext.py")]
ENVIRONMENT = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def command(*arguments, cwd, script=SCRIPT):
    return subprocess.run(
        [*script, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True,
        timeout=600, check=False,
    )  # fmt: skip


def text(lines, seed):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(3, 9))) for _ in range(lines)]


@pytest.fixture(scope="module")
def data_bin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "data-bin"
    texts = {"train": text(300, 0), "valid": text(60, 1), "test": text(30, 2)}
    prepare_text(texts, folder, vocab_size=300)
    return folder


@pytest.fixture(scope="module")
def small(data_bin):
    options = {
        "data_dir": data_bin, "epochs": 3, "lawa_k": 2, "batch_size": 8, "accumulate": 2,
        "layers": 1, "width": 16, "ffn_width": 32, "heads": 2, "max_tokens": 32, "lengths": 1,
        "learning_rate": 0.01, "warmup_updates": 2, "loader_threads": 1,
    }  # fmt: skip
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def events(run):
    found = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        row = json.loads(line)
        found[row["event"], row.get("epoch", row.get("end"))] = {
            name: value for name, value in row.items() if name.startswith(("val/", "train/"))
        }
    return found


def stored(run):
    return {e: open_checkpoint(run, step=e, include=("*",)).checksums for e in list_steps(run)}


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    done = command(*small, "--run_dir", folder / "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_a_run_learns_and_ends_with_table_plot_and_checkpoints(finished):
    run, done = finished
    assert list_steps(run) == [1, 2, 3]
    assert "LAWA k=2 loss" in done.stdout
    assert (run / "report" / "curves.png").stat().st_size > 10_000
    assert "tokens/s" in done.stderr
    assert "of the positions are padding" in done.stderr
    rows = events(run)
    assert rows["epoch", 3]["val/loss"] < rows["epoch", 1]["val/loss"]
    for row in rows.values():
        assert row["val/perplexity"] == pytest.approx(2 ** row["val/loss"])


def test_kill_9_in_mid_epoch_then_resume_gives_the_same_bits(finished, small, tmp_path):
    run = tmp_path / "run"
    arguments = [*small, "--run_dir", str(run), "--save_every_steps", "2"]
    with subprocess.Popen(
        [*SCRIPT, *arguments], cwd=tmp_path, env=ENVIRONMENT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while process.poll() is None and not list_or_none(run / "resume"):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = command(*arguments, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming" in done.stderr
    assert stored(run) == stored(finished[0])
    assert events(run) == events(finished[0])


def list_or_none(path):
    return path.exists() and list_steps(path)


def test_evaluation_afterwards_reproduces_the_figures_on_every_split(finished):
    run, _ = finished
    done = command(
        "--evaluate", run, "--lawa_k", 2, "--end", 3, "--splits", "train", "val", "test",
        "--json", cwd=run.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = [json.loads(line) for line in done.stdout.splitlines()]
    for name, value in events(run)["lawa", 3].items():
        assert row[name] == value
    assert {"train/loss", "test/loss", "test/perplexity"} <= row.keys()


def test_no_wikitext_is_one_message_that_helps(tmp_path):
    done = command("--lawa_k", 10, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: data/wikitext-103: no such directory")
    for part in ("dict.txt", "Merity", "convert/text.py", "configs/roberta_tiny.py"):
        assert part in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--heads", 3], "width 16 does not divide by 3"),
        (["--vocab_size", 77], "the model has 77 symbols, the dictionary in"),
        (["--batch_size", 7], "accumulate: batch_size 7 does not divide by 2"),
        (["--max_tokens", 4], "blocks are too long"),
    ],
)
def test_mistakes_are_explained(small, arguments, part, tmp_path):
    done = command(*small, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_raw_text_becomes_a_data_bin_once(tmp_path):
    script = [sys.executable, str(ROOT / "convert" / "text.py")]
    for split, seed in (("train", 0), ("valid", 1)):
        (tmp_path / split).write_text("\n".join(text(200, seed)) + "\n")
    arguments = ["bin", "--train", "train", "--valid", "valid", "--vocab_size", 280]
    done = command(*arguments, cwd=tmp_path, script=script)
    assert done.returncode == 0, done.stderr
    assert "200 lines" in done.stdout
    before = (tmp_path / "bin" / "train.bin").read_bytes()
    again = command(*arguments, cwd=tmp_path, script=script)
    assert again.returncode == 2
    assert "exists and is not replaced" in again.stderr
    assert (tmp_path / "bin" / "train.bin").read_bytes() == before
    assert command("bin2", "--train", "nowhere", cwd=tmp_path, script=script).returncode == 2
