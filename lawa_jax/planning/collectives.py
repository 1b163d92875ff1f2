"""The messages between devices in a compiled program, read off its text."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

_OPERATIONS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_LINE = re.compile(rf"= (.*?) ({'|'.join(_OPERATIONS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+)(\d+)?(?:e\d+m\d+\w*)?\[([\d,]*)\]")


class Collective(NamedTuple):
    """One message operation.

    Attributes:
      operation: ``all-reduce``, ``all-gather``, ...
      shapes: of its results on one device.
      nbytes: of its results on one device.
    """

    operation: str
    shapes: tuple[tuple[int, ...], ...]
    nbytes: int


def collectives(hlo: str) -> list[Collective]:
    """All collectives of a compiled program's text; those in a loop count once.

    Example: ``%a = f32[8,4]{1,0} all-gather(%b), ...`` is an all-gather of 128 bytes.
    """
    found = []
    for line in hlo.splitlines():
        match = _LINE.search(line)
        if match is None:
            continue
        kind, operation, start = match.groups()
        arrays = [_array(*a.groups()) for a in _ARRAY.finditer(kind)]
        if start and operation != "all-reduce":
            # (operands, results, state...): results come after as many operands.
            arrays = [a for a in arrays if a[0] or not start]
            arrays = arrays[len(arrays) // 2 :] if len(arrays) > 1 else arrays
        found.append(
            Collective(operation, tuple(shape for shape, _ in arrays), sum(n for _, n in arrays))
        )
    return found


def totals(found: Iterable[Collective]) -> dict[str, tuple[int, int]]:
    """Number and bytes by operation."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for one in found:
        sums[one.operation][0] += 1
        sums[one.operation][1] += one.nbytes
    return {operation: (count, nbytes) for operation, (count, nbytes) in sorted(sums.items())}


def link_bytes(found: Iterable[Collective], devices: int) -> float:
    """Bytes each device must send at least, over `devices` that all take part.

    A ring all-reduce of S bytes sends S (n-1)/n twice; a gather or exchange with S bytes of result
    sends S (n-1)/n; a reduce-scatter with S bytes of result S (n-1).
    """
    share = (devices - 1) / devices
    factors = {"all-reduce": 2 * share, "reduce-scatter": share * devices}
    return sum(one.nbytes * factors.get(one.operation, share) for one in found)


def _array(kind: str, bits: str | None, dims: str) -> tuple[tuple[int, ...], int]:
    shape = tuple(int(n) for n in dims.split(",") if n)
    size = 1 if kind == "pred" else max(1, int(bits or 8) // 8)
    return shape, math.prod(shape) * size
