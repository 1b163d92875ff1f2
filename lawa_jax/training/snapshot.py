"""A host copy of what this process saves of a tree, and its form for Orbax."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lawa_jax.distributed import Group
from lawa_jax.errors import TreeMismatchError
from lawa_jax.trajectory.digest import combine, leaf_digest_block
from lawa_jax.trajectory.formats.orbax_metadata import DICT, StoredLeaf
from lawa_jax.trajectory.formats.raw_chunks import Bounds
from lawa_jax.tree import Index, LeafSpec, PyTree, named_leaves, nested, spec_of


class Leaf(NamedTuple):
    """What this process saves of one leaf.

    Attributes:
      spec: of the whole leaf.
      devices: of a leaf that is spread over processes: the devices that save it, an array
        [copies, parts along axis 0, parts along axis 1, ...]. The first copy counts. None for a
        leaf that is no array over several processes: process 0 saves it.
      blocks: copies of the parts that are saved here.
      counted: those of them that no other process counts in the digest.
    """

    spec: LeafSpec
    devices: np.ndarray | None
    blocks: Mapping[Bounds, np.ndarray]
    counted: Sequence[Bounds]


Snapshot = dict[str, Leaf]


def snapshot(tree: PyTree, group: Group) -> Snapshot:
    """Copy to the host what this process is to save of a tree.

    Orbax wants every process to take part in every array. So where several processes hold the
    same part of a leaf each of them saves an equal share of it, if it divides.

    Raises:
      TreeMismatchError: Orbax could not save the tree, or could not restore it (`check_savable`).
    """
    leaves = named_leaves(tree)
    specs = {name: spec_of(leaf) for name, leaf in leaves.items()}
    check_savable(specs)
    if group.count == 1:
        for leaf in leaves.values():
            if hasattr(leaf, "copy_to_host_async"):
                leaf.copy_to_host_async()
    return {name: _part(leaf, specs[name], group) for name, leaf in leaves.items()}


def _part(leaf: Any, spec: LeafSpec, group: Group) -> Leaf:
    sharding = getattr(leaf, "sharding", None)
    if group.count == 1 or sharding is None or sharding.is_fully_addressable:
        # A copy, since on CPU a buffer may be shared with one that the next update reuses.
        whole = tuple((0, n) for n in spec.shape)
        return Leaf(spec, None, {whole: np.array(leaf)}, [] if group.index else [whole])
    devices = saving_devices(sharding, spec.shape)
    shards = {shard.device: shard for shard in leaf.addressable_shards}
    blocks, counted = {}, []
    for bounds, copies in _cells(devices, spec.shape):
        if copies[0] in shards:
            counted.append(bounds)
        for device in copies:
            if device in shards:
                shard = shards[device]
                starts = [start for start, _ in bounds_in(shard.index, spec.shape)]
                inside = tuple(
                    slice(a - start, b - start)
                    for (a, b), start in zip(bounds, starts, strict=True)
                )
                # Only the share is copied to the host; on CPU the shard is there already.
                data = np.asarray(shard.data) if device.platform == "cpu" else shard.data
                blocks[bounds] = np.array(data[inside])
    return Leaf(spec, devices, blocks, counted)


def saving_devices(sharding: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The devices that save a leaf (`Leaf.devices`), the same in every process."""
    parts = devices_of(sharding, shape)
    # One device of every process that holds a part.
    holders = [
        [device for _, device in sorted({d.process_index: d for d in devices}.items())]
        for devices in parts.values()
    ]
    copies = min(map(len, holders))
    grid = [len({bounds[axis] for bounds in parts}) for axis in range(len(shape))]
    devices = np.empty((len(holders), copies), object)
    devices[:] = [some[:copies] for some in holders]
    devices = devices.T.reshape(copies, *grid)
    sizes = [n // pieces for n, pieces in zip(shape, grid, strict=True)]
    for axis in sorted(range(len(shape)), key=lambda axis: -sizes[axis]):
        if copies > 1 and sizes[axis] % copies == 0:
            grid[axis] *= copies
            return np.moveaxis(devices, 0, axis + 1).reshape(1, *grid)
    return devices


def _cells(devices: np.ndarray, shape: tuple[int, ...]) -> Iterator[tuple[Bounds, np.ndarray]]:
    """The parts of a leaf, and the devices that hold a copy of each."""
    grid = devices.shape[1:]
    sizes = [n // pieces for n, pieces in zip(shape, grid, strict=True)]
    for cell in np.ndindex(*grid):
        bounds = tuple((i * n, (i + 1) * n) for i, n in zip(cell, sizes, strict=True))
        yield bounds, devices[(slice(None), *cell)]


def check_savable(specs: Mapping[str, LeafSpec]) -> None:
    """Refuse what Orbax saves wrongly or not at all, before anything is saved.

    Raises:
      TreeMismatchError: an empty leaf, which Orbax refuses; two leaves of one stored name, of which
        it keeps one; or a name that it cannot restore.
    """
    stored: dict[str, str] = {}
    for name, spec in specs.items():
        keys = tuple(name.split("/"))
        entry = StoredLeaf(keys, (DICT,) * len(keys), "np.ndarray", False)
        if not spec.size:
            raise TreeMismatchError(
                f"leaf {name!r} is {spec}: Orbax cannot save an array without elements; leave it "
                "out of the model or optimizer state"
            )
        if "\\" in name or "" in keys or not entry.has_safe_folder:
            raise TreeMismatchError(
                f"leaf {name!r}: Orbax cannot restore an array of this name; rename it without "
                "backslashes and without empty keys"
            )
        if (other := stored.setdefault(entry.folder, name)) != name:
            raise TreeMismatchError(
                f"leaves {other!r} and {name!r} would be saved under one name {entry.folder!r}, "
                "since Orbax joins keys by dots; rename one of them"
            )


def digests(part: Snapshot) -> dict[str, int]:
    """This process's share of the digest of every leaf; the shares of all processes add up."""
    return {
        name: combine(
            *(leaf_digest_block(leaf.blocks[b], leaf.spec.shape, slices(b)) for b in leaf.counted)
        )
        for name, leaf in part.items()
    }


def orbax_tree(part: Snapshot) -> dict[str, Any]:
    """The tree to be given to Orbax: numpy arrays, and `jax.Array`s where processes share a leaf.

    Orbax restores numpy arrays on any number of devices without being told how.
    """
    return nested({tuple(name.split("/")): _orbax_leaf(leaf) for name, leaf in part.items()})


def _orbax_leaf(leaf: Leaf) -> Any:
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

    if leaf.devices is None:
        (block,) = leaf.blocks.values()
        return block
    names = [f"axis{i}" for i in range(leaf.devices.ndim - 1)]
    # In host memory, so that nothing goes back to the accelerator.
    place = NamedSharding(
        Mesh(leaf.devices, ("copy", *names)), PartitionSpec(*names), memory_kind="pinned_host"
    )
    arrays = [
        jax.device_put(leaf.blocks[bounds], SingleDeviceSharding(device, memory_kind="pinned_host"))
        for bounds, copies in _cells(leaf.devices, leaf.spec.shape)
        if bounds in leaf.blocks
        for device in copies
        if device.process_index == jax.process_index()
    ]
    return jax.make_array_from_single_device_arrays(leaf.spec.shape, place, arrays)


def devices_of(sharding: Any, shape: tuple[int, ...]) -> dict[Bounds, list[Any]]:
    """The distinct parts that a sharding cuts a shape into, and the devices that hold each."""
    holders: dict[Bounds, list[Any]] = {}
    for device, index in sharding.devices_indices_map(shape).items():
        holders.setdefault(bounds_in(index, shape), []).append(device)
    return {bounds: holders[bounds] for bounds in sorted(holders)}


def bounds_in(index: Index, shape: tuple[int, ...]) -> Bounds:
    """Slices as (start, stop) pairs."""
    return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def slices(bounds: Bounds) -> Index:
    """(start, stop) pairs as slices."""
    return tuple(slice(start, stop) for start, stop in bounds)
