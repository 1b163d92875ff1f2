import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lawa_jax.data.batching import (
    NO_BLOCK,
    MaskedBatches,
    bucket_lengths,
    evaluation_order,
    plan_batches,
    training_order,
)
from lawa_jax.data.blocks import complete_blocks
from lawa_jax.data.dictionary import Dictionary
from lawa_jax.data.masking import FairseqMasker, FastMasker
from lawa_jax.data.token_files import TokenLines
from lawa_jax.errors import ConfigError

DICTIONARY = Dictionary.from_counts({str(i): 1 for i in range(95)})


def blocks_of(sizes, tokens_per_sample=40):
    """One block of each size (<s> included): lines that do not fit together."""
    sizes = np.asarray(sizes) - 1
    ids = np.random.default_rng(0).integers(4, 99, sizes.sum()).astype(np.uint16)
    lines = TokenLines(ids, sizes, "text")
    blocks = complete_blocks(lines, tokens_per_sample)
    assert blocks.sizes.tolist() == (sizes + 1).tolist()
    return blocks


SIZES = [30, 22, 39, 22, 41, 25, 22, 40, 39, 22, 28]


def test_evaluation_order_is_by_size_then_seeded_and_skips_long_blocks():
    blocks = blocks_of(SIZES)
    order = evaluation_order(blocks, seed=1)
    assert blocks.sizes[order].tolist() == sorted(size for size in SIZES if size <= 40)
    # numpy's legacy permutation of 11 for seed 1 is 2 3 4 9 1 6 0 7 10 8 5: it orders the blocks
    # of 22 tokens, 1 3 6 9, by 3 9 0 8, and those of 39, 2 and 8, by 4 10.
    assert order.tolist()[:4] == [6, 1, 9, 3]
    assert order.tolist()[-3:] == [2, 8, 7]
    assert evaluation_order(blocks, seed=2).tolist() != order.tolist()


def test_training_order_is_a_permutation_of_usable_blocks_by_seed_and_epoch():
    blocks = blocks_of(SIZES)
    orders = {(s, e): training_order(blocks, s, e).tolist() for s in (0, 1) for e in (1, 2)}
    assert all(sorted(order) == blocks.usable.tolist() for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    assert training_order(blocks, 0, 1).tolist() == orders[0, 1]


def test_bucket_lengths_by_hand():
    assert bucket_lengths(np.asarray([3, 4, 15, 16]), 2, multiple=4) == (4, 16)
    assert bucket_lengths(np.asarray([3, 4, 15, 16]), 1, multiple=4) == (16,)
    assert bucket_lengths(np.asarray([9, 9, 9]), 4) == (16,)
    assert bucket_lengths(np.asarray([1, 2, 3]), 9, multiple=1) == (1, 2, 3)


def padded(sizes, lengths):
    return sum(min(length for length in lengths if length >= size) for size in sizes)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=12), st.integers(1, 4))
def test_bucket_lengths_waste_the_least(sizes, buckets):
    found = bucket_lengths(np.asarray(sizes), buckets, multiple=1)
    assert len(found) <= buckets
    candidates = sorted(set(sizes))
    best = min(
        padded(sizes, lengths)
        for number in range(1, buckets + 1)
        for lengths in itertools.combinations(candidates, min(number, len(candidates)))
        if lengths[-1] == max(sizes)
    )
    assert padded(sizes, found) == best


