"""Which checkpoints: windows over the steps of a run, as plain integers.

``k`` is the NUMBER of checkpoints. The paper's scripts say ``ks=(4)`` because they count the gaps;
what they average is five checkpoints, which is ``k = 5`` here.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from lawa_jax.errors import SelectionError

_SHOWN = 12
# More than any run has checkpoints.
_MOST_STEPS = 1_000_000


def describe(steps: Sequence[int]) -> str:
    """Steps for a message: runs of equal stride are shortened, ``1..30`` or ``10..90 by 10``."""
    steps = sorted(steps)
    if not steps:
        return "none"
    if len(steps) <= 2:
        return ", ".join(map(str, steps))
    strides = {b - a for a, b in pairwise(steps)}
    if len(strides) == 1:
        stride = strides.pop()
        return f"{steps[0]}..{steps[-1]}" + (f" by {stride}" if stride != 1 else "")
    if len(steps) <= _SHOWN:
        return ", ".join(map(str, steps))
    half = _SHOWN // 2
    head, tail = ", ".join(map(str, steps[:half])), ", ".join(map(str, steps[-half:]))
    return f"{head}, ... , {tail} ({len(steps)} in all)"


def latest(steps: Iterable[int], k: int, end: int | None = None) -> tuple[int, ...]:
    """The `k` latest steps up to and including `end`, oldest first.

    ``theta_LAWA(E)`` averages ``theta_i`` for ``i = E-k+1 .. E`` (arXiv 2209.14981, section 3).
    Where the run saved every epoch, ``latest(range(1, 91), k=5, end=30)`` is ``(26, ..., 30)``.

    Args:
      steps: the steps that exist.
      k: number of checkpoints, at least 1.
      end: the newest step to use, which must exist; the newest of all by default.

    Raises:
      SelectionError: `k` < 1, `end` does not exist, fewer than `k` steps up to `end`, or a gap in
        a trajectory of otherwise constant spacing inside the window.
    """
    existing = sorted(set(steps))
    if k < 1:
        raise SelectionError(f"k is the number of checkpoints to average: expected >= 1, found {k}")
    if not existing:
        raise SelectionError("there are no checkpoints to choose from")
    if end is None:
        end = existing[-1]
    if end not in existing:
        raise SelectionError(
            f"there is no checkpoint {end} to end at; existing: {describe(existing)}"
        )
    up_to_end = existing[: existing.index(end) + 1]
    if len(up_to_end) < k:
        raise SelectionError(
            f"k={k} checkpoints ending at {end} were asked for, but only {len(up_to_end)} exist up "
            f"to there: {describe(up_to_end)}; choose a smaller k or a later end"
        )
    window = up_to_end[-k:]
    _check_gaps(existing, window)
    return tuple(window)


def _check_gaps(existing: Sequence[int], window: Sequence[int]) -> None:
    """Refuse a window that silently bridges a missing checkpoint.

    The spacing of a trajectory is its most common one; a wider step inside the window means that
    a checkpoint was lost. Runs without a regular spacing have no gaps to speak of.
    """
    differences = [b - a for a, b in pairwise(existing)]
    if not differences:
        return
    spacing = max(set(differences), key=lambda d: (differences.count(d), -d))
    # At least half, so that 3 is missed in 1, 2, 4 too.
    if differences.count(spacing) * 2 < len(differences):
        return
    for a, b in pairwise(window):
        if b - a > spacing and (b - a) % spacing == 0:
            missing = list(range(a + spacing, b, spacing))
            raise SelectionError(
                f"the window {window[0]}..{window[-1]} misses checkpoint {describe(missing)} of a "
                f"run saved every {spacing}; existing: {describe(existing)}. Choose another end, "
                "or name the steps one by one to average across the gap"
            )


def select(steps: Iterable[int], wanted: Iterable[int]) -> tuple[int, ...]:
    """Exactly the `wanted` steps, oldest first.

    Raises:
      SelectionError: some do not exist, occur twice, or none are wanted.
    """
    existing, chosen = sorted(set(steps)), sorted(wanted)
    there, counts = set(existing), Counter(chosen)
    if not chosen:
        raise SelectionError(f"no checkpoints were chosen; existing: {describe(existing)}")
    twice = sorted(s for s, count in counts.items() if count > 1)
    if twice:
        raise SelectionError(f"checkpoints chosen twice: {describe(twice)}")
    missing = [s for s in chosen if s not in there]
    if missing:
        raise SelectionError(
            f"checkpoints that do not exist: {describe(missing)}; existing: {describe(existing)}"
        )
    return tuple(chosen)


def parse_steps(text: str) -> tuple[int, ...]:
    """Steps from ``"50:90:10"`` (start:stop:stride, stop INCLUDED), ``"5"`` or ``"1,3,10:20:5"``.

    Both ends are included because ``50:90:10`` names checkpoints, and 90 is one of them.

    Raises:
      SelectionError: not of this form, or an empty range.
    """
    result: list[int] = []
    for part in text.split(","):
        fields = part.strip().split(":")
        try:
            numbers = [int(field) for field in fields]
        except ValueError:
            numbers = []
        if not 1 <= len(numbers) <= 3 or (len(numbers) == 3 and numbers[2] < 1):
            raise SelectionError(
                "expected steps as 5, 1,2,3 or start:stop[:stride] with stride >= 1, "
                f"found {part!r}"
            )
        if len(numbers) == 1:
            result.append(numbers[0])
            continue
        start, stop, stride = (*numbers, 1)[:3]
        if stop < start:
            raise SelectionError(f"the range {part!r} ends before it starts")
        if (stop - start) // stride >= _MOST_STEPS:
            raise SelectionError(
                f"the range {part!r} has more than {_MOST_STEPS:,} steps; choose a wider stride"
            )
        result.extend(range(start, stop + 1, stride))
    return tuple(result)


def share_of_run(total: int, share: str) -> int:
    """Number of checkpoints in a window of ``"1%"`` of a run of `total`: rounded up, at least 2.

    About 1 % of the training budget was best over seven workloads (arXiv 2502.06761).

    Raises:
      SelectionError: not a percentage in (0, 100].
    """
    try:
        percent = float(share.strip().removesuffix("%"))
    except ValueError:
        percent = math.nan
    if not share.strip().endswith("%") or not 0 < percent <= 100:
        raise SelectionError(
            f"expected a share of the run in (0%, 100%] such as 1%, found {share!r}"
        )
    # 8.8 % of 375 is 33.00000000000001 in floating point: nine digits are enough for any run.
    return max(2, math.ceil(round(total * percent / 100, 9)))
