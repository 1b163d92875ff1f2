"""Many averages in one pass over stored checkpoints, block by block, in bounded memory.

Leaf by leaf, and within a leaf block by block, every checkpoint's block is read once and added to
every average that wants it; a finished block goes to its sink and is forgotten. Memory depends on
the block size alone, neither on the number of checkpoints nor on the model. Worker threads take
blocks independently, so that one reads while another adds.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple, Protocol

import numpy as np

from lawa_jax.checkpoints.verify import check_digest
from lawa_jax.coefficients import check_weights
from lawa_jax.digest import combine, leaf_digest_block, to_hex
from lawa_jax.errors import NonFiniteError
from lawa_jax.host_averaging import BlockAverage
from lawa_jax.streaming.plan import Index, Plan, Target
from lawa_jax.tree import LeafSpec


class Sink(Protocol):
    """Where finished blocks of an average go; called from several threads."""

    def write(self, name: str, index: Index, array: np.ndarray) -> int | None:
        """Take a block; its digest if that was computed on the way."""


class Done(NamedTuple):
    """A finished block.

    Attributes:
      name: of the leaf.
      number: the how-many-th block of the leaf, from 0.
      digests: of the block in every checkpoint; empty if none were computed.
      written: of the block in every average, as the sinks gave them.
    """

    name: str
    number: int
    digests: tuple[int, ...]
    written: tuple[int | None, ...]


def run(
    plan: Plan,
    sinks: Sequence[Sink],
    *,
    finished: Mapping[tuple[str, int], Done] | None = None,
    on_block: Callable[[Done], None] | None = None,
    progress: Callable[[int], None] | None = None,
    digests: bool = True,
) -> list[dict[str, str]]:
    """Make all averages of a plan; every byte of every checkpoint is read once.

    Args:
      plan: see `make_plan`.
      sinks: one a target.
      finished: blocks that an interrupted pass has done.
      on_block: called when a block is in all its sinks.
      progress: called with the bytes read.
      digests: compute the digests of all inputs, and compare them with those saved beside
        checkpoints of our own.

    Returns:
      For every checkpoint the digests of its leaves ({} without `digests`).

    Raises:
      NonFiniteError: a checkpoint holds NaN or infinity; names checkpoint and leaf.
      CorruptCheckpointError: stored bytes are missing or changed since saving.
    """
    done = finished or {}
    state = _Pass(plan, sinks, on_block, progress, digests)
    for block in done.values():
        state.count(block.name, block.digests)
    tasks = (
        (name, number, index)
        for name in plan.specs
        for number, index in enumerate(plan.blocks(name))
        if (name, number) not in done
    )
    lock = threading.Lock()

    def work() -> None:
        lane = _Lane(plan)
        while not state.failed:
            with lock:
                task = next(tasks, None)
            if task is None:
                return
            try:
                state.block(lane, *task)
            except BaseException:
                state.failed = True
                raise

    with ThreadPoolExecutor(plan.threads, thread_name_prefix="lawa-average") as pool:
        futures = [pool.submit(work) for _ in range(plan.threads)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            # Ctrl-C or SIGTERM arrive here: let the workers stop at their next block.
            state.failed = True
            raise
        for future in futures:
            future.result()
    return state.check_digests()


class _Lane:
    """One worker's buffers, allocated once: page faults cost more than the arithmetic."""

    def __init__(self, plan: Plan) -> None:
        self._capacity = {
            name: min(-(-plan.limits[name] // spec.dtype.itemsize), max(spec.size, 1))
            for name, spec in plan.specs.items()
        }
        self._bytes = np.empty(0, np.uint8)
        self._free: dict[np.dtype, list[BlockAverage]] = defaultdict(list)
        self._largest: dict[np.dtype, int] = {}
        for name, spec in plan.specs.items():
            elements = max(self._largest.get(spec.dtype, 0), self._capacity[name])
            self._largest[spec.dtype] = elements

    def buffer(self, spec: LeafSpec, index: Index) -> np.ndarray:
        shape = tuple(part.stop - part.start for part in index)
        size = int(np.prod(shape, dtype=np.int64)) * spec.dtype.itemsize
        if self._bytes.size < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].view(spec.dtype).reshape(shape)

    def average(self, dtype: np.dtype) -> BlockAverage:
        free = self._free[dtype]
        return free.pop() if free else BlockAverage(self._largest[dtype], dtype)

    def release(self, average: BlockAverage, dtype: np.dtype) -> None:
        average.reset()
        self._free[dtype].append(average)


class _Pass:
    """What the workers share."""

    def __init__(
        self,
        plan: Plan,
        sinks: Sequence[Sink],
        on_block: Callable[[Done], None] | None,
        progress: Callable[[int], None] | None,
        digests: bool,
    ) -> None:
        self.failed = False
        self._plan, self._sinks = plan, sinks
        self._on_block, self._progress = on_block, progress
        self._digesting = digests
        self._lock = threading.Lock()
        self._digests: list[dict[str, int]] = [
            dict.fromkeys(plan.specs, 0) for _ in plan.checkpoints
        ]
        # Checkpoint -> the averages it is part of, with its weight in each.
        self._users: list[list[tuple[int, float]]] = [[] for _ in plan.checkpoints]
        self._totals = []
        for number, target in enumerate(plan.targets):
            self._totals.append(check_weights(len(target.sources), target.weights)[1])
            for source, weight in zip(target.sources, target.weights, strict=True):
                self._users[source].append((number, weight))

    def block(self, lane: _Lane, name: str, number: int, index: Index) -> None:
        plan, spec = self._plan, self._plan.specs[name]
        buffer = lane.buffer(spec, index)
        sums: dict[int, BlockAverage] = {}
        read: list[int] = []
        written: list[int | None] = [None] * len(plan.targets)
        try:
            for position in self._order():
                checkpoint = plan.checkpoints[position]
                checkpoint.read(name, index, buffer)
                if self._digesting:
                    read.append(leaf_digest_block(buffer, spec.shape, index))
                for target, weight in self._users[position]:
                    newest = plan.targets[target].sources[-1] == position
                    if name in plan.copied:
                        if newest:
                            written[target] = self._sinks[target].write(name, index, buffer)
                        continue
                    if target not in sums:
                        sums[target] = lane.average(spec.dtype)
                    sums[target].add(buffer, weight)
                    if newest:
                        done = self._finish(lane, name, index, target, sums.pop(target))
                        written[target] = done
                if self._progress is not None:
                    self._progress(buffer.nbytes)
        finally:
            for average in sums.values():
                lane.release(average, spec.dtype)
        with self._lock:
            self.count(name, read)
            if self._on_block is not None:
                self._on_block(Done(name, number, tuple(read), tuple(written)))

    def count(self, name: str, digests: Sequence[int]) -> None:
        """Count the digests of a block of every checkpoint; the caller holds the lock."""
        for position, digest in zip(self._order(), digests, strict=False):
            leaves = self._digests[position]
            leaves[name] = combine(leaves[name], digest)

    def _order(self) -> range:
        return range(len(self._plan.checkpoints))

    def _finish(
        self, lane: _Lane, name: str, index: Index, target: int, average: BlockAverage
    ) -> int | None:
        plan, spec = self._plan, self._plan.specs[name]
        if not average.is_finite():
            self._explain_non_finite(name, index, plan.targets[target])
        mean = average.mean(self._totals[target], plan.out[name].dtype)
        shape = tuple(part.stop - part.start for part in index)
        digest = self._sinks[target].write(name, index, mean.reshape(shape))
        lane.release(average, spec.dtype)
        return digest

    def _explain_non_finite(self, name: str, index: Index, target: Target) -> None:
        spec = self._plan.specs[name]
        for source in target.sources:
            checkpoint = self._plan.checkpoints[source]
            shape = tuple(part.stop - part.start for part in index)
            block = np.empty(shape, spec.dtype)
            checkpoint.read(name, index, block)
            bad = np.argwhere(~np.isfinite(block))
            if len(bad):
                where = [int(i) + part.start for i, part in zip(bad[0], index, strict=True)]
                raise NonFiniteError(
                    f"{checkpoint.label}, leaf {name!r}: {block[tuple(bad[0])]} at {where}; leave "
                    "this checkpoint out, or the leaf with --exclude"
                )
        raise NonFiniteError(
            f"leaf {name!r}: the weighted sum overflows float64; choose smaller weights"
        )

    def check_digests(self) -> list[dict[str, str]]:
        if not self._digesting:
            return [{} for _ in self._plan.checkpoints]
        found = [{n: to_hex(d) for n, d in leaves.items()} for leaves in self._digests]
        for checkpoint, leaves in zip(self._plan.checkpoints, found, strict=True):
            for name, expected in checkpoint.checksums.items():
                if name in leaves:
                    check_digest(checkpoint.label, name, leaves[name], expected)
        return found
