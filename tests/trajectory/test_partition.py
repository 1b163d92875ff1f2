"""Blocks cover a leaf once, keep the limit, and lie inside chunks."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lawa_jax.trajectory.partition import blocks
from lawa_jax.tree import LeafSpec


def test_by_hand():
    spec = LeafSpec((4, 6), np.dtype("float32"))  # rows of 24 bytes

    def bounds(*arguments, **options):
        return [
            tuple((s.start, s.stop) for s in index) for index in blocks(spec, *arguments, **options)
        ]

    assert bounds((4, 6), 96) == [((0, 4), (0, 6))]
    assert bounds((4, 6), 71) == [((0, 2), (0, 6)), ((2, 4), (0, 6))]
    assert bounds((4, 6), 16)[:2] == [((0, 1), (0, 4)), ((0, 1), (4, 6))]
    assert bounds((4, 3), 24)[:2] == [((0, 2), (0, 3)), ((2, 4), (0, 3))]
    assert bounds((4, 3), 1, whole_chunks=True) == [((0, 4), (0, 3)), ((0, 4), (3, 6))]
    assert list(blocks(LeafSpec((), np.dtype("float32")), (), 1)) == [()]
    assert list(blocks(LeafSpec((0, 2), np.dtype("float32")), (1, 2), 1)) == []


@given(
    dims=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=4),
    limit=st.integers(1, 300),
    whole=st.booleans(),
)
def test_cover_once_within_chunks_and_limit(dims, limit, whole):
    shape = tuple(n for n, _ in dims)
    chunk = tuple(min(n, c) for n, c in dims)
    seen = np.zeros(shape, np.int64)
    for index in blocks(LeafSpec(shape, np.dtype("int64")), chunk, limit, whole_chunks=whole):
        seen[index] += 1
        assert whole or seen[index].nbytes <= max(limit, 8)
        for part, c in zip(index, chunk, strict=True):
            assert part.start // c == (part.stop - 1) // c
    assert (seen == 1).all()
