"""Averages evaluated: by hand, once each, in bounded memory."""

import dataclasses
import weakref

import numpy as np
import pytest

from lawa_jax.errors import EvaluationError, LawaError, OutputExistsError
from lawa_jax.offline.prepare import prepare
from lawa_jax.offline.recipe import AveragingOptions, sweep_recipes, window_recipe
from lawa_jax.output import write_checkpoint
from lawa_jax.search import scoring
from lawa_jax.search.evaluators import Evaluator
from lawa_jax.search.results import Results

OPTIONS = AveragingOptions()
SIZE = 1 << 16  # elements


@pytest.fixture
def run(tmp_path):
    for step in range(1, 7):
        write_checkpoint(tmp_path / "run" / str(step), {"w": np.full(SIZE, step, np.float32)})
    return tmp_path / "run"


class Counting:
    """The first weight, and how often it was asked for."""

    def __init__(self, identity="a"):
        self.calls = []
        self.evaluator = Evaluator("first", identity, self.score)

    def score(self, tree, steps):
        self.calls.append(steps)
        return {"first": float(tree["w"][0])}


def evaluate(recipes, counting, folder, options=OPTIONS, trees=None):
    results = Results(folder, {})
    try:
        return scoring.score_recipes(
            recipes, counting.evaluator, results,
            trees or (lambda todo: scoring.in_memory(todo, options)), options=options,
        )  # fmt: skip
    finally:
        results.close()


def test_by_hand_and_only_once(run, tmp_path):
    recipes = sweep_recipes(run, ks=[1, 2], ends=[4, 6], methods=["uniform", "ema:0.25"])
    counting = Counting()
    rows = evaluate(recipes, counting, tmp_path / "out")
    assert {row.name: row.metrics["first"] for row in rows} == {
        "k1-end4-uniform": 4.0, "k1-end4-ema0.25": 4.0,
        "k2-end4-uniform": 3.5, "k2-end4-ema0.25": 3.75,
        "k1-end6-uniform": 6.0, "k1-end6-ema0.25": 6.0,
        "k2-end6-uniform": 5.5, "k2-end6-ema0.25": 5.75,
    }  # fmt: skip
    assert rows[3].coefficients == (0.25, 0.75)
    # One checkpoint is the same by every method.
    assert counting.calls == [(4,), (3, 4), (3, 4), (6,), (5, 6), (5, 6)]
    again = Counting()
    assert evaluate(recipes, again, tmp_path / "out") == rows
    assert again.calls == []
    more = sweep_recipes(run, ks=[1, 3], ends=[4, 6])
    assert evaluate(more, again, tmp_path / "out")[0] == rows[0]
    assert again.calls == [(2, 3, 4), (4, 5, 6)]


def test_what_changed_is_evaluated_again(run, tmp_path):
    recipes = sweep_recipes(run, ks=[2], ends=[2, 4, 6])
    evaluate(recipes, Counting(), tmp_path)
    write_checkpoint(run / "4", {"w": np.full(SIZE, 40, np.float32)}, overwrite=True)
    counting = Counting()
    rows = evaluate(recipes, counting, tmp_path)
    assert counting.calls == [(3, 4)]
    assert [row.metrics["first"] for row in rows] == [1.5, 21.5, 5.5]
    other = Counting("b")
    evaluate(recipes, other, tmp_path)
    assert len(other.calls) == 3
    widened = Counting("b")
    evaluate(recipes, widened, tmp_path, dataclasses.replace(OPTIONS, dtype="float64"))
    assert len(widened.calls) == 3


def test_a_run_that_moved_is_still_known(run, tmp_path):
    evaluate(sweep_recipes(run, ks=[2], ends=[2, 4]), Counting(), tmp_path)
    moved = run.rename(tmp_path / "moved")
    counting = Counting()
    evaluate(sweep_recipes(moved, ks=[2], ends=[2, 4]), counting, tmp_path)
    assert counting.calls == []


def test_as_many_at_once_as_memory_holds(run):
    recipes = sweep_recipes(run, ks=[2], ends=[2, 3, 4, 5, 6])
    model = SIZE * 4
    sizes = [len(p.recipes) for p in scoring.passes(recipes, AveragingOptions(memory=4 * model))]
    assert sizes == [2, 2, 1]
    sizes = [len(p.recipes) for p in scoring.passes(recipes, AveragingOptions(memory=model))]
    assert sizes == [1] * 5
    assert list(scoring.passes([], OPTIONS)) == []
    found = scoring.in_memory(recipes, AveragingOptions(memory=4 * model))
    assert [(recipe.name, tree["w"][-1]) for recipe, tree in found] == [
        (f"k2-end{end}-uniform", end - 0.5) for end in range(2, 7)
    ]


@pytest.mark.parametrize("memory", [1, 4])
def test_an_average_is_let_go_of_before_the_next(run, tmp_path, memory):
    alive = []

    def score(tree, steps):
        assert [reference() for reference in alive] == [None] * len(alive)
        alive.append(weakref.ref(tree["w"]))
        return {"first": float(tree["w"][0])}

    counting = Counting()
    counting.evaluator = counting.evaluator._replace(score=score)
    options = AveragingOptions(memory=memory * SIZE * 4)
    recipes = sweep_recipes(run, ks=[2], ends=[2, 3, 4, 5, 6])

    # Nor is it held while the next pass is made.
    def progress(_):
        assert not [1 for reference in alive if reference() is not None]

    evaluate(
        recipes, counting, tmp_path, options,
        lambda todo: scoring.in_memory(todo, options, progress),
    )  # fmt: skip
    assert len(alive) == 5


def test_a_failing_evaluator_keeps_what_is_done(run, tmp_path, capsys):
    counting = Counting()
    fine = counting.score
    counting.evaluator = counting.evaluator._replace(
        score=lambda tree, steps: fine(tree, steps) if steps[-1] < 5 else tree["nothing"]
    )
    recipes = sweep_recipes(run, ks=[2], ends=[3, 4, 5, 6])
    with pytest.raises(EvaluationError, match="first failed on k2-end5-uniform: KeyError"):
        evaluate(recipes, counting, tmp_path)
    assert "Traceback" in capsys.readouterr().err
    again = Counting()
    evaluate(recipes, again, tmp_path)
    assert again.calls == [(4, 5), (5, 6)]


def test_what_is_stored_is_used_again(run, tmp_path):
    recipe = window_recipe(run, k=2)
    assert not scoring.is_stored(recipe, tmp_path, OPTIONS)
    prepare([recipe]).written([tmp_path / recipe.name])
    assert scoring.is_stored(recipe, tmp_path, OPTIONS)
    [(_, tree)] = scoring.stored([recipe], tmp_path, OPTIONS)
    assert tree["w"][0] == 5.5
    with pytest.raises(OutputExistsError, match="of other sources, weights or options"):
        scoring.is_stored(recipe._replace(weights=(1.0, 2.0)), tmp_path, OPTIONS)
    with pytest.raises(OutputExistsError, match="of other sources, weights or options"):
        scoring.is_stored(recipe, tmp_path, AveragingOptions(dtype="float64"))
    write_checkpoint(run / "6", {"w": np.zeros(SIZE, np.float32)}, overwrite=True)
    with pytest.raises(LawaError, match="of other sources, weights or options"):
        scoring.is_stored(recipe, tmp_path, OPTIONS)
