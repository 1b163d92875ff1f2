"""What a pass over stored checkpoints will do, and the memory it takes, from metadata alone."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lawa_jax.averaging.coefficients import check_weights
from lawa_jax.averaging.host import BlockAverage
from lawa_jax.errors import SelectionError
from lawa_jax.trajectory import Checkpoint
from lawa_jax.trajectory.partition import blocks, chunk_blocks
from lawa_jax.tree import Index, LeafSpec, check_compatible, is_averaged

# Small enough for a core's cache, large enough that a read's fixed cost does not matter.
BLOCK_BYTES = 2 << 20
# Larger chunks are cut for several processes: 100 such leaves keep 8 of them evenly busy.
CUT_BYTES = 16 << 20
# Interpreter, file handles, tiles of temporaries and what allocators keep to themselves, above the
# counted buffers.
OVERHEAD = 48 << 20


class Target(NamedTuple):
    """One average over some of the checkpoints.

    Attributes:
      sources: positions in the list of checkpoints, oldest first.
      weights: one a source, of any scale; divided by their sum.
    """

    sources: tuple[int, ...]
    weights: tuple[float, ...]


class Plan(NamedTuple):
    """What a pass will do, from metadata alone.

    Attributes:
      checkpoints: opened sources.
      targets: the averages.
      specs: shape and SOURCE dtype of every leaf.
      out: shape and OUTPUT dtype of every leaf.
      copied: leaves that are taken from a target's newest checkpoint instead of averaged.
      limits: bytes of a block of every leaf.
      large: leaves with blocks too large for every worker to keep buffers for, and the bytes a
        block of each needs, most first; `room` is what those at work may take together.
      room: see `large`.
      memory: bound on the pass's memory above what imports take, in bytes.
      threads: workers.
      parts: processes that share the pass; large chunks are cut for them where that costs nothing.
    """

    checkpoints: tuple[Checkpoint, ...]
    targets: tuple[Target, ...]
    specs: dict[str, LeafSpec]
    out: dict[str, LeafSpec]
    copied: frozenset[str]
    limits: dict[str, int]
    large: dict[str, int]
    room: int
    memory: int
    threads: int
    parts: int = 1

    def elements(self, name: str) -> int:
        """The most elements in a block of a leaf."""
        return _elements(self.specs[name], self.limits[name])

    def blocks(self, name: str) -> Iterator[Index]:
        """The blocks of a leaf, in order."""
        return blocks(self.specs[name], self.grid(name), self.limits[name])

    def grid(self, name: str) -> tuple[int, ...]:
        """Shape of the cells of a leaf that no block crosses."""
        # Those are the chunks of the checkpoint for which crossing them costs most.
        source = next((c for c in self.checkpoints if not c.is_raw(name)), self.checkpoints[0])
        chunk = source.chunk_shape(name)
        nbytes = int(np.prod(chunk, dtype=np.int64)) * self.specs[name].dtype.itemsize
        if self.parts > 1 and chunk and nbytes > CUT_BYTES and source.is_raw(name):
            return (-(-chunk[0] // self.parts), *chunk[1:])
        return chunk

    def owners(self, name: str, load: list[int]) -> dict[tuple[int, ...], int]:
        """Which process makes which cell of a leaf, by its first element's position.

        Args:
          name: of the leaf.
          load: bytes each process has to make so far; those of this leaf are added.
        """
        spec, owners = self.specs[name], {}
        for cell in chunk_blocks(spec, self.grid(name)):
            size = int(np.prod([s.stop - s.start for s in cell], dtype=np.int64))
            owner = load.index(min(load))
            load[owner] += size * spec.dtype.itemsize
            owners[tuple(s.start for s in cell)] = owner
        return owners

    @property
    def bytes_to_read(self) -> int:
        """Dense bytes of all leaves of all checkpoints, each read once."""
        return len(self.checkpoints) * sum(spec.nbytes for spec in self.specs.values())

    @property
    def bytes_to_write(self) -> int:
        """Dense bytes of all averages."""
        return len(self.targets) * sum(spec.nbytes for spec in self.out.values())


def make_plan(
    checkpoints: Sequence[Checkpoint],
    targets: Sequence[Target],
    *,
    copied: Collection[str] = (),
    dtype: np.dtype | None = None,
    memory: int = 1 << 30,
    threads: int = 2,
    parts: int = 1,
) -> Plan:
    """Check that the checkpoints can be combined, and fit the pass into `memory` bytes.

    Args:
      checkpoints: opened sources.
      targets: averages over them.
      copied: floating-point leaves to take from the newest all the same (batch statistics).
      dtype: of averaged leaves; their own by default.
      memory: bytes to stay within; larger compressed chunks need twice their size all the same.
      threads: workers, at least 1.
      parts: processes that share the pass.

    Raises:
      TreeMismatchError: leaves, shapes or dtypes differ; names leaf and checkpoints.
      SelectionError: nothing to average, or weights that do not fit.
    """
    if threads < 1:
        raise SelectionError(f"threads: expected >= 1, found {threads}")
    if not checkpoints or not targets:
        raise SelectionError("there is nothing to average")
    for target in targets:
        check_weights(len(target.sources), target.weights)
        if list(target.sources) != sorted(set(target.sources)):
            raise SelectionError(
                "every average takes its checkpoints in the order they are read, each once; found "
                + ", ".join(checkpoints[i].label for i in target.sources)
            )
    check_compatible({c.label: c.leaves for c in checkpoints})
    specs = dict(checkpoints[0].leaves)
    kept = frozenset(n for n, s in specs.items() if n in copied or not is_averaged(s.dtype))
    out = {
        name: spec if name in kept or dtype is None else LeafSpec(spec.shape, _cast(spec, dtype))
        for name, spec in specs.items()
    }
    active = _most_active(targets)
    kinds = len({s.dtype for n, s in specs.items() if n not in kept}) or 1
    budget = max(memory - OVERHEAD, 1 << 20)
    share = budget // (2 * threads * kinds)
    limits: dict[str, int] = {}
    small, large = [0], {}
    for name, spec in specs.items():
        per_element = max(spec.dtype.itemsize, out[name].dtype.itemsize)
        if name not in kept:
            per_element += active * BlockAverage.bytes_per_element(spec.dtype)
        chunk = max(_decoded(c, name) for c in checkpoints)
        # A compressed chunk is decoded whole whatever part of it is wanted: once where it fits.
        room = share if _need(spec, max(BLOCK_BYTES, chunk), per_element, chunk) <= share else 0
        if chunk and not room:
            room = budget - threads * kinds * share
        limit = (max(room or share, 2 * chunk) - 2 * chunk) // per_element * spec.dtype.itemsize
        limits[name] = max(spec.dtype.itemsize, 1 << 16, min(max(BLOCK_BYTES, chunk), limit))
        need = _need(spec, limits[name], per_element, chunk)
        if need > share:
            large[name] = need
        else:
            small.append(need)
    reserved = threads * kinds * max(small)
    large = dict(sorted(large.items(), key=lambda item: -item[1]))
    needs = list(large.values())
    room = max(budget - reserved, max(needs, default=0))
    bound = OVERHEAD + reserved + min(room, sum(needs[:threads]))
    return Plan(
        tuple(checkpoints),
        tuple(targets),
        specs,
        out,
        kept,
        limits,
        large,
        room,
        bound,
        threads,
        parts,
    )


def _elements(spec: LeafSpec, limit: int) -> int:
    return min(-(-limit // spec.dtype.itemsize), max(spec.size, 1))


def _need(spec: LeafSpec, limit: int, per_element: int, chunk: int) -> int:
    """Bytes that a block takes: its buffers, and the chunk it lies in as stored and decoded."""
    return _elements(spec, limit) * per_element + 2 * chunk


def _most_active(targets: Sequence[Target]) -> int:
    """The most averages that are ever begun and unfinished at one time."""
    events = sorted(
        event
        for target in targets
        for event in ((target.sources[0], 0, 1), (target.sources[-1], 1, -1))
    )
    active = most = 0
    for _, _, change in events:
        active += change
        most = max(most, active)
    return most


def _cast(spec: LeafSpec, dtype: np.dtype) -> np.dtype:
    if spec.dtype.kind == "c" and dtype.kind != "c":
        return np.dtype(np.complex128 if dtype == np.float64 else np.complex64)
    return dtype


def _decoded(checkpoint: Checkpoint, name: str) -> int:
    """Bytes of a chunk that has to be decoded whole; 0 where blocks are read in place."""
    if checkpoint.is_raw(name):
        return 0
    itemsize = checkpoint.leaves[name].dtype.itemsize
    return int(np.prod(checkpoint.chunk_shape(name), dtype=np.int64)) * itemsize
