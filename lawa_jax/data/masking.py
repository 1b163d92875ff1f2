"""Masked-language-model inputs: which tokens are hidden, and by what.

15 % of the tokens of a block are targets; of these 80 % are replaced by ``<mask>``, 10 % by a
random symbol and 10 % stay (Devlin et al. 2018, arXiv 1810.04805). Masks are pure functions of
(seed, epoch, index of the block): any worker or process draws the same.

Two maskers with one distribution: `FairseqMasker` repeats fairseq's random numbers bit for bit
(its legacy generator, seeded per block), `FastMasker` draws from a counter-based generator.
"""

import functools
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from lawa_jax.data.dictionary import SPECIAL, Dictionary
from lawa_jax.errors import CorruptCheckpointError

MASK_RATE = 0.15
LEAVE_RATE = 0.1
RANDOM_RATE = 0.1


class Masked(NamedTuple):
    """A masked block.

    Attributes:
      source: token ids to feed the model.
      positions: places of the targets, ascending.
      targets: original ids at these places.
    """

    source: Int[np.ndarray, " tokens"]
    positions: Int[np.ndarray, " targets"]
    targets: Int[np.ndarray, " targets"]


class Masker(Protocol):
    """Masks one block, a function of its arguments alone; `block` includes ``<s>``."""

    mask_rate: float

    def __call__(
        self, block: Int[np.ndarray, " tokens"], seed: int, epoch: int, index: int
    ) -> Masked: ...


def max_targets(tokens: int, mask_rate: float = MASK_RATE) -> int:
    """The most targets a block of so many tokens can have: 77 for 512."""
    # The count is int(rate * tokens + u) with 0 <= u < 1, and the sum may round up.
    return int(mask_rate * tokens) + 1


class _DictionaryMasker:
    """The symbols and the share of targets, which both maskers need."""

    def __init__(self, dictionary: Dictionary, *, mask_rate: float = MASK_RATE) -> None:
        if not 0.0 < mask_rate < 1.0:
            raise ValueError(f"mask_rate must be in (0, 1), found {mask_rate}")
        self.mask_id, self.vocab_size = dictionary.mask_id, len(dictionary)
        self.mask_rate = mask_rate


class FairseqMasker(_DictionaryMasker):
    """fairseq's ``MaskTokensDataset`` (whole words and spans left out), bit for bit.

    For block `index`, a legacy ``RandomState`` is seeded with
    ``int(hash((seed, epoch, index)) % 1e6)``; then, in this order: ``n = int(rate * size +
    rand())``; ``choice(size, n, replace=False)`` are the targets; ``rand(size) < 0.2`` of them are
    not hidden by ``<mask>``; ``rand(size) < 0.5`` of those stay, the others become random
    non-special symbols. fairseq releases from 2023 on draw from ``default_rng`` instead.
    """

    def __call__(
        self, block: Int[np.ndarray, " tokens"], seed: int, epoch: int, index: int
    ) -> Masked:
        """The masked block; raises CorruptCheckpointError if it already holds ``<mask>``."""
        _check_unmasked(block, self.mask_id, index)
        # The hash of a tuple of integers is a fixed function in 64-bit CPython since 3.8.
        number = int(hash((seed, epoch, index)) % 1e6)
        rng = np.random.RandomState(number)
        size = len(block)
        count = int(self.mask_rate * size + rng.random_sample())
        target = np.zeros(size, bool)
        target[rng.choice(size, count, replace=False)] = True

        special_treatment = target & (rng.random_sample(size) < LEAVE_RATE + RANDOM_RATE)
        leave = rng.random_sample(size) < LEAVE_RATE / (LEAVE_RATE + RANDOM_RATE)
        replaced = special_treatment & ~leave

        source = block.copy()
        source[target & ~special_treatment] = self.mask_id
        # What `choice(vocab, n, p=...)` does, without summing the probabilities for every block.
        uniform = rng.random_sample(int(replaced.sum()))
        source[replaced] = _cumulative(self.vocab_size).searchsorted(uniform, side="right")
        positions = np.flatnonzero(target)
        return Masked(source, positions, block[positions])


class FastMasker(_DictionaryMasker):
    """The same distribution from Philox, a counter-based generator keyed by (seed, epoch, index).

    Only the raw 64-bit words are used, whose sequence numpy guarantees for all versions.
    """

    def __call__(
        self, block: Int[np.ndarray, " tokens"], seed: int, epoch: int, index: int
    ) -> Masked:
        """The masked block; raises CorruptCheckpointError if it already holds ``<mask>``."""
        _check_unmasked(block, self.mask_id, index)
        size = len(block)
        # Two 64-bit words of key; the third number starts the 256-bit counter of the stream.
        words = np.random.Philox(key=[seed, epoch], counter=[0, index, 0, 0]).random_raw(
            1 + size + 2 * max_targets(size, self.mask_rate)
        )
        count = int(self.mask_rate * size + _uniform(words[0]))
        # The places of the `count` smallest of `size` random numbers are a random subset.
        order = words[1 : 1 + size]
        chosen = np.argpartition(order, count)[:count] if count < size else np.arange(size)
        positions = np.sort(chosen)
        fate = _uniform(words[1 + size : 1 + size + count])
        symbol = _uniform(words[1 + size + count : 1 + size + 2 * count])

        targets = block[positions]
        first = len(SPECIAL)
        drawn = (first + symbol * (self.vocab_size - first)).astype(block.dtype)
        hidden = np.where(fate < LEAVE_RATE + RANDOM_RATE, drawn, self.mask_id)
        source = block.copy()
        source[positions] = np.where(fate < LEAVE_RATE, targets, hidden)
        return Masked(source, positions, targets)


@functools.lru_cache(maxsize=4)
def _cumulative(vocab_size: int) -> np.ndarray:
    """Cumulative probabilities of the uniform distribution over non-special symbols."""
    weights = np.ones(vocab_size)
    weights[: len(SPECIAL)] = 0
    total = (weights / weights.sum()).cumsum()
    return total / total[-1]


def _uniform(words: np.ndarray) -> np.ndarray:
    """53 random bits as a float64 in [0, 1)."""
    return (words >> np.uint64(11)) * 2.0**-53


def _check_unmasked(block: Int[np.ndarray, " tokens"], mask_id: int, index: int) -> None:
    if (block == mask_id).any():
        raise CorruptCheckpointError(
            f"block {index} already holds <mask> (id {mask_id}); masked text cannot be masked "
            "again, and dict.txt may belong to other data"
        )
