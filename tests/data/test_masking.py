from collections import Counter

import numpy as np
import pytest

from lawa_jax.data.dictionary import Dictionary
from lawa_jax.data.masking import FairseqMasker, FastMasker, max_targets
from lawa_jax.errors import CorruptCheckpointError


def dense_targets(masked):
    """fairseq's form: the original id at each target, ``<pad>`` (1) elsewhere."""
    dense = np.full_like(masked.source, 1)
    dense[masked.positions] = masked.targets
    return dense


def dictionary(symbols):
    """A dictionary of so many symbols in all."""
    return Dictionary.from_counts({str(i): 1 for i in range(symbols - 5)})


ROBERTA = dictionary(50_265)
MASK = 50_264
# <s>, ids 10..47, </s>: the id at place p is p + 9.
BLOCK = np.concatenate([[0], np.arange(10, 48), [2]]).astype(np.int32)


def literal_recipe(block, seed, epoch, index, vocab, mask):
    """fairseq's steps one by one, with numpy's own `choice` and its probabilities."""
    rng = np.random.RandomState(int(hash((seed, epoch, index)) % 1e6))
    size = len(block)
    masked = np.full(size, False)
    masked[rng.choice(size, int(0.15 * size + rng.rand()), replace=False)] = True
    target = np.full(size, 1)
    target[masked] = block[masked]
    odd = masked & (rng.rand(size) < 0.2)
    decision = rng.rand(size) < 0.5
    source = block.copy()
    source[masked ^ (odd & decision)] = mask
    weights = np.ones(vocab)
    weights[:4] = 0
    replaced = odd & ~decision
    if replaced.sum():
        source[replaced] = rng.choice(vocab, replaced.sum(), p=weights / weights.sum())
    return source, target


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        # (seed, epoch, index): what stands at the targets of BLOCK, from the recipe above.
        ((1, 1, 0), {0: 32_804, 3: MASK, 8: MASK, 24: MASK, 30: MASK, 39: MASK}),
        ((7, 3, 12), {12: MASK, 15: MASK, 17: MASK, 25: 34, 35: MASK, 37: MASK}),
    ],
)
def test_fairseq_masks_by_number(place, expected):
    masked = FairseqMasker(ROBERTA)(BLOCK, *place)
    assert masked.positions.tolist() == list(expected)
    assert masked.targets.tolist() == BLOCK[list(expected)].tolist()
    source = BLOCK.copy()
    source[list(expected)] = list(expected.values())
    assert masked.source.tolist() == source.tolist()
    assert masked.source.dtype == BLOCK.dtype
    dense = np.full(len(BLOCK), 1)
    dense[list(expected)] = BLOCK[list(expected)]
    assert dense_targets(masked).tolist() == dense.tolist()


@pytest.mark.parametrize("symbols", [300, 50_265])
def test_fairseq_masks_equal_the_literal_recipe(symbols):
    masker = FairseqMasker(dictionary(symbols))
    rng = np.random.default_rng(0)
    for index in range(150):
        size = int(rng.integers(1, 513))
        block = rng.integers(4, symbols - 1, size).astype(np.int32)
        seed, epoch = int(rng.integers(0, 1_000)), int(rng.integers(1, 200))
        source, target = literal_recipe(block, seed, epoch, index, symbols, symbols - 1)
        masked = masker(block, seed, epoch, index)
        np.testing.assert_array_equal(masked.source, source)
        np.testing.assert_array_equal(dense_targets(masked), target)


@pytest.mark.parametrize("make", [FairseqMasker, FastMasker])
def test_masks_are_a_function_of_seed_epoch_and_index(make):
    masker = make(ROBERTA)
    block = np.arange(4, 400, dtype=np.int32)
    before = block.copy()
    first = masker(block, 1, 2, 3)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (1, 3, 2)):
        assert masker(block, *other).source.tolist() != first.source.tolist(), other
    again = make(ROBERTA)(block, 1, 2, 3)
    assert all((a == b).all() for a, b in zip(again, first, strict=True))
    assert (block == before).all()


@pytest.mark.parametrize("make", [FairseqMasker, FastMasker])
def test_distribution(make):
    """Both maskers within 4 standard deviations of the counts of 15 % / 80-10-10."""
    symbols, size, blocks = 54, 50, 4_000
    masker = make(dictionary(symbols))
    block = np.full(size, 20, np.int32)
    counts, places, drawn = Counter(), np.zeros(size), np.zeros(symbols)
    for index in range(blocks):
        masked = masker(block, 5, 1, index)
        counts[len(masked.positions)] += 1
        places[masked.positions] += 1
        np.add.at(drawn, masked.source[masked.positions], 1)
        untouched = np.delete(masked.source, masked.positions)
        assert (untouched == 20).all()
    total = drawn.sum()
    # 0.15 * 50 = 7.5: seven or eight targets, equally often.
    assert set(counts) == {7, 8}
    assert abs(counts[7] - blocks / 2) < 4 * np.sqrt(blocks / 4)
    assert np.abs(places - 0.15 * blocks).max() < 4.5 * np.sqrt(0.15 * blocks)
    assert abs(drawn[symbols - 1] - total * (0.8 + 0.1 / 50)) < 4 * np.sqrt(total * 0.16)
    # The block's own symbol stays in 10 %, and is drawn at random in 0.1 / 50.
    assert abs(drawn[20] - total * (0.1 + 0.1 / 50)) < 4 * np.sqrt(total * 0.09)
    others = np.delete(drawn, [0, 1, 2, 3, 20, symbols - 1])
    assert not drawn[:4].any()
    assert np.abs(others - total * 0.1 / 50).max() < 4.5 * np.sqrt(total * 0.1 / 50)


@pytest.mark.parametrize("make", [FairseqMasker, FastMasker])
@pytest.mark.parametrize("size", [1, 2, 6, 7, 20, 511, 512])
def test_never_more_targets_than_the_static_bound(make, size):
    masker = make(ROBERTA)
    block = np.arange(4, 4 + size, dtype=np.int32)
    found = {len(masker(block, 0, 1, index).positions) for index in range(300)}
    assert max(found) <= max_targets(size)
    assert min(found) == int(0.15 * size)
    assert max_targets(512) == 77


def test_a_rate_near_one_masks_everything():
    masker = FastMasker(ROBERTA, mask_rate=0.999_999)
    assert len(masker(BLOCK, 0, 0, 1).positions) >= len(BLOCK) - 1


@pytest.mark.parametrize("make", [FairseqMasker, FastMasker])
def test_what_can_be_wrong(make):
    with pytest.raises(CorruptCheckpointError, match=r"block 4 already holds <mask> \(id 50264\)"):
        make(ROBERTA)(np.asarray([0, MASK, 2], np.int32), 1, 1, 4)
    with pytest.raises(ValueError, match=r"mask_rate must be in \(0, 1\), found 1.0"):
        make(ROBERTA, mask_rate=1.0)


def test_fast_masks_by_number():
    """Guards the stream itself: a run must resume to the same masks after an upgrade of numpy."""
    masked = FastMasker(ROBERTA)(BLOCK, 1, 1, 11)
    found = dict(zip(masked.positions.tolist(), masked.source[masked.positions], strict=True))
    assert found == {0: MASK, 18: 27, 19: MASK, 20: 50_034, 29: 37_313, 35: MASK}
