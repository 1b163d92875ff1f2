import csv

import numpy as np
import pytest
from PIL import Image

from lawa_jax.report.curves import curves
from lawa_jax.report.run_report import report
from lawa_jax.report.savings import Saved, epochs_saved
from lawa_jax.report.tables import run_table, table


def test_epochs_saved_by_hand():
    raw = {1: 0.9, 2: 0.5, 3: 0.4, 4: 0.35, 5: 0.36}
    lawa = {2: 0.45, 3: 0.36, 4: 0.34, 5: 0.5}
    assert epochs_saved(raw, lawa) == {
        2: Saved(1, False),  # epoch 3 is the first at least as good
        3: Saved(1, False),  # epoch 4, although epoch 5 equals it exactly
        4: Saved(1, True),  # none: at least 5 - 4
        5: Saved(-3, False),  # epoch 2 was as good: negatives are kept
    }


def test_equal_losses_count_as_as_good():
    assert epochs_saved({1: 0.5, 2: 0.4}, {2: 0.4}) == {2: Saved(0, False)}


def test_a_bound_is_shown_as_one():
    assert str(Saved(3, True)) == ">= 3"
    assert str(Saved(-2, False)) == "-2"


def rows(losses):
    return {e: {"val/loss": v, "val/top1": 1 - v, "train/loss": 9.0} for e, v in losses.items()}


@pytest.fixture
def three():
    averages = {e: {**row, "k": 2} for e, row in rows({2: 0.45, 3: 0.3}).items()}
    return curves(rows({1: 0.9, 2: 0.5, 3: 0.4}), averages)


def test_curves_take_validation_figures_only(three):
    assert three.raw[1] == {"loss": 0.9, "top1": pytest.approx(0.1)}
    assert three.k == 2
    assert three.saved == {2: Saved(1, False), 3: Saved(0, True)}


def test_tables_align_and_say_everything(three):
    text = run_table(three)
    assert text.splitlines()[-1].split() == ["3", "0.4000", "60.00%", "0.3000", "70.00%", ">=", "0"]
    assert text.splitlines()[2].split() == ["1", "0.9000", "10.00%", "-", "-", "-"]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_long_runs_show_a_dozen_epochs_and_the_last():
    long = curves(rows({e: 1 / e for e in range(1, 91)}), {})
    lines = run_table(long).splitlines()[2:]
    assert len(lines) == 12
    assert lines[-1].split()[0] == "90"


def test_table_of_unequal_rows_is_a_defect():
    with pytest.raises(IndexError):
        table(["a", "b"], [["1"]])


def test_report_writes_a_picture_and_the_numbers(three, tmp_path):
    text = report(three, "a title", tmp_path / "report")
    assert "the average is better than the raw weights at 2 of 2 epochs" in text
    picture = np.asarray(Image.open(tmp_path / "report" / "curves.png").convert("RGB"))
    assert picture.shape[0] > 300
    blue = (picture == [0x0B, 0x6F, 0xB8]).all(-1)
    grey = (picture == [0x8C, 0x8C, 0x8C]).all(-1)
    assert blue.sum() > 100
    assert grey.sum() > 50
    with (tmp_path / "report" / "curves.csv").open() as file:
        stored = list(csv.DictReader(file))
    assert [r["raw_loss"] for r in stored] == ["0.9", "0.5", "0.4"]
    assert [r["lawa_loss"] for r in stored] == ["", "0.45", "0.3"]
    assert [r["epochs_saved"] for r in stored] == ["", "1", "0"]
    assert [r["at_least"] for r in stored] == ["", "False", "True"]


def test_a_run_without_averages_is_reported_too(tmp_path):
    text = report(curves(rows({1: 0.9, 2: 0.5}), {}), "raw only", tmp_path)
    assert "LAWA" not in text
    assert (tmp_path / "curves.png").exists()
