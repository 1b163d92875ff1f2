"""Searches along a trajectory, on trees whose scores are known by hand."""

import math

import numpy as np
import pytest

from lawa_jax import average
from lawa_jax.errors import SelectionError
from lawa_jax.search.soups import best_k, best_window, greedy_soup

# The loss is the distance to 0: alone 4 and -3 and 10 and -1 are 4, 3, 10, 1.
TREES = {step: {"w": np.float32([w])} for step, w in {1: 4, 2: -3, 3: 10, 5: -1}.items()}


def distance(tree):
    return float(np.abs(tree["w"][0]))


def test_greedy_soup_by_hand():
    # By score: 5 (-1), 2 (-3), 1 (4), 3 (10). {5} 1; {5, 2} 2: out; {5, 1} 1.5: out; {5, 3} 4.5.
    found = greedy_soup(TREES.get, TREES, distance)
    assert found.steps == (5,)
    assert [t.kept for t in found.trials] == [True] * 4 + [False] * 3
    # Without 5: 2 (-3), 1 (4), 3 (10). {2} 3; {2, 1} 0.5: in; {2, 1, 3} 3.67: out.
    found = greedy_soup(TREES.get, [1, 2, 3], distance)
    assert found.steps == (1, 2)
    assert found.score == 0.5
    assert [t.steps for t in found.trials[3:]] == [(1, 2), (1, 2, 3)]


def test_the_soup_is_the_average_of_its_members():
    generator = np.random.default_rng(0)
    trees = {s: {"w": generator.normal(size=7).astype(np.float32)} for s in range(9)}
    found = greedy_soup(trees.get, trees, lambda t: float(np.sum(np.square(t["w"]))))
    assert len(found.steps) > 2
    expected = average([trees[s] for s in found.steps])
    np.testing.assert_array_equal(found.tree["w"], expected["w"])


def test_high_can_be_good_and_not_a_number_never_is():
    scores = {1: 0.5, 2: math.nan, 3: 0.7}
    found = greedy_soup(
        TREES.get, scores, lambda t: scores.get({4: 1, -3: 2, 10: 3}.get(int(t["w"][0])), 0.6),
        mode="max",
    )  # fmt: skip
    assert found.steps == (3,)
    with pytest.raises(SelectionError, match="found 2 without one"):
        greedy_soup(TREES.get, [1, 2], lambda _: math.inf)


def test_best_k_by_hand():
    found = best_k(TREES.get, TREES, distance, 2)
    assert found.steps == (2, 5)
    assert found.score == 2.0
    with pytest.raises(SelectionError, match="expected 1 to 4 candidates, found 5"):
        best_k(TREES.get, TREES, distance, 5)


def test_best_window_by_hand():
    trees = {step: {"w": np.float32([w])} for step, w in enumerate([4, -3, 10, -6, -1], 1)}
    # At 5: k=1: 1, k=2: 3.5, k=3: 1; at 4: k=1: 6, k=2: 2, k=3: 1/3.
    found = best_window(trees.get, trees, distance, ks=[1, 2, 3], ends=[4, 5])
    assert found.steps == (2, 3, 4)
    assert found.score == pytest.approx(1 / 3)
    assert len(found.trials) == 6
    assert best_window(trees.get, trees, distance, ks=[1, 2, 9]).steps == (5,)
    with pytest.raises(SelectionError, match="no window of 9 checkpoints fits; existing: 1"):
        best_window(trees.get, trees, distance, ks=[9])
    with pytest.raises(SelectionError, match="found 2 without"):
        best_window(trees.get, trees, lambda _: math.nan, ks=[1, 2])


def test_mistakes_in_windows_are_found_before_anything_is_scored():
    trees = {step: {"w": np.float32([step])} for step in (1, 2, 3, 5, 6)}
    with pytest.raises(SelectionError, match="misses checkpoint 4"):
        best_window(trees.get, trees, pytest.fail, ks=[1, 2, 4])
    with pytest.raises(SelectionError, match="no checkpoint 7"):
        best_window(trees.get, trees, pytest.fail, ks=[1], ends=[6, 7])
    for search in (lambda *a, **m: best_window(*a, ks=[1], **m), greedy_soup):
        with pytest.raises(SelectionError, match="mode: expected 'min' or 'max', found 'up'"):
            search(trees.get, trees, pytest.fail, mode="up")
