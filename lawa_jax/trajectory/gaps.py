"""Which steps of a trajectory are missing, and which never were."""

import itertools
from collections.abc import Sequence


def stride(steps: Sequence[int]) -> int:
    """The commonest distance between neighbours, the smallest of equals; 1 for a single step.

    The last interval may be shorter than the others (training ended there) and says nothing.
    """
    distances = [b - a for a, b in itertools.pairwise(steps)]
    distances = distances[:-1] or distances
    return min(distances, key=lambda d: (-distances.count(d), d)) if distances else 1


def missing_between(steps: Sequence[int]) -> tuple[int, ...]:
    """Steps that a regular trajectory would have between the first and the last.

    Example: ``[10, 20, 40]`` misses 30. ``[500, 1000, 1250]`` misses nothing, since its last
    interval is a shorter one, and ``[4, 9, 12]`` neither, since nothing about it is regular.
    """
    if len(steps) < 3:
        # Two steps may be neighbours at any distance.
        return ()
    step = stride(steps)
    pairs = list(itertools.pairwise(steps))
    inner = [b - a for a, b in pairs[1:-1]]
    ends = [pairs[0][1] - pairs[0][0], pairs[-1][1] - pairs[-1][0]]
    distances = [b - a for a, b in pairs[:-1]]
    if 2 * distances.count(step) < len(distances):
        return ()
    if any(d % step for d in inner) or any(d > step and d % step for d in ends):
        return ()
    return tuple(e for a, b in pairs if b - a > step for e in range(a + step, b, step))
