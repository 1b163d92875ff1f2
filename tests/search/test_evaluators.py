"""Evaluators of the user's own: found, called and checked; mistakes explained."""

import math
import sys

import numpy as np
import pytest

from lawa_jax.errors import ConfigError, EvaluationError
from lawa_jax.search.evaluators import checked, load_evaluator, metric_of

CODE = """
import dataclasses
from helper_beside import factor

@dataclasses.dataclass
class Settings:
    text: "str" = "dataclasses look their module up"

def loss(tree):
    return factor * tree["w"].sum()

def both(tree):
    return {"loss": tree["w"].sum(), "top1": 1}
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", ["elsewhere"])
    (tmp_path / "helper_beside.py").write_text("factor = 2\n")
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


def test_from_a_file(file):
    evaluator = load_evaluator(f"{file}:loss")
    assert evaluator.score({"w": np.float32([1, 2])}, (1,)) == {"loss": 6.0}
    assert load_evaluator(f"{file}:both").score({"w": np.ones(3)}, ()) == {"loss": 3, "top1": 1}


def test_from_a_module_in_the_working_directory(file, monkeypatch):
    (file.parent / "package_of_tests").mkdir()
    (file.parent / "package_of_tests" / "scores.py").write_text("def one(tree): return 1\n")
    monkeypatch.chdir(file.parent)
    assert load_evaluator("package_of_tests.scores:one").score({}, ()) == {"one": 1.0}


def test_changed_code_is_another_evaluator(file):
    before = load_evaluator(f"{file}:loss")
    assert load_evaluator(f"{file}:loss").identity == before.identity
    file.write_text(CODE + "# better\n")
    after = load_evaluator(f"{file}:loss")
    assert (after.name, after.identity != before.identity) == (before.name, True)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mine.py", "expected file.py:function or module:function"),
        ("{file}:", "expected file.py:function or module:function"),
        ("{file}:not a name", "expected file.py:function or module:function"),
        ("{file}:absent", "has no function 'absent'"),
        ("{file}:factor", "has no function 'factor'"),
        ("nowhere.py:loss", "nowhere.py: no such file"),
        ("no_such_module:loss", "ModuleNotFoundError.*a file is named"),
    ],
)
def test_mistakes_are_explained(file, reference, message):
    file.write_text("factor = 2\n")
    with pytest.raises(ConfigError, match=message):
        load_evaluator(reference.format(file=file))


def test_code_that_fails_is_named(file):
    file.write_text("import no_such_module\n")
    with pytest.raises(ConfigError, match=r"mine.py:loss: ModuleNotFoundError: No module named"):
        load_evaluator(f"{file}:loss")


@pytest.mark.parametrize("end", ["raise SystemExit(0)", "import sys; sys.exit()"])
def test_code_that_exits_is_no_success(file, end, monkeypatch):
    file.write_text(end + "\n")
    monkeypatch.chdir(file.parent)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    for reference in (f"{file}:loss", "mine:loss"):
        with pytest.raises(ConfigError, match=r"--report .*: SystemExit"):
            load_evaluator(reference, "--report")


def test_what_counts_as_metrics():
    assert checked(np.float32(0.5), "f", "loss") == {"loss": 0.5}
    assert math.isnan(checked({"loss": math.nan}, "f", "x")["loss"])
    for value, message in (
        (None, "found NoneType"),
        ("0.5", "found str"),
        ({"a": 1, "b": "0.5"}, "found str for 'b'"),
        ({"a": b"1"}, "found bytes for 'a'"),
        ({1: 1, "1": 2}, "found two of '1'"),
        ({"a": np.ones(2)}, "found ndarray for 'a'"),
        ({}, "found none"),
    ):
        with pytest.raises(EvaluationError, match=message):
            checked(value, "f", "loss")


def test_choosing_a_metric():
    assert metric_of({"loss": 2.0}, None, "f") == 2.0
    assert metric_of({"loss": 2.0, "top1": 1.0}, "top1", "f") == 1.0
    with pytest.raises(
        ConfigError, match="f gives several metrics; choose one with --metric: a, b"
    ):
        metric_of({"a": 1.0, "b": 2.0}, None, "f")
    with pytest.raises(ConfigError, match="f gives no metric 'c'; choose one with --metric: a"):
        metric_of({"a": 1.0}, "c", "f")
