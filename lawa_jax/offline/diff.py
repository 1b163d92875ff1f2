"""One checkpoint against another, leaf by leaf."""

from typing import NamedTuple

import numpy as np

from lawa_jax.trajectory import Checkpoint
from lawa_jax.tree import is_averaged

_BLOCK_BYTES = 4 << 20


class LeafDifference(NamedTuple):
    """How one leaf differs.

    Attributes:
      name: of the leaf.
      max_abs: largest absolute difference; None where shapes or dtypes do not compare.
      relative: L2 norm of the difference over that of the first.
      differing: elements whose bits differ.
      size: elements.
      problem: why nothing could be compared, or None.
    """

    name: str
    max_abs: float | None
    relative: float | None
    differing: int
    size: int
    problem: str | None


def diff(a: Checkpoint, b: Checkpoint) -> list[LeafDifference]:
    """Leaf by leaf what differs between two checkpoints; leaves with equal bits are left out.

    Read block by block, so that memory does not depend on the model.
    """
    found = []
    for name in dict.fromkeys([*a.leaves, *b.leaves]):
        if name not in a.leaves or name not in b.leaves:
            only = a.label if name in a.leaves else b.label
            found.append(LeafDifference(name, None, None, 0, 0, f"only in {only}"))
            continue
        one, other = a.leaves[name], b.leaves[name]
        if one != other:
            found.append(LeafDifference(name, None, None, 0, 0, f"{one} against {other}"))
            continue
        difference = _compare(a, b, name)
        if difference.differing:
            found.append(difference)
    return found


def _compare(a: Checkpoint, b: Checkpoint, name: str) -> LeafDifference:
    spec = a.leaves[name]
    wide = np.complex128 if spec.dtype.kind == "c" else np.float64
    differing, largest, squares, norm = 0, 0.0, 0.0, 0.0
    for index in a.blocks(name, _BLOCK_BYTES):
        shape = tuple(part.stop - part.start for part in index)
        x, y = np.empty(shape, spec.dtype), np.empty(shape, spec.dtype)
        a.read(name, index, x)
        b.read(name, index, y)
        bits = f"V{spec.dtype.itemsize}"
        differing += int(np.count_nonzero(x.reshape(-1).view(bits) != y.reshape(-1).view(bits)))
        if not is_averaged(spec.dtype) and spec.dtype.kind not in "iub":
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.abs(x.astype(wide) - y.astype(wide))
            largest = max(largest, float(gap.max(initial=0.0)))
            squares += float(np.sum(gap**2))
            norm += float(np.sum(np.abs(x.astype(wide)) ** 2))
    relative = (squares / norm) ** 0.5 if norm else float("inf") if squares else 0.0
    return LeafDifference(name, largest, relative, differing, spec.size, None)
