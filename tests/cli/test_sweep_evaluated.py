"""`lawa sweep --evaluator`: by hand, resumable, as a table and a figure."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lawa_jax.offline.prepare import average_checkpoints
from lawa_jax.trajectory import open_checkpoint

ROOT = Path(__file__).resolve().parents[2]

# Statistics tell which policy was used; kernels which average.
CODE = """
from pathlib import Path

def score(tree):
    with Path(__file__).with_name("calls").open("a") as file:
        file.write("x")
    bn = tree["batch_stats"]["bn"]["mean"][0]
    return {"sum": tree["params"]["dense"]["kernel"].sum(), "bn": bn}

def broken(tree):
    raise RuntimeError("no data today")

def leaving(tree):
    raise SystemExit(0)

def slow(tree):
    import time
    time.sleep(0.3)
    return 1
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def calls(code):
    file = code.with_name("calls")
    return len(file.read_text()) if file.exists() else 0


def forget(folder):
    for file in folder.glob("results.*"):
        file.unlink()


def sweep(lawa, run, code, *options, name="score"):
    return lawa("sweep", run, "--end", "6:10:2", "--evaluator", f"{code}:{name}", *options)


def test_table_and_figure(lawa, run, code, tmp_path):
    done = sweep(lawa, run, code, "-k", "1,4", "--method", "uniform,ema", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    folder = tmp_path / "out"
    assert sorted(p.name for p in folder.iterdir()) == [
        "results.csv", "results.jsonl", "results.png"
    ]  # fmt: skip
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert len(rows) == 12
    for row in rows:
        tree = average_checkpoints(run, k=int(row["k"]), end=int(row["end"]), method=row["method"])
        assert float(row["sum"]) == tree["params"]["dense"]["kernel"].sum()
        assert float(row["bn"]) == tree["batch_stats"]["bn"]["mean"][0]
    assert rows[-2]["steps"] == "7 8 9 10"
    # Three ends of a raw checkpoint and of two averages each.
    assert calls(code) == 9
    assert "k4-end10-ema" in done.out
    assert "made in 1 pass and" in done.err
    again = sweep(
        lawa, run, code, "-k", "1,4", "--method", "uniform,ema", "-o", folder, "--json"
    ).json
    assert calls(code) == 9
    assert [row["name"] for row in again["rows"]] == list(again["averages"])
    assert again["bytes_to_write"] == 0
    sweep(lawa, run, code, "-k", "4", "-o", folder, "--overwrite")
    assert calls(code) == 12


def test_averages_can_be_kept(lawa, run, code, tmp_path):
    options = ["-k", "2,3", "-o", tmp_path / "out", "--bn", "average"]
    done = sweep(lawa, run, code, *options, "--keep")
    assert done.code == 0, done.err
    for k in (2, 3):
        kept = open_checkpoint(tmp_path / "out" / f"k{k}-end8-uniform").read_tree()
        row = next(
            json.loads(line)
            for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()
            if f"k{k}-end8" in line
        )
        assert row["metrics"]["sum"] == kept["params"]["dense"]["kernel"].sum()
        assert row["metrics"]["bn"] == 8 - (k - 1) / 2
    # Also those that were evaluated before.
    assert sweep(lawa, run, code, "-k", "4", *options[2:]).code == 0
    assert not (tmp_path / "out" / "k4-end8-uniform").exists()
    before = calls(code)
    assert sweep(lawa, run, code, "-k", "4", *options[2:], "--keep").code == 0
    assert ((tmp_path / "out" / "k4-end8-uniform").exists(), calls(code)) == (True, before)
    # Averages that are there are evaluated as they are, if they are these.
    forget(tmp_path / "out")
    before = calls(code)
    assert sweep(lawa, run, code, *options, "--keep").code == 0
    assert calls(code) == before + 6
    forget(tmp_path / "out")
    refused = sweep(lawa, run, code, *options, "--keep", "--dtype", "float64")
    assert (refused.code, "other sources, weights or options" in refused.err) == (2, True)


def test_files_of_somebody_else_are_refused(lawa, run, code, tmp_path):
    (tmp_path / "results.csv").write_text("my,own\n")
    refused = sweep(lawa, run, code, "-k", "2", "-o", tmp_path)
    assert (refused.code, "results.csv exists, but" in refused.err) == (2, True)
    assert ((tmp_path / "results.csv").read_text(), calls(code)) == ("my,own\n", 0)
    # What is not ours is not replaced, whatever is said.
    assert sweep(lawa, run, code, "-k", "2", "-o", tmp_path, "--overwrite").code == 2
    assert (tmp_path / "results.csv").read_text() == "my,own\n"


def test_an_evaluator_that_failed_can_be_mended(lawa, run, code, tmp_path):
    out = tmp_path / "out"
    code.write_text("def score(tree):\n    raise ValueError('not yet')\n")
    assert sweep(lawa, run, code, "-k", "1", "-o", out).code == 1
    code.write_text(CODE)
    assert sweep(lawa, run, code, "-k", "1", "-o", out).code == 0


def test_figures_of_changed_code_are_not_mixed_in(lawa, run, code, tmp_path):
    out = tmp_path / "out"
    assert sweep(lawa, run, code, "-k", "1", "-o", out).code == 0
    code.write_text(CODE + "# better\n")
    before = (out / "results.jsonl").read_bytes()
    refused = sweep(lawa, run, code, "-k", "2", "-o", out)
    assert (refused.code, "with other code or settings" in refused.err) == (2, True)
    assert (out / "results.jsonl").read_bytes() == before
    assert sweep(lawa, run, code, "-k", "2", "-o", out, "--overwrite").code == 0
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert {row["k"] for row in rows} == {"2"}


def test_a_dry_run_evaluates_nothing(lawa, run, code, tmp_path, model_bytes):
    plan = sweep(lawa, run, code, "-k", "2,4", "-o", tmp_path / "out", "--dry-run", "--json").json
    assert (len(plan["averages"]), plan["passes"], plan["bn"]) == (6, 1, "average")
    assert plan["bytes_to_read"] == 8 * model_bytes
    assert (calls(code), (tmp_path / "out").exists()) == (0, False)
    # Room for one average at a time: windows are read one by one.
    memory = ["--memory", str(model_bytes)]
    planned = sweep(lawa, run, code, "-k", "2,4", "--dry-run", "--json", *memory).json
    assert (planned["passes"], planned["bytes_to_read"]) == (6, 18 * model_bytes)


@pytest.mark.parametrize(
    ("options", "code_", "message"),
    [
        (["--evaluator", "{code}:broken"], 1, "failed on k5-end5-uniform: RuntimeError: no data"),
        (["--evaluator", "{code}:leaving"], 1, "failed on k5-end5-uniform: SystemExit: 0"),
        (["--evaluator", "{code}:score", "--evaluate"], 2, "contradict each other"),
        (["--evaluator", "{code}:score", "--splits", "test"], 2, "--splits goes with --evaluate"),
        (["--evaluator", "{code}:score", "--set", "a=1"], 2, "--set goes with --evaluate"),
        (["--bn", "recalibrate"], 2, "--bn recalibrate goes with --evaluate"),
        (["--keep"], 2, "--keep goes with --evaluator"),
        (["--evaluate"], 2, "holds no run: expected config.json"),
        (["--evaluate", "--set", "data_dir"], 2, "--set: expected field=value"),
        (["--evaluate", "--splits", ","], 2, "--splits: expected some of"),
        (["--evaluator", "nowhere.py:score"], 2, "nowhere.py: no such file"),
    ],
)
def test_mistakes_are_explained(lawa, run, code, tmp_path, options, code_, message):
    options = [option.format(code=code) for option in options]
    finished = lawa("sweep", run, "--end", "5", "-o", tmp_path / "out", *options)
    assert (finished.code, message in finished.err) == (code_, True), finished.err


def test_results_need_a_place(lawa, run, code):
    refused = sweep(lawa, run, code)
    assert (refused.code, "where to write the results: -o OUTDIR" in refused.err) == (2, True)


def test_killed_and_taken_up_again(lawa, run, code, tmp_path):
    command = ["sweep", str(run), "-k", "1,2,3", "--end", "5:10", "-o", str(tmp_path / "out"),
               "--evaluator", f"{code}:slow"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-m", "lawa_jax.cli.main", *command], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lines = tmp_path / "out" / "results.jsonl"
    while child.poll() is None and not (lines.exists() and lines.read_bytes().count(b"\n") > 3):
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    done = lines.read_bytes()
    kept = done.count(b"\n") - 1
    assert 3 <= kept < 18
    finished = lawa(*command)
    assert finished.code == 0
    assert finished.err.count(": slow 1\n") == 18 - kept
    assert lines.read_bytes().startswith(done[: done.rindex(b"\n")])
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert len(rows) == 18
