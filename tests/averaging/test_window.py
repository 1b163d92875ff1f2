import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lawa_jax.averaging import window
from lawa_jax.errors import SelectionError


def refusal(text):
    return pytest.raises(SelectionError, match=re.escape(text))


def test_k_counts_checkpoints_not_gaps():
    assert window.latest(range(1, 91), k=5, end=30) == (26, 27, 28, 29, 30)


def test_the_newest_is_the_end_unless_told():
    assert window.latest([3, 1, 2], k=2) == (2, 3)
    assert window.latest([10], k=1) == (10,)


def test_a_trajectory_may_have_any_spacing_and_order():
    assert window.latest([500, 100, 300, 200, 400], k=3, end=400) == (200, 300, 400)
    assert window.latest([0, 5, 10, 10, 5], k=3) == (0, 5, 10)


@given(st.integers(0, 50), st.integers(1, 20), st.integers(1, 40), st.data())
def test_a_window_holds_exactly_k_consecutive_checkpoints(start, spacing, n, data):
    steps = [start + spacing * i for i in range(n)]
    k = data.draw(st.integers(1, n))
    end = data.draw(st.integers(k - 1, n - 1))
    assert window.latest(steps, k, steps[end]) == tuple(steps[end - k + 1 : end + 1])


@pytest.mark.parametrize("k", [0, -3])
def test_k_is_at_least_one(k):
    with refusal(f"expected >= 1, found {k}"):
        window.latest([1, 2, 3], k)


def test_more_checkpoints_than_the_run_has():
    with refusal("k=5 checkpoints ending at 3 were asked for, but only 3 exist up to there: 1..3"):
        window.latest(range(1, 91), k=5, end=3)
    with refusal("k=91 checkpoints ending at 90 were asked for, but only 90 exist"):
        window.latest(range(1, 91), k=91)


def test_a_missing_end():
    with refusal("there is no checkpoint 100 to end at; existing: 10..90 by 10"):
        window.latest(range(10, 91, 10), k=2, end=100)
    with refusal("there is no checkpoint 85 to end at; existing: 10..90 by 10"):
        window.latest(range(10, 91, 10), k=2, end=85)


def test_an_empty_run():
    with refusal("there are no checkpoints to choose from"):
        window.latest([], k=1)


def test_a_lost_checkpoint_is_not_bridged():
    steps = [s for s in range(1, 91) if s != 28]
    with refusal("the window 25..30 misses checkpoint 28 of a run saved every 1; existing: 1, 2,"):
        window.latest(steps, k=5, end=30)
    assert window.latest(steps, k=2, end=30) == (29, 30)
    assert window.latest(steps, k=5, end=33) == (29, 30, 31, 32, 33)
    with refusal("misses checkpoint 30, 40 of a run saved every 10; existing: 10, 20, 50, 60, 70"):
        window.latest([10, 20, 50, 60, 70], k=4)


def test_a_lost_checkpoint_of_a_short_run_is_not_bridged():
    with refusal("misses checkpoint 3 of a run saved every 1; existing: 1, 2, 4"):
        window.latest([1, 2, 4], k=2)


def test_runs_without_a_regular_spacing_have_no_gaps():
    assert window.latest([1, 2, 4, 8, 16], k=3) == (4, 8, 16)
    # The last step of training seldom falls on the grid.
    assert window.latest([100, 200, 300, 350], k=2) == (300, 350)


def test_named_steps_are_taken_as_they_are():
    assert window.select([1, 2, 4, 8], [8, 1]) == (1, 8)
    with refusal("no checkpoints were chosen; existing: 1, 2"):
        window.select([1, 2], [])
    with refusal("checkpoints chosen twice: 2"):
        window.select([1, 2], [2, 1, 2])
    with refusal("checkpoints that do not exist: 3, 9; existing: 1, 2"):
        window.select([1, 2], [1, 9, 3])
    with refusal("do not exist: 3; existing: none"):
        window.select([], [3])


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("5", (5,)),
        ("1,3", (1, 3)),
        (" 1 , 3:5 ", (1, 3, 4, 5)),
        ("50:90:10", (50, 60, 70, 80, 90)),
        ("50:89:10", (50, 60, 70, 80)),
        ("1,3,10:20:5", (1, 3, 10, 15, 20)),
        ("7:7", (7,)),
    ],
)
def test_ranges_include_both_ends(text, steps):
    assert window.parse_steps(text) == steps


@pytest.mark.parametrize("text", ["", "a", "1,", "1:2:3:4", "1:", "1:9:0", "1:9:-2", "1.5", "::"])
def test_steps_of_another_form(text):
    with pytest.raises(
        SelectionError, match=r"expected steps as 5, 1,2,3 or start:stop\[:stride\]"
    ):
        window.parse_steps(text)


def test_a_range_that_ends_before_it_starts():
    with refusal("the range '90:50:10' ends before it starts"):
        window.parse_steps("90:50:10")


@pytest.mark.parametrize(
    ("total", "share", "k"),
    [
        (100, "7%", 7),
        (375, "8.8%", 33),  # 33.00000000000001 in floating point
        (1000, "1%", 10),
        (1001, "1%", 11),
        (150, "1%", 2),
        (90, "1%", 2),
        (1, "50%", 2),
        (90, " 2.5 %", 3),
        (30, "100%", 30),
    ],
)
def test_a_share_of_the_run_is_rounded_up_and_at_least_two(total, share, k):
    assert window.share_of_run(total, share) == k


@given(st.integers(1, 10_000), st.integers(1, 100))
def test_a_share_of_the_run_in_exact_arithmetic(total, percent):
    assert window.share_of_run(total, f"{percent}%") == max(2, -(-total * percent // 100))


@pytest.mark.parametrize("share", ["0%", "-1%", "101%", "nan%", "inf%", "5", "x%", "%", ""])
def test_a_share_that_is_no_percentage(share):
    with refusal(f"expected a share of the run in (0%, 100%] such as 1%, found {share!r}"):
        window.share_of_run(100, share)


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([], "none"),
        ([7], "7"),
        ([9, 7], "7, 9"),
        (range(1, 31), "1..30"),
        (range(10, 91, 10), "10..90 by 10"),
        ([1, 2, 4], "1, 2, 4"),
        (
            [*range(1, 10), *range(11, 20)],
            "1, 2, 3, 4, 5, 6, ... , 14, 15, 16, 17, 18, 19 (18 in all)",
        ),
    ],
)
def test_steps_in_messages(steps, text):
    assert window.describe(steps) == text
