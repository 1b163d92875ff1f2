import shutil

import pytest


def test_listing_a_run(lawa, run, model_bytes):
    rows = lawa("ls", run, "--json").json
    assert [row["step"] for row in rows] == list(range(1, 11))
    row = rows[3]
    assert row["metrics"] == {"val/top1": 1.0, "val/loss": 0.0}
    assert row["items"] == ["model"]
    assert (row["leaves"], row["bytes"], row["parameters"]) == (15, model_bytes, model_bytes // 4)
    assert row["dtypes"] == ["float32"]
    assert row["age_seconds"] >= 0
    table = lawa("ls", run).out.splitlines()
    assert table[0].split() == [
        "step", "items", "leaves", "parameters", "bytes", "dtypes", "age", "val/top1", "val/loss",
    ]  # fmt: skip
    assert len(table) == 11
    assert lawa("ls", f"{run}@3").out.splitlines()[1].split()[:4] == ["3", "model", "15", "167"]


def test_listing_one_checkpoint(lawa, run, tmp_path):
    lawa("average", run, "-k", "2", "-o", tmp_path / "out")
    assert lawa("ls", tmp_path / "out").out.splitlines()[1].split()[:3] == ["-", "model", "15"]
    assert lawa("ls", tmp_path / "out", "--json").json[0]["step"] is None
    assert lawa("ls", run / "epochs" / "3", "--json").json[0]["step"] == 3


def test_what_is_not_counted_is_said(lawa, foreign):
    finished = lawa("ls", foreign)
    assert finished.code == 0
    assert "leaves left out; --include '*' counts all" in finished.out
    rows = lawa("ls", foreign, "--json").json
    assert rows[0]["items"] == ["ema", "state"]
    assert (rows[0]["parameters"], rows[0]["dtypes"]) == (12, ["bfloat16"])
    assert lawa("ls", foreign, "--include", "*", "--json").json[0]["leaves"] == 5


def test_a_damaged_step_is_told_and_the_others_are_listed(lawa, run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/epochs/2/model/_METADATA").write_text("{")
    finished = lawa("ls", tmp_path / "run")
    assert finished.code == 3
    assert "_METADATA" in finished.out
    assert finished.out.count("\n") == 12
    rows = lawa("ls", tmp_path / "run", "--json").json
    assert [("error" in row) for row in rows] == [False, True] + [False] * 8


@pytest.mark.parametrize("command", ["ls", "inspect", "average", "verify"])
def test_places_without_checkpoints(lawa, tmp_path, command):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    more = ["--dry-run"] if command == "average" else []
    for place, message in (
        ("empty", "holds no committed checkpoint"),
        ("missing", "is not a directory"),
        ("file", "is not a directory"),
    ):
        finished = lawa(command, tmp_path / place, *more)
        assert (finished.code, message in finished.err) == (2, True), finished.err
        assert str(tmp_path / place) in finished.err


def test_the_tree_from_metadata_alone(lawa, run, foreign):
    found = lawa("inspect", f"{run}@9", "--json").json
    leaves = {leaf["name"]: leaf for leaf in found["leaves"]}
    assert len(leaves) == 15
    kernel = leaves["params/dense/kernel"]
    assert (kernel["dtype"], kernel["shape"], kernel["bytes"]) == ("float32", [20, 6], 480)
    assert (kernel["chunk"], kernel["storage"]) == ([20, 6], "raw")
    assert len(kernel["checksum"]) >= 16
    assert found["metrics"] == {"val/top1": 0.5, "val/loss": 0.5}
    assert found["checkpoint"] == f"{run}@9"
    text = lawa("inspect", foreign).out
    assert f"{foreign}@30: 1 leaves, 12 numbers, 24 B; checksums: none" in text
    assert "left out: 4 leaves (--include '*' shows all)" in text
    assert lawa("inspect", foreign, "--item", "ema", "--json").json["path"].endswith("/30/ema")
