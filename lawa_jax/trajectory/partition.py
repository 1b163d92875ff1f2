"""Cutting a leaf into blocks that are cheap to read: inside chunks, and contiguous there."""

import itertools
from collections.abc import Iterator

import numpy as np

from lawa_jax.tree import Index, LeafSpec


def chunk_blocks(spec: LeafSpec, chunk: tuple[int, ...]) -> Iterator[Index]:
    """Blocks that cover a leaf, one for each storage chunk (smaller at the edges)."""
    starts = [range(0, n, c) for n, c in zip(spec.shape, chunk, strict=True)]
    for corner in itertools.product(*starts):
        yield tuple(
            slice(a, min(a + c, n)) for a, c, n in zip(corner, chunk, spec.shape, strict=True)
        )


def cut(index: Index, itemsize: int, limit: int) -> Iterator[Index]:
    """Cut a block in C order into pieces of at most `limit` bytes, or of one element.

    Leading dimensions are cut first, so that every piece is contiguous within the block.
    """
    shape = [s.stop - s.start for s in index]
    row = int(np.prod(shape, dtype=np.int64)) * itemsize
    axis = 0
    # Go down until a single step along `axis` fits into the limit.
    while axis < len(shape) and row > limit and row // shape[axis] > limit:
        row //= shape[axis]
        axis += 1
    if row <= limit and axis == 0:
        yield index
        return
    outer = [range(s.start, s.stop) for s in index[:axis]]
    if axis == len(shape):
        for position in itertools.product(*outer):
            yield tuple(slice(i, i + 1) for i in position)
        return
    step = max(1, limit // (row // shape[axis]))
    for position in itertools.product(*outer):
        for start in range(index[axis].start, index[axis].stop, step):
            yield (
                *(slice(i, i + 1) for i in position),
                slice(start, min(start + step, index[axis].stop)),
                *index[axis + 1 :],
            )


def blocks(
    spec: LeafSpec, chunk: tuple[int, ...], limit: int, *, whole_chunks: bool = False
) -> Iterator[Index]:
    """Blocks that cover a leaf once.

    Args:
      spec: of the leaf.
      chunk: its storage chunks; no block crosses one.
      limit: bytes of a block, at most (one element at least).
      whole_chunks: never divide a chunk, whatever its size: a compressed chunk costs whole.
    """
    for block in chunk_blocks(spec, chunk):
        if whole_chunks:
            yield block
        else:
            yield from cut(block, spec.dtype.itemsize, limit)
