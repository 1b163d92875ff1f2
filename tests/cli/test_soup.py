"""`lawa soup`: what the searches find is written, and reported on other data."""

import sys

import numpy as np
import pytest

from lawa_jax.offline.prepare import average_checkpoints
from lawa_jax.search.soups import best_k, best_window, greedy_soup
from lawa_jax.trajectory import open_checkpoint

CODE = """
from pathlib import Path
import numpy as np

def score(tree):
    with Path(__file__).with_name("calls").open("a") as file:
        file.write("x")
    kernel = tree["params"]["dense"]["kernel"]
    return {"select": np.abs(kernel).mean(), "other": kernel.sum()}

def alone(tree):
    return -np.abs(tree["params"]["dense"]["kernel"]).mean()

def leaving(tree):
    raise SystemExit(0)

def elsewhere(tree):
    return {"bias": tree["params"]["dense"]["bias"].sum()}
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def size(tree):
    return float(np.abs(tree["params"]["dense"]["kernel"]).mean())


def soup(lawa, run, code, out, *options, name="score"):
    return lawa("soup", run, "--evaluator", f"{code}:{name}", "-o", out, *options)


@pytest.mark.parametrize(
    ("options", "search"),
    [
        ([], lambda load, steps: greedy_soup(load, steps, size)),
        (["--search", "best-k", "-k", "3"], lambda load, steps: best_k(load, steps, size, 3)),
        (
            ["--search", "best-window", "-k", "2,4,9", "--end", "6:10:2"],
            lambda load, steps: best_window(load, steps, size, ks=[2, 4, 9], ends=[6, 8, 10]),
        ),
        (
            ["--search", "best-window", "-k", "2,4"],
            lambda load, steps: best_window(load, steps, size, ks=[2, 4]),
        ),
    ],
)
def test_what_is_found_is_written(lawa, run, code, tmp_path, options, search):
    out = tmp_path / "out"
    done = soup(lawa, run, code, out, "--metric", "select", "--json", *options)
    assert done.code == 0, done.err
    expected = search(lambda step: open_checkpoint(run, step=step).read_tree(), range(1, 11))
    assert done.json["steps"] == list(expected.steps)
    assert done.json["score"] == expected.score
    assert [t["steps"] for t in done.json["trials"]] == [list(t.steps) for t in expected.trials]
    assert len(expected.steps) > 1
    written = open_checkpoint(out).read_tree()
    made = average_checkpoints(run, steps=expected.steps)
    np.testing.assert_array_equal(
        written["params"]["dense"]["kernel"], made["params"]["dense"]["kernel"]
    )
    assert size(written) == expected.score
    # The report is of the other metric alone.
    assert done.json["report"] == {"other": float(written["params"]["dense"]["kernel"].sum())}
    # Which may be of the same data.
    assert done.err.count("warning: the reported figures flatter where") == 1
    assert lawa("verify", out).code == 0


def test_for_people(lawa, run, code, tmp_path):
    options = ["--steps", "2:10:2", "--mode", "max", "--report", f"{code}:elsewhere"]
    done = soup(lawa, run, code, tmp_path / "out", *options, name="alone")
    assert done.code == 0, done.err
    tree = open_checkpoint(tmp_path / "out").read_tree()
    assert f"report: bias {tree['params']['dense']['bias'].sum():.6g}" in done.out
    # Statistics are averaged, and said to be.
    assert "(--bn average)" in done.err
    assert done.out.splitlines()[0].split() == ["checkpoints", "score"]
    flattering = soup(lawa, run, code, tmp_path / "again", name="alone")
    assert "the reported figures flatter" in flattering.err
    assert "report" not in flattering.out
    assert "flatter" not in done.err


@pytest.mark.parametrize(
    "search",
    [
        [],
        ["--search", "best-k"],
        ["--search", "best-window", "-k", "1,2,4", "--end", "3:6"],
    ],
)
@pytest.mark.parametrize("report", [False, True])
def test_as_many_evaluations_as_planned(lawa, run, code, tmp_path, search, report):
    options = ["--metric", "select", *search]
    options += ["--report", f"{code}:score"] if report else []
    plan = soup(lawa, run, code, tmp_path / "o", "--dry-run", "--json", *options).json
    assert soup(lawa, run, code, tmp_path / "o", *options).code == 0
    assert plan["evaluations"] == len(code.with_name("calls").read_text())


def test_a_report_that_fails_loses_no_search(lawa, run, code, tmp_path):
    options = ["--search", "best-window", "-k", "3", "--report", f"{code}:leaving"]
    failed = soup(lawa, run, code, tmp_path / "out", *options, name="alone")
    assert (failed.code, "leaving failed on" in failed.err) == (1, True)
    assert f"in the search\nwrote {tmp_path / 'out'}\n" in failed.err
    made = average_checkpoints(run, steps=[8, 9, 10])
    np.testing.assert_array_equal(
        open_checkpoint(tmp_path / "out").read_tree()["params"]["dense"]["kernel"],
        made["params"]["dense"]["kernel"],
    )


def test_a_dry_run_evaluates_nothing(lawa, run, code, tmp_path, model_bytes):
    for options, count in (
        ([], 20),
        (["--search", "best-k"], 11),
        (["--search", "best-window", "-k", "2,3", "--end", "5:7"], 6),
    ):
        plan = soup(lawa, run, code, tmp_path / "o", "--dry-run", "--json", *options).json
        assert (plan["evaluations"], plan["bytes_each"]) == (count, model_bytes)
    assert "at most 20 evaluations" in soup(lawa, run, code, tmp_path / "o", "--dry-run").out
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "code_", "message"),
    [
        ([], 2, "say how to score an average"),
        (["--evaluator", "{code}:score"], 2, "gives several metrics; choose one with --metric"),
        (["--evaluator", "{code}:score", "--metric", "x"], 2, "gives no metric 'x'"),
        (["--evaluator", "{code}:alone", "--bn", "latest"], 2, "choose --bn average\n"),
        (["--evaluator", "{code}:alone", "--end", "5"], 2, "--end goes with --search best-window"),
        (["--evaluator", "{code}:alone", "--steps", "8:12"], 2, "do not exist: 11, 12"),
        (
            ["--evaluator", "{code}:alone", "--search", "best-k", "-k", "2,3"],
            2,
            "-k 2,3: expected one number of at most 10",
        ),
        (
            ["--evaluator", "{code}:alone", "--search", "best-k", "-k", "11"],
            2,
            "expected one number of at most 10",
        ),
        (
            ["--evaluator", "{code}:alone", "--search", "best-window", "--end", "12"],
            2,
            "do not exist: 12",
        ),
        (
            ["--evaluator", "{code}:alone", "--search", "best-window", "-k", "2,11"],
            2,
            "-k 2,11: expected numbers of at most 10, the candidates up to 10",
        ),
        (
            [
                "--evaluator",
                "{code}:alone",
                "--search",
                "best-window",
                "--steps",
                "1:4,6:10",
                "-k",
                "2,6",
            ],
            2,
            "misses checkpoint 5",
        ),
        (["--evaluate", "--metric", "test/loss"], 2, "expected a metric of --splits val, such as"),
        (["--evaluator", "{code}:score", "--metric", "select", "-o", "{code}"], 2, "exists"),
        (["--evaluator", "{code}:leaving"], 1, "failed on an average of the search: SystemExit"),
        (
            ["--evaluator", "{code}:alone", "--report", "{code}:absent"],
            2,
            "--report {code}:absent: {code} has no function",
        ),
        (["--evaluator", "{code}:absent"], 2, "has no function 'absent'"),
    ],
)
def test_mistakes_are_explained(lawa, run, code, tmp_path, options, code_, message):
    options = [option.format(code=code) for option in options]
    message = message.format(code=code)
    finished = lawa("soup", run, "-o", tmp_path / "out", *options)
    assert (finished.code, message in finished.err) == (code_, True), finished.err
    # Before anything is scored.
    assert "1: score" not in finished.err
    assert not (tmp_path / "out").exists()
