"""Many averages in one pass over stored checkpoints, block by block, in bounded memory.

Leaf by leaf, and within a leaf block by block, every checkpoint's block is read once and added to
every average that wants it; a finished block goes to its sink and is forgotten. Memory depends on
the block size alone, neither on the number of checkpoints nor on the model. Worker threads take
blocks independently, so that one reads while another adds.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple, Protocol

import numpy as np

from lawa_jax.averaging.coefficients import check_weights
from lawa_jax.averaging.host import BlockAverage
from lawa_jax.distributed import ALONE, Group, together
from lawa_jax.errors import NonFiniteError
from lawa_jax.offline.plan import Plan, Target
from lawa_jax.trajectory.digest import combine, leaf_digest_block, to_hex
from lawa_jax.trajectory.integrity import check_digest
from lawa_jax.tree import Index

ReadProgress = Callable[[int], None]
"""Called with the bytes of every block that was read."""


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
    progress: ReadProgress | None = None,
    digests: bool = True,
    group: Group = ALONE,
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
      group: processes that share the pass, each with sinks of its own for its blocks; nothing but
        digests is exchanged.

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
    tasks = _Tasks(plan, done.keys(), group)

    def work() -> None:
        buffers = _Buffers(plan, [name for name in plan.specs if name not in plan.large])
        while task := tasks.take():
            try:
                name = task[0]
                state.block(_Buffers(plan, [name]) if name in plan.large else buffers, *task)
            except BaseException:
                tasks.stop()
                raise
            finally:
                tasks.done(task)

    def all_blocks() -> list[dict[str, int]]:
        _work_in_threads(plan.threads, work, tasks)
        return state.digests()

    return state.check_digests(together(group, "averaged", all_blocks))


def _work_in_threads(threads: int, work: Callable[[], None], tasks: "_Tasks") -> None:
    with ThreadPoolExecutor(threads, thread_name_prefix="lawa-average") as pool:
        try:
            futures = [pool.submit(work) for _ in range(threads)]
            wait(futures, return_when=FIRST_EXCEPTION)
        except BaseException:
            # Ctrl-C or SIGTERM arrive here: let the workers stop at their next block. The pool
            # waits for them, but not for one that was just being started.
            tasks.stop()
            tasks.wait()
            raise
        for future in futures:
            future.result()


BlockWork = tuple[str, int, Index]


class _Tasks:
    """Blocks to do: large ones first, as memory allows, others beside them."""

    def __init__(self, plan: Plan, finished: Collection[tuple[str, int]], group: Group) -> None:
        load = [0] * group.count
        owners = {name: plan.owners(name, load) for name in plan.specs} if group.count > 1 else None

        def is_mine(name: str, index: Index) -> bool:
            if owners is None:
                return True
            grid = plan.grid(name)
            cell = tuple(s.start // n * n for s, n in zip(index, grid, strict=True))
            return owners[name][cell] == group.index

        def blocks(names: Iterable[str]) -> deque[BlockWork]:
            return deque(
                (name, number, index)
                for name in names
                for number, index in enumerate(plan.blocks(name))
                if (name, number) not in finished and is_mine(name, index)
            )

        self._needs, self._room = plan.large, plan.room
        self._large = blocks(plan.large)
        self._small = blocks(name for name in plan.specs if name not in plan.large)
        self._in_work = 0
        self._changed = threading.Condition()

    def take(self) -> BlockWork | None:
        """The next block; waits for memory if there are but large ones; None at the end."""
        with self._changed:
            while True:
                if self._large and self._needs[self._large[0][0]] <= self._room:
                    task = self._large.popleft()
                    self._room -= self._needs[task[0]]
                    self._in_work += 1
                    return task
                if self._small:
                    self._in_work += 1
                    return self._small.popleft()
                if not self._large:
                    return None
                self._changed.wait()

    def done(self, task: BlockWork) -> None:
        """Give a block's memory back."""
        with self._changed:
            self._in_work -= 1
            self._room += self._needs.get(task[0], 0)
            self._changed.notify_all()

    def stop(self) -> None:
        """Give out nothing more."""
        with self._changed:
            self._large.clear()
            self._small.clear()
            self._changed.notify_all()

    def wait(self) -> None:
        """Until no block is in work."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_work == 0)


class _Buffers:
    """What blocks of some leaves need, allocated once: page faults cost more than arithmetic."""

    def __init__(self, plan: Plan, names: Sequence[str]) -> None:
        self._bytes = np.empty(0, np.uint8)
        self._free: dict[np.dtype, list[BlockAverage]] = defaultdict(list)
        self._elements: dict[np.dtype, int] = {}
        for name in names:
            dtype = plan.specs[name].dtype
            self._elements[dtype] = max(self._elements.get(dtype, 0), plan.elements(name))

    def array(self, dtype: np.dtype, index: Index) -> np.ndarray:
        """The one array, for a block of this dtype; what it held before is gone."""
        shape = tuple(part.stop - part.start for part in index)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if self._bytes.size < size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].view(dtype).reshape(shape)

    def average(self, dtype: np.dtype) -> BlockAverage:
        """An empty sum for blocks of this dtype."""
        free = self._free[dtype]
        return free.pop() if free else BlockAverage(self._elements[dtype], dtype)

    def release(self, average: BlockAverage, dtype: np.dtype) -> None:
        """Take a sum back."""
        average.reset()
        self._free[dtype].append(average)


class _Pass:
    """What the workers share."""

    def __init__(
        self,
        plan: Plan,
        sinks: Sequence[Sink],
        on_block: Callable[[Done], None] | None,
        progress: ReadProgress | None,
        digests: bool,
    ) -> None:
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

    def block(self, buffers: _Buffers, name: str, number: int, index: Index) -> None:
        plan, spec = self._plan, self._plan.specs[name]
        sums: dict[int, BlockAverage] = {}
        read: list[int] = []
        written: list[int | None] = [None] * len(plan.targets)
        try:
            for position in self._order():
                values = buffers.array(spec.dtype, index)
                plan.checkpoints[position].read(name, index, values)
                if self._digesting:
                    read.append(leaf_digest_block(values, spec.shape, index))
                complete = [t for t, _ in self._users[position] if self._is_last(t, position)]
                if name in plan.copied:
                    for target in complete:
                        written[target] = self._sinks[target].write(name, index, values)
                else:
                    for target, weight in self._users[position]:
                        if target not in sums:
                            sums[target] = buffers.average(spec.dtype)
                        sums[target].add(values, weight)
                    for target in complete:
                        written[target] = self._finish(buffers, name, index, target, sums[target])
                        buffers.release(sums.pop(target), spec.dtype)
                if self._progress is not None:
                    self._progress(values.nbytes)
        finally:
            for average in sums.values():
                buffers.release(average, spec.dtype)
        with self._lock:
            self.count(name, read)
            if self._on_block is not None:
                self._on_block(Done(name, number, tuple(read), tuple(written)))

    def _is_last(self, target: int, position: int) -> bool:
        return self._plan.targets[target].sources[-1] == position

    def count(self, name: str, digests: Sequence[int]) -> None:
        """Count the digests of a block of every checkpoint; the caller holds the lock."""
        for position, digest in zip(self._order(), digests, strict=False):
            leaves = self._digests[position]
            leaves[name] = combine(leaves[name], digest)

    def _order(self) -> range:
        return range(len(self._plan.checkpoints))

    def _finish(
        self, buffers: _Buffers, name: str, index: Index, target: int, average: BlockAverage
    ) -> int | None:
        plan = self._plan
        if not average.is_finite():
            self._explain_non_finite(buffers, name, index, plan.targets[target])
        # The values just added are not needed any more: their place takes the mean.
        mean = buffers.array(plan.out[name].dtype, index)
        average.mean(self._totals[target], mean.dtype, out=mean.reshape(-1))
        if self._may_overflow(name, target) and not np.isfinite(mean).all():
            raise NonFiniteError(
                f"leaf {name!r}: the average of finite numbers is beyond what {mean.dtype.name} "
                "can hold; choose a wider output dtype, such as --dtype float32, or leave the "
                "leaf out with --exclude"
            )
        return self._sinks[target].write(name, index, mean)

    def _may_overflow(self, name: str, target: int) -> bool:
        """A mean lies between its sources, unless weights are negative: what held them holds it."""
        plan = self._plan
        convex = min(plan.targets[target].weights) >= 0
        return not convex or plan.out[name].dtype != plan.specs[name].dtype

    def _explain_non_finite(
        self, buffers: _Buffers, name: str, index: Index, target: Target
    ) -> None:
        values = buffers.array(self._plan.specs[name].dtype, index)
        for source in target.sources:
            checkpoint = self._plan.checkpoints[source]
            checkpoint.read(name, index, values)
            finite = np.isfinite(values)
            if not finite.all():
                bad = np.unravel_index(int(finite.argmin()), values.shape)
                where = [int(i) + part.start for i, part in zip(bad, index, strict=True)]
                raise NonFiniteError(
                    f"{checkpoint.label}, leaf {name!r}: {values[bad]} at {where}; leave "
                    "this checkpoint out, or the leaf with --exclude"
                )
        raise NonFiniteError(
            f"leaf {name!r}: the weighted sum overflows float64; choose smaller weights"
        )

    def digests(self) -> list[dict[str, int]]:
        """Of the blocks of this process, by checkpoint and leaf."""
        return self._digests

    def check_digests(self, parts: Sequence[list[dict[str, int]]]) -> list[dict[str, str]]:
        """Compare the digests of all processes' blocks together."""
        if not self._digesting:
            return [{} for _ in self._plan.checkpoints]
        found = [
            {name: to_hex(combine(*(part[i][name] for part in parts))) for name in self._plan.specs}
            for i in self._order()
        ]
        for checkpoint, leaves in zip(self._plan.checkpoints, found, strict=True):
            for name, expected in checkpoint.checksums.items():
                if name in leaves:
                    check_digest(checkpoint.label, name, leaves[name], expected)
        return found
