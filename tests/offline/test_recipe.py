import numpy as np
import pytest

from lawa_jax.errors import SelectionError
from lawa_jax.offline.recipe import best_recipe, sweep_recipes, weighted_recipe, window_recipe
from lawa_jax.output import write_checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    top1 = [0.1, 0.5, 0.9, 0.7, 0.9]
    for step, value in enumerate(top1, start=1):
        write_checkpoint(
            run / str(step), {"w": np.zeros(1, np.float32)}, metrics={"val/top1": value}
        )
    return run


def steps(recipe):
    return [int(source.rpartition("@")[2]) for source in recipe.sources]


def test_a_window_is_the_k_latest(run):
    recipe = window_recipe(run, k=3, end=4)
    assert steps(recipe) == [2, 3, 4]
    assert recipe.weights == (1.0, 1.0, 1.0)
    assert recipe.name == "k3-end4-uniform"


def test_methods_give_their_coefficients(run):
    assert window_recipe(run, k=3, method="ema:0.5").weights == (0.25, 0.25, 0.5)


def test_steps_and_shares(run):
    assert steps(window_recipe(run, steps="1:5:2")) == [1, 3, 5]
    assert steps(window_recipe(run, share="50%")) == [3, 4, 5]
    assert steps(window_recipe(run, share="1%")) == [4, 5]


def test_the_best_by_a_metric_of_equals_the_newer(run):
    assert steps(best_recipe(run, best=1, metric="val/top1", mode="max")) == [5]
    assert steps(best_recipe(run, best=3, metric="val/top1", mode="max")) == [3, 4, 5]
    assert steps(best_recipe(run, best=2, metric="val/top1", mode="min")) == [1, 2]


def test_an_unknown_metric_lists_the_known_ones(run):
    with pytest.raises(SelectionError, match=r"0 checkpoints have.*'loss'.*val/top1"):
        best_recipe(run, best=1, metric="loss")
    with pytest.raises(SelectionError, match="expected at least 9"):
        best_recipe(run, best=9, metric="val/top1")


def test_any_weighted_set():
    recipe = weighted_recipe(["A@10:0.25", "B@20:0.75"])
    assert recipe.sources == ("A@10", "B@20")
    assert recipe.weights == (0.25, 0.75)
    assert weighted_recipe(["A@1", "B@2"]).weights == (0.5, 0.5)
    assert weighted_recipe(["gs://bucket/run@5"]).sources == ("gs://bucket/run@5",)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["A@1:0.5", "B@2"], "B@2 has no weight"),
        (["A@1:0.5", "B@2:0.6"], "weights sum to 1.1, expected 1"),
        (["A@1:x", "B@2:1"], "expected ADDRESS:WEIGHT with a number, found 'x'"),
        (["A@1", "A@1"], "A@1 is named twice"),
    ],
)
def test_weighted_sets_that_make_no_sense(sources, message):
    with pytest.raises(SelectionError, match=message):
        weighted_recipe(sources)


def test_a_sweep_is_every_combination(run):
    recipes = sweep_recipes(run, ks=[2, 3], ends=[5, 4], methods=["uniform", "linear"])
    assert [recipe.name for recipe in recipes] == [
        "k2-end4-uniform", "k2-end4-linear", "k3-end4-uniform", "k3-end4-linear",
        "k2-end5-uniform", "k2-end5-linear", "k3-end5-uniform", "k3-end5-linear",
    ]  # fmt: skip
    with pytest.raises(SelectionError, match="the sweep is empty"):
        sweep_recipes(run, ks=[], ends=[5])
    with pytest.raises(SelectionError, match="only 4 exist"):
        sweep_recipes(run, ks=[5], ends=[4])
