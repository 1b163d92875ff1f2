import json
import sys

import pytest

from lawa_jax.errors import DataNotFoundError, SelectionError
from lawa_jax.report import figure


def write(path, losses, k):
    rows = [{"end": e, "k": k, "bn": "latest", "val/loss": x} for e, x in losses.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_figure_of_two_evaluations(tmp_path, monkeypatch, capsys):
    raw = write(tmp_path / "raw.jsonl", {1: 4.0, 2: 3.0, 3: 2.0}, 1)
    averages = write(tmp_path / "lawa.jsonl", {2: 2.0}, 2)
    monkeypatch.setattr(sys, "argv", ["x", raw, averages, "--out", str(tmp_path / "out")])
    figure.main()
    assert "LAWA k=2 loss" in capsys.readouterr().out
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataNotFoundError, match="--evaluate RUN --json"):
        figure.read(tmp_path / "none")
    path = tmp_path / "a.jsonl"
    for text, message in (("", "no rows"), ("end k\n", "line 1: expected"), ("[]", "line 1")):
        path.write_text(text)
        with pytest.raises(SelectionError, match=message):
            figure.read(path)
    path.write_text('{"end": 1, "val/loss": 2}\n' * 2)
    with pytest.raises(SelectionError, match="end 1 is there twice"):
        figure.read(path)
