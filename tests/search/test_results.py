"""The table of a sweep: kept row by row, read back, never mixed."""

import csv
import json
import math

import pytest

from lawa_jax.errors import ConfigError, OutputExistsError
from lawa_jax.search.results import Results, Row

SETTING = {"run": "/runs/a", "evaluator": "mine.py:loss"}


def row(name="k2-end5-uniform", end=5, metrics=None, key="x"):
    metrics = {"loss": 0.1 + 0.2} if metrics is None else metrics
    return Row(name, end, 2, "uniform", (end - 1, end), (0.5, 0.5), metrics, 1.5, key)


def fill(folder, *rows, setting=SETTING, **options):
    results = Results(folder, setting, **options)
    try:
        for each in rows:
            results.add(each)
    finally:
        results.close()


def reopened(folder, **options):
    results = Results(folder, SETTING, **options)
    results.close()
    return results


def table(folder):
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


def test_rows_come_back_as_they_were(tmp_path):
    rows = [row(), row("b", 9, {"loss": math.inf}, "y"), row("c", 7, {"loss": 1.0, "top1": 0.5})]
    fill(tmp_path, *rows)
    assert reopened(tmp_path).rows == {r.name: r for r in rows}
    assert reopened(tmp_path).known("y") == {"loss": math.inf}
    assert reopened(tmp_path).known("z") is None
    # By end, all metrics as columns, and floats that read back as the same floats.
    found = table(tmp_path)
    assert [r["name"] for r in found] == ["k2-end5-uniform", "c", "b"]
    assert (float(found[0]["loss"]), found[0]["top1"]) == (0.1 + 0.2, "")
    assert (found[0]["steps"], found[0]["coefficients"]) == ("4 5", "0.5 0.5")
    for line in (tmp_path / "results.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_row_cut_short_by_a_kill_is_left_out(tmp_path):
    fill(tmp_path, row(), row("b", 9))
    lines = tmp_path / "results.jsonl"
    lines.write_bytes(lines.read_bytes()[:-20])
    fill(tmp_path, row("c", 7))
    assert list(reopened(tmp_path).rows) == ["k2-end5-uniform", "c"]
    assert len(table(tmp_path)) == 2


def test_every_row_is_on_disk_before_the_next(tmp_path):
    results = Results(tmp_path, SETTING)
    results.add(row())
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 2
    assert len(table(tmp_path)) == 1
    with pytest.raises(OutputExistsError, match="another process is writing into"):
        Results(tmp_path, SETTING)
    results.close()


def test_of_one_name_the_last_counts(tmp_path):
    fill(tmp_path, row(), row(metrics={"loss": 2.0}, key="y"))
    assert reopened(tmp_path).rows["k2-end5-uniform"].metrics == {"loss": 2.0}
    assert len(table(tmp_path)) == 1


def test_results_of_something_else_are_not_mixed_in(tmp_path):
    fill(tmp_path, row())
    other = {**SETTING, "run": "/runs/b"}
    with pytest.raises(OutputExistsError, match="another run: '/runs/a', now '/runs/b'"):
        Results(tmp_path, other)
    results = Results(tmp_path, other, overwrite=True)
    assert results.rows == {}
    results.add(row())
    results.close()
    with pytest.raises(OutputExistsError, match="now '/runs/a'"):
        reopened(tmp_path)


def test_results_without_a_row_protect_nothing(tmp_path):
    first, mended = ({**SETTING, "evaluator_digest": digest} for digest in ("a", "b"))
    fill(tmp_path, setting=first)
    fill(tmp_path, row(), setting=mended)
    with pytest.raises(OutputExistsError, match="with other code or settings"):
        fill(tmp_path, setting=first)


@pytest.mark.parametrize(
    "damaged", [b"[]", b'{"name": 1}', b'{"name": "b", "metri', b"\xff\xfe", b"[" * 100_000]
)
def test_a_row_that_cannot_be_read_is_evaluated_again(tmp_path, damaged):
    fill(tmp_path, row(), row("b", 9), row("c", 7))
    path = tmp_path / "results.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[2] = damaged
    path.write_bytes(b"\n".join(lines))
    assert list(reopened(tmp_path).rows) == ["k2-end5-uniform", "c"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.csv", "my,own\n"),
        ("results.png", "drawing"),
        ("results.jsonl", ""),
        ("results.jsonl", "no newline"),
        ("results.jsonl", "hello\n"),
        ("results.jsonl", '{"name": 1}\n'),
        ("results.jsonl", "[]\n"),
        ("results.jsonl", "\xff\n"),
    ],
)
def test_files_of_somebody_else_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="latin1")
    with pytest.raises(OutputExistsError, match=f"{name} exists, but .* move it away"):
        reopened(tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("results")] == [name]
    assert (tmp_path / name).read_text(encoding="latin1") == text
    with pytest.raises(OutputExistsError, match=f"{name} exists, but"):
        reopened(tmp_path, overwrite=True)
    assert (tmp_path / name).read_text(encoding="latin1") == text


def test_metrics_cannot_hide_columns(tmp_path):
    with pytest.raises(ConfigError, match="a metric is named 'steps' like a column"):
        fill(tmp_path, row(metrics={"steps": 1.0}))
