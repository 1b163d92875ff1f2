"""Batches of masked blocks in few static shapes.

Every distinct batch shape is compiled once, so that blocks are padded to a few bucket lengths,
chosen to waste the fewest tokens. Order and masks are functions of (seed, epoch) alone.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int

from lawa_jax.data import Batch
from lawa_jax.data.blocks import Blocks
from lawa_jax.data.dictionary import PAD
from lawa_jax.data.masking import Masker, max_targets
from lawa_jax.errors import ConfigError

NO_BLOCK = -1
"""Index of a row of nothing but padding, which fills up a last batch and counts nowhere."""


def evaluation_order(blocks: Blocks, seed: int = 1) -> Int[np.ndarray, " usable"]:
    """Block indices as fairseq evaluates them: by size, equal ones in a seeded random order."""
    shuffle = np.random.RandomState(seed).permutation(len(blocks))
    order = np.lexsort((shuffle, blocks.sizes))
    return order[blocks.sizes[order] <= blocks.max_tokens]


def training_order(blocks: Blocks, seed: int, epoch: int) -> Int[np.ndarray, " usable"]:
    """Usable block indices in a random order of (seed, epoch)."""
    return blocks.usable[_permutation(len(blocks.usable), seed, epoch, 0)]


def bucket_lengths(
    sizes: Int[np.ndarray, " blocks"], buckets: int, *, multiple: int = 8
) -> tuple[int, ...]:
    """At most `buckets` lengths that pad blocks of these sizes the least, ascending.

    Each is a multiple of `multiple` (or the largest size, rounded up); the largest holds all.

    Example: sizes 3, 4, 15, 16 and two buckets of multiple 4 give (4, 16).

    Raises:
      ConfigError: no sizes, or no buckets.
    """
    if buckets < 1 or not len(sizes):
        raise ConfigError(f"cannot choose {buckets} lengths for {len(sizes)} blocks")
    steps = -(-np.asarray(sizes) // multiple)
    most = int(steps.max())
    # below[j]: blocks of at most j steps. A bucket (i, j] pads its blocks to j steps each:
    # cost[b, j] = min over i < j of cost[b - 1, i] + j * (below[j] - below[i]).
    below = np.concatenate([[0], np.cumsum(np.bincount(steps, minlength=most + 1)[1:])])
    j = np.arange(most + 1)
    one = np.where(j[None, :] > j[:, None], j[None, :] * (below[None, :] - below[:, None]), np.inf)
    cost, choices = np.where(j == 0, 0.0, np.inf), []
    for _ in range(min(buckets, most)):
        # Fewer buckets stay possible: an empty bucket costs nothing.
        through = np.minimum(cost[:, None] + one, np.where(np.eye(most + 1), cost[:, None], np.inf))
        choices.append(through.argmin(axis=0))
        cost = through.min(axis=0)
    lengths, end = [], most
    for choice in reversed(choices):
        if choice[end] != end:
            lengths.append(end * multiple)
            end = int(choice[end])
    return tuple(reversed(lengths))


class BatchPlan(NamedTuple):
    """Which blocks make up which batch.

    Attributes:
      lengths: padded length of each batch, in tokens.
      rows: block indices of each batch, int64 [batches, batch_size]; `NO_BLOCK` for padding rows.
      tokens: tokens of all planned blocks.
    """

    lengths: Int[np.ndarray, " batches"]
    rows: Int[np.ndarray, "batches batch_size"]
    tokens: int

    @property
    def waste(self) -> float:
        """Share of the positions that is padding, in [0, 1)."""
        return 1.0 - self.tokens / max(1, int(self.lengths.sum()) * self.rows.shape[1])

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The distinct (batch_size, length), ascending: what is compiled."""
        return [(self.rows.shape[1], int(length)) for length in np.unique(self.lengths)]


