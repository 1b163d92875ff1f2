"""A copy of what this process holds of a sharded tree, to be written beside the others' parts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lawa_jax.distributed import Group
from lawa_jax.output.shared_writer import SharedWriter
from lawa_jax.trajectory.formats.raw_chunks import Bounds
from lawa_jax.tree import Index, LeafSpec, PyTree, named_leaves, spec_of


class Snapshot(NamedTuple):
    """Part of a tree.

    Attributes:
      specs: of all leaves of the whole tree.
      chunks: storage chunks of sharded leaves: one a shard.
      blocks: what this process writes, copied to the host.
    """

    specs: dict[str, LeafSpec]
    chunks: dict[str, tuple[int, ...]]
    blocks: list[tuple[str, Index, np.ndarray]]


def snapshot(tree: PyTree, group: Group) -> Snapshot:
    """Copy to the host what this process is to write of a tree.

    Every part of a leaf is written by one of the processes that hold it, and all processes find
    the same, without speaking: the one with the fewest bytes so far.
    """
    leaves = named_leaves(tree)
    specs = {name: spec_of(leaf) for name, leaf in leaves.items()}
    chunks: dict[str, tuple[int, ...]] = {}
    mine: list[tuple[str, Bounds]] = []
    load = [0] * group.count
    for name, leaf in leaves.items():
        itemsize = specs[name].dtype.itemsize
        for bounds, holders in holders_of(leaf, group.count).items():
            shape = tuple(stop - start for start, stop in bounds)
            owner = min(holders, key=lambda process: (load[process], process))
            load[owner] += int(np.prod(shape, dtype=np.int64)) * itemsize
            if shape != specs[name].shape:
                chunks[name] = shape
            if owner == group.index:
                mine.append((name, bounds))
    for name, _ in mine:
        if hasattr(leaves[name], "copy_to_host_async"):
            leaves[name].copy_to_host_async()
    blocks = [(name, slices(bounds), _block(leaves[name], bounds)) for name, bounds in mine]
    return Snapshot(specs, chunks, blocks)


def write_snapshot(
    directory: epath.PathLike,
    part: Snapshot,
    group: Group,
    *,
    metrics: Mapping[str, float] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a tree together, as `write_checkpoint` does alone; every process calls it.

    Raises:
      OutputExistsError, CheckpointWriteError, CorruptCheckpointError: in every process.
    """
    with SharedWriter(
        group,
        directory,
        part.specs,
        {name: tuple(name.split("/")) for name in part.specs},
        overwrite=overwrite,
        metrics=metrics,
        chunks=part.chunks,
    ) as writer:
        for name, index, block in part.blocks:
            writer.write(name, index, block)
        writer.finish()


def holders_of(leaf: Any, count: int) -> dict[Bounds, list[int]]:
    """The distinct parts of a leaf, and the processes that hold each, ascending.

    What is no `jax.Array` over several processes is taken to be the same in all of them.
    """
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or sharding.is_fully_addressable:
        return {tuple((0, n) for n in np.shape(leaf)): list(range(count))}
    return parts_of(sharding, leaf.shape)


def parts_of(sharding: Any, shape: tuple[int, ...]) -> dict[Bounds, list[int]]:
    """The distinct parts that a sharding cuts a shape into, and the processes that hold each."""
    holders: dict[Bounds, set[int]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        holders.setdefault(bounds_in(index, shape), set()).add(device.process_index)
    return {bounds: sorted(holders[bounds]) for bounds in sorted(holders)}


def bounds_in(index: Index, shape: tuple[int, ...]) -> Bounds:
    """Slices as (start, stop) pairs."""
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def slices(bounds: Bounds) -> Index:
    """(start, stop) pairs as slices."""
    return tuple(slice(start, stop) for start, stop in bounds)


def _block(leaf: Any, bounds: Bounds) -> np.ndarray:
    """A copy: on CPU a buffer may be shared with one that the next update reuses."""
    if getattr(leaf, "is_fully_addressable", True):
        return np.array(leaf)
    for shard in leaf.addressable_shards:
        if bounds_in(shard.index, leaf.shape) == bounds:
            return np.array(shard.data)
    raise AssertionError(f"{bounds} is not on this process")
