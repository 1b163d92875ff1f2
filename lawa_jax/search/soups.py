"""Which checkpoints of a trajectory to average, found by trying on held-out data.

Every function takes ``load(step)``, which returns a checkpoint's tree, and ``score(tree)``, a
metric on data held out FOR THE SEARCH. Report on other data: the best of many tries is flattering
on what it was chosen by.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

from lawa_jax.averaging import window
from lawa_jax.averaging.device import Accumulator, average
from lawa_jax.errors import SelectionError
from lawa_jax.tree import PyTree

Load = Callable[[int], PyTree]
Score = Callable[[PyTree], float]
Mode = Literal["min", "max"]


class Trial(NamedTuple):
    """One tree that was scored.

    Attributes:
      steps: of the checkpoints in it, oldest first.
      score: its metric.
      kept: whether the search went on with it.
    """

    steps: tuple[int, ...]
    score: float
    kept: bool


class SearchResult(NamedTuple):
    """What a search ended with.

    Attributes:
      steps: of the checkpoints averaged, oldest first.
      score: the metric of their average, on the data of the search.
      tree: their uniform average, as `lawa_jax.average` makes it of them.
      trials: everything that was scored, in order.
    """

    steps: tuple[int, ...]
    score: float
    tree: PyTree
    trials: list[Trial]


def greedy_soup(
    load: Load, steps: Iterable[int], score: Score, *, mode: Mode = "min"
) -> SearchResult:
    """Greedy soup along a trajectory (Wortsman et al. 2022, arXiv 2203.05482, recipe 1).

    Checkpoints are sorted by their own score; each is taken in if the mean of the soup with it
    scores at least as well as without. ``2 N`` scores for N checkpoints, the last of what is found.

    Args:
      load: a checkpoint's tree by step.
      steps: the candidates.
      score: metric of a tree.
      mode: whether low or high is good.

    Raises:
      SelectionError: no candidates, or not one with a finite score.
    """
    singles, trials = _singles(load, steps, score, mode)
    best, *others = singles
    members, best_score, mean = best.steps, best.score, load(best.steps[0])
    for other in others:
        step = other.steps[0]
        # Rounded at each step, unlike the result.
        tried = average([mean, load(step)], [len(members), 1])
        found = score(tried)
        kept = math.isfinite(found) and _key(found, mode) <= _key(best_score, mode)
        joined = tuple(sorted((*members, step)))
        trials.append(Trial(joined, found, kept))
        if kept:
            members, best_score, mean = joined, found, tried
    tree = mean_of(load, members)
    return SearchResult(members, score(tree), tree, trials)


def best_k(
    load: Load, steps: Iterable[int], score: Score, k: int, *, mode: Mode = "min"
) -> SearchResult:
    """The average of the `k` checkpoints that score best one by one.

    Raises:
      SelectionError: fewer than `k` candidates with a finite score, or k < 1.
    """
    singles, trials = _singles(load, steps, score, mode)
    if not 1 <= k <= len(singles):
        raise SelectionError(f"k: expected 1 to {len(singles)} candidates, found {k}")
    members = tuple(sorted(trial.steps[0] for trial in singles[:k]))
    tree = mean_of(load, members)
    return SearchResult(members, score(tree), tree, trials)


def best_window(
    load: Load,
    steps: Iterable[int],
    score: Score,
    *,
    ks: Sequence[int],
    ends: Sequence[int] | None = None,
    mode: Mode = "min",
) -> SearchResult:
    """The best of all windows of the latest k checkpoints, for several k and ends.

    Args:
      load, steps, score, mode: see `greedy_soup`.
      ks: numbers of checkpoints to try.
      ends: steps that windows end at; by default the newest alone. See `windows`.

    Raises:
      SelectionError: no window fits, one has a gap, or none has a finite score.
    """
    _check_mode(mode)
    trials, best = [], None
    for members in windows(steps, ks, ends):
        tree = mean_of(load, members)
        found = score(tree)
        better = math.isfinite(found) and (best is None or _key(found, mode) < _key(best[1], mode))
        trials.append(Trial(members, found, better))
        if better:
            best = (members, found, tree)
    if best is None:
        raise SelectionError(f"expected windows with a finite score, found {len(trials)} without")
    return SearchResult(*best, trials)


def windows(
    steps: Iterable[int], ks: Sequence[int], ends: Sequence[int] | None = None
) -> list[tuple[int, ...]]:
    """The windows of the latest k steps, for several k and ends, by end and k.

    Ends without k steps up to them are left out.

    Raises:
      SelectionError: no window fits, an end does not exist, or a window has a gap.
    """
    existing = sorted(set(steps))
    found = [
        window.latest(existing, k, end)
        for end in sorted(set(existing[-1:] if ends is None else ends))
        for k in sorted(set(ks))
        if k <= sum(step <= end for step in existing)
    ]
    if not found:
        raise SelectionError(
            f"no window of {', '.join(map(str, ks))} checkpoints fits; existing: "
            f"{window.describe(existing)}"
        )
    return found


def mean_of(load: Load, steps: Sequence[int]) -> PyTree:
    """The uniform average of checkpoints, held one at a time."""
    accumulator = Accumulator()
    for step in steps:
        accumulator.add(load(step), label=f"checkpoint {step}")
    return accumulator.result()


def _singles(
    load: Load, steps: Iterable[int], score: Score, mode: Mode
) -> tuple[list[Trial], list[Trial]]:
    """Candidates with finite scores, best first (of equals the newest), and all of them."""
    _check_mode(mode)
    trials = [Trial((step,), score(load(step)), True) for step in sorted(set(steps))]
    usable = [trial for trial in trials if math.isfinite(trial.score)]
    if not usable:
        raise SelectionError(
            f"expected checkpoints with a finite score, found {len(trials)} without one"
        )
    return sorted(usable, key=lambda t: (_key(t.score, mode), -t.steps[0])), trials


def _check_mode(mode: str) -> None:
    if mode not in ("min", "max"):
        raise SelectionError(f"mode: expected 'min' or 'max', found {mode!r}")


def _key(score: float, mode: Mode) -> float:
    return score if mode == "min" else -score
