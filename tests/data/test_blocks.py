import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lawa_jax.data.blocks import complete_blocks
from lawa_jax.data.token_files import TokenLines
from lawa_jax.errors import ConfigError


def lines(sizes):
    """Lines of ascending ids, from 10 on."""
    sizes = np.asarray(sizes, np.int64)
    return TokenLines(np.arange(10, 10 + sizes.sum(), dtype=np.uint16), sizes, "text")


def test_by_hand():
    blocks = complete_blocks(lines([2, 3, 9, 1]), 6)
    assert [block.tolist() for block in blocks] == [
        [0, 10, 11, 12, 13, 14],
        [0, 15, 16, 17, 18, 19, 20, 21, 22, 23],
        [0, 24],
    ]
    assert blocks.sizes.tolist() == [6, 10, 2]
    assert blocks.usable.tolist() == [0, 2]
    assert blocks[0].dtype == np.int32


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # A line of exactly tokens_per_sample - 1 fits; one more does not.
        ([5], [6]),
        ([6, 2], [7, 3]),
        # After a block is full, the next line starts a new one, however short.
        ([3, 3, 2, 1], [4, 6, 2]),
        ([0, 7, 0, 0, 2, 0], [8, 3]),
    ],
)
def test_edges(sizes, expected):
    assert complete_blocks(lines(sizes), 6).sizes.tolist() == expected


def slow_fairseq(sizes, limit):
    """The loop of fairseq's token_block_utils, retold."""
    ranges, first, current, position = [], 0, 0, 0
    while position < len(sizes):
        if current == 0 or current + sizes[position] <= limit:
            current += sizes[position]
            position += 1
        else:
            ranges.append((first, first + current))
            first, current = first + current, 0
    if current > 0:
        ranges.append((first, first + current))
    return ranges


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(2, 15))
def test_equals_the_plain_loop(sizes, tokens_per_sample):
    expected = slow_fairseq(sizes, tokens_per_sample - 1)
    usable = any(end - start < tokens_per_sample for start, end in expected)
    if max(sizes) < 2 or not usable:
        with pytest.raises(ConfigError):
            complete_blocks(lines(sizes), tokens_per_sample)
    else:
        bounds = complete_blocks(lines(sizes), tokens_per_sample).bounds
        assert [tuple(bound) for bound in bounds.tolist()] == expected


def test_bad_input():
    with pytest.raises(ConfigError, match="text: 3 lines, all empty"):
        complete_blocks(lines([1, 1, 1]), 6)
    with pytest.raises(ConfigError, match="text: 0 lines, all empty"):
        complete_blocks(lines([]), 6)
    message = r"text: line 1 has 7 tokens and the model takes 5 beside <s>; all 2 blocks"
    with pytest.raises(ConfigError, match=message):
        complete_blocks(lines([7, 8]), 6)
    with pytest.raises(ConfigError, match="tokens_per_sample must be at least 2"):
        complete_blocks(lines([2]), 1)