@given(
    st.lists(st.integers(21, 40), min_size=1, max_size=30),
    st.integers(1, 5),
    st.sampled_from([(40,), (24, 40), (24, 32, 40)]),
    st.sampled_from([None, (3, 1)]),
)
def test_a_plan_holds_every_block_once_in_few_shapes(sizes, batch_size, lengths, shuffle):
    sizes = sorted(sizes) if shuffle is None else sizes
    blocks = blocks_of(sizes)
    order = np.arange(len(blocks))
    plan = plan_batches(blocks, order, batch_size=batch_size, lengths=lengths, shuffle=shuffle)
    real = plan.rows[plan.rows != NO_BLOCK]
    assert sorted(real.tolist()) == order.tolist()
    assert len(plan.rows) == -(-len(blocks) // batch_size)
    for length, row in zip(plan.lengths, plan.rows, strict=True):
        assert blocks.sizes[row[row != NO_BLOCK]].max() <= length
    assert {length for _, length in plan.shapes} <= set(lengths)
    assert plan.waste == pytest.approx(1 - sum(sizes) / (plan.lengths.sum() * batch_size))


def test_plan_by_hand():
    blocks = blocks_of([30, 22, 39, 23, 24, 25])
    order = np.arange(6)
    plan = plan_batches(blocks, order, batch_size=2, lengths=(24, 40))
    # 22 23 | 24 moves up: 30 39 | 24 25, in the order in which they fill.
    assert plan.rows.tolist() == [[0, 2], [1, 3], [4, 5]]
    assert plan.lengths.tolist() == [40, 24, 40]
    assert plan.waste == 1 - 163 / 208
    assert plan.shapes == [(2, 24), (2, 40)]
    part = plan_batches(blocks, order[:5], batch_size=2, lengths=(24, 40))
    assert part.rows.tolist() == [[0, 2], [1, 3], [4, NO_BLOCK]]
    assert part.lengths.tolist() == [40, 24, 24]


def test_shuffled_plans_differ_by_epoch_only_in_order():
    blocks = blocks_of([30] * 40)
    plans = [
        plan_batches(blocks, np.arange(40), batch_size=2, lengths=(40,), shuffle=(0, epoch))
        for epoch in (1, 1, 2)
    ]
    assert (plans[0].rows == plans[1].rows).all()
    assert (plans[0].rows != plans[2].rows).any()
    assert sorted(map(tuple, plans[0].rows)) == sorted(map(tuple, plans[2].rows))


def test_batches_hold_the_masks_of_their_blocks():
    blocks = blocks_of(SIZES[:3])
    plan = plan_batches(blocks, np.arange(3), batch_size=2, lengths=(40,))
    masker = FairseqMasker(DICTIONARY)
    batches = MaskedBatches(blocks, masker, plan, seed=7, epoch=3)
    assert len(batches) == 2
    last = batches[1]
    assert {name: array.shape for name, array in last.items()} == {
        "tokens": (2, 40),
        "masked_positions": (2, 7),
        "targets": (2, 7),
    }
    assert all(array.dtype == np.int32 for array in last.values())
    masked = masker(blocks[2], 7, 3, 2)
    count = len(masked.positions)
    assert last["tokens"][0].tolist() == [*masked.source, 1]
    assert last["masked_positions"][0].tolist() == [*masked.positions, *[0] * (7 - count)]
    assert last["targets"][0].tolist() == [*masked.targets, *[1] * (7 - count)]
    # The row that fills up the batch is padding and has no targets.
    assert (last["tokens"][1] == 1).all()
    assert (last["targets"][1] == 1).all()


def test_iterating_resumes_anywhere_and_divides_over_processes():
    blocks = blocks_of([25 + i % 15 for i in range(32)])
    order = training_order(blocks, 0, 1)
    plan = plan_batches(blocks, order, batch_size=4, lengths=(32, 40), shuffle=(0, 1))

    def batches(process=(0, 1), start=0):
        made = MaskedBatches(blocks, FastMasker(DICTIONARY), plan, seed=0, epoch=1, process=process)
        return list(made.iterate(start))

    whole = batches()
    assert len(whole) == len(plan.rows) == 8
    for resumed, expected in zip(batches(start=5), whole[5:], strict=True):
        assert all((resumed[name] == expected[name]).all() for name in expected)
    for halves, expected in zip(
        zip(batches((0, 2)), batches((1, 2)), strict=True), whole, strict=True
    ):
        for name in expected:
            assert (np.concatenate([half[name] for half in halves]) == expected[name]).all()
    assert batches(start=8) == []


def test_what_can_be_wrong():
    blocks = blocks_of(SIZES)
    with pytest.raises(ConfigError, match="block 4 has 41 tokens, the longest batch length is 40"):
        plan_batches(blocks, np.arange(11), batch_size=2, lengths=(24, 40))
    with pytest.raises(ConfigError, match="cannot plan batches of 2 rows from 0 blocks"):
        plan_batches(blocks, np.arange(0), batch_size=2, lengths=(40,))
    with pytest.raises(ConfigError, match="cannot choose 0 lengths"):
        bucket_lengths(blocks.sizes, 0)
    plan = plan_batches(blocks, blocks.usable, batch_size=3, lengths=(40,))
    with pytest.raises(ConfigError, match="3 rows cannot be divided over 2 processes"):
        MaskedBatches(blocks, FastMasker(DICTIONARY), plan, seed=0, epoch=1, process=(0, 2))