def plan_batches(
    blocks: Blocks,
    order: Int[np.ndarray, " planned"],
    *,
    batch_size: int,
    lengths: Sequence[int],
    shuffle: tuple[int, int] | None = None,
) -> BatchPlan:
    """Group blocks into batches of one length each.

    Each block goes, in the given order, to the batch of the shortest sufficient length. What is
    left of a length at the end moves up to the next one, so that only one batch has padding rows.

    Args:
      blocks: to take sizes from.
      order: indices of blocks, e.g. `training_order` or `evaluation_order`.
      batch_size: rows of a batch, over all processes and accumulated parts.
      lengths: allowed lengths in tokens, see `bucket_lengths`.
      shuffle: (seed, epoch): visit batches in a random order rather than in that of completion.

    Raises:
      ConfigError: a block is longer than all lengths; nothing to plan; batch_size < 1.
    """
    allowed = sorted({int(length) for length in lengths})
    sizes = blocks.sizes[order]
    if batch_size < 1 or not len(order) or not allowed:
        raise ConfigError(
            f"cannot plan batches of {batch_size} rows from {len(order)} blocks and "
            f"{len(allowed)} lengths"
        )
    if sizes.max() > allowed[-1]:
        worst = int(order[sizes.argmax()])
        raise ConfigError(
            f"block {worst} has {int(sizes.max())} tokens, the longest batch length is "
            f"{allowed[-1]}; leave out such blocks or add a length"
        )
    bucket = np.searchsorted(allowed, sizes)
    # Each full batch is dated by the place of its last block in `order`.
    full: list[tuple[int, int, np.ndarray]] = []
    left = np.zeros(0, np.int64)
    for number, length in enumerate(allowed):
        places = np.sort(np.concatenate([left, np.flatnonzero(bucket == number)]))
        whole = len(places) // batch_size * batch_size
        full += [(int(p[-1]), length, order[p]) for p in places[:whole].reshape(-1, batch_size)]
        left = places[whole:]
    if len(left):
        row = np.full(batch_size, NO_BLOCK, np.int64)
        row[: len(left)] = order[left]
        shortest = allowed[int(bucket[left].max())]
        full.append((len(order), shortest, row))
    full.sort(key=lambda batch: batch[0])
    if shuffle is not None:
        full = [full[i] for i in _permutation(len(full), *shuffle, 1)]
    return BatchPlan(
        np.asarray([length for _, length, _ in full], np.int64),
        np.stack([row for _, _, row in full]).astype(np.int64),
        int(sizes.sum()),
    )


class MaskedBatches:
    """The batches of one epoch by index, each a dict of int32 arrays.

    ``tokens`` [rows, length]: masked inputs, right-padded with ``<pad>``. ``masked_positions``
    [rows, max_targets(length)]: places of the targets, 0 where unused. ``targets``, same shape: the
    original ids there, ``<pad>`` where unused.

    Args:
      blocks, masker: what is masked, and how.
      plan: for which batches.
      seed, epoch: of the masks.
      process: (index, count): gives this process its contiguous part of each batch's rows.
    """

    def __init__(
        self,
        blocks: Blocks,
        masker: Masker,
        plan: BatchPlan,
        *,
        seed: int,
        epoch: int,
        process: tuple[int, int] = (0, 1),
    ) -> None:
        index, count = process
        rows = plan.rows.shape[1]
        if rows % count:
            raise ConfigError(f"batches of {rows} rows cannot be divided over {count} processes")
        self._blocks, self._masker, self._plan = blocks, masker, plan
        self._seed, self._epoch = seed, epoch
        self._part = slice(index * rows // count, (index + 1) * rows // count)

    def __len__(self) -> int:
        return len(self._plan.lengths)

    def __getitem__(self, index: int) -> Batch:
        length = int(self._plan.lengths[index])
        rows = self._plan.rows[index][self._part]
        tokens = np.full((len(rows), length), PAD, np.int32)
        positions = np.zeros((len(rows), max_targets(length, self._masker.mask_rate)), np.int32)
        targets = np.full_like(positions, PAD)
        for row, number in enumerate(rows):
            if number == NO_BLOCK:
                continue
            block = self._blocks[number]
            masked = self._masker(block, self._seed, self._epoch, int(number))
            tokens[row, : len(block)] = masked.source
            positions[row, : len(masked.positions)] = masked.positions
            targets[row, : len(masked.targets)] = masked.targets
        return {"tokens": tokens, "masked_positions": positions, "targets": targets}

    def iterate(self, start: int = 0, *, threads: int = 2) -> Iterator[Batch]:
        """Batches from `start` on, prepared ahead by `threads` threads."""
        data = grain.MapDataset.source(self)[start:]
        if not len(data):
            return iter(())
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(1, 2 * threads))
        return iter(data.to_iter_dataset(options))


def _permutation(count: int, seed: int, epoch: int, purpose: int) -> Int[np.ndarray, " count"]:
    """A random order, from raw Philox words whose sequence numpy guarantees for all versions."""
    words = np.random.Philox(key=[seed, epoch], counter=[0, 0, purpose + 1, 0]).random_raw(count)
    return np.argsort(words, kind="stable")
