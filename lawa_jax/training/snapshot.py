"""A host copy of what this process saves of a tree, and its form for Orbax."""

from collections.abc import Mapping
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
      owners: the device that saves each part of a leaf spread over processes; {} for a leaf that
        every process holds whole, which process 0 saves.
      blocks: copies of the parts that are saved here.
    """

    spec: LeafSpec
    owners: Mapping[Bounds, Any]
    blocks: Mapping[Bounds, np.ndarray]


Snapshot = dict[str, Leaf]


def snapshot(tree: PyTree, group: Group) -> Snapshot:
    """Copy to the host what this process is to save of a tree.

    Every part of a leaf is saved by one of the devices that hold it, and all processes find the
    same one without speaking: it belongs to the process with the fewest bytes so far.

    Raises:
      TreeMismatchError: Orbax could not save the tree, or could not restore it (`check_savable`).
    """
    leaves = named_leaves(tree)
    specs = {name: spec_of(leaf) for name, leaf in leaves.items()}
    check_savable(specs)
    load = [0] * group.count
    owners: dict[str, dict[Bounds, Any]] = {}
    for name, leaf in leaves.items():
        owners[name] = {}
        for bounds, devices in _spread(leaf, group).items():
            owner = min(devices, key=lambda d: (load[d.process_index], d.process_index, d.id))
            load[owner.process_index] += _size(bounds) * specs[name].dtype.itemsize
            owners[name][bounds] = owner
        is_here = any(d.process_index == group.index for d in owners[name].values())
        if hasattr(leaf, "copy_to_host_async") and (is_here or not owners[name]):
            leaf.copy_to_host_async()
    return {
        name: Leaf(specs[name], owners[name], _copies(leaf, owners[name], group))
        for name, leaf in leaves.items()
    }


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


def digests(part: Snapshot, group: Group) -> dict[str, int]:
    """This process's share of the digest of every leaf; the shares of all processes add up."""
    return {
        name: combine(
            *(leaf_digest_block(b, leaf.spec.shape, slices(at)) for at, b in leaf.blocks.items())
        )
        for name, leaf in part.items()
        if leaf.owners or group.index == 0
    }


def orbax_tree(part: Snapshot) -> dict[str, Any]:
    """The tree to be given to Orbax: numpy arrays, and `jax.Array`s where processes share a leaf.

    Orbax restores numpy arrays on any number of devices without being told how.
    """
    return nested({tuple(name.split("/")): _orbax_leaf(leaf) for name, leaf in part.items()})


def _orbax_leaf(leaf: Leaf) -> Any:
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

    if not leaf.owners:
        (block,) = leaf.blocks.values()
        return block
    parts = sorted(leaf.owners)
    grid = [len({bounds[axis] for bounds in parts}) for axis in range(len(leaf.spec.shape))]
    names = [f"axis{i}" for i in range(len(grid))]
    devices = np.array([leaf.owners[bounds] for bounds in parts]).reshape(1, *grid)
    # In host memory, so that nothing goes back to the accelerator.
    mesh = Mesh(devices, ("whole", *names))
    place = NamedSharding(mesh, PartitionSpec(*names), memory_kind="pinned_host")
    arrays = [
        jax.device_put(block, SingleDeviceSharding(leaf.owners[at], memory_kind="pinned_host"))
        for at, block in leaf.blocks.items()
    ]
    return jax.make_array_from_single_device_arrays(
        leaf.spec.shape, place, arrays, dtype=leaf.spec.dtype
    )


def _spread(leaf: Any, group: Group) -> dict[Bounds, list[Any]]:
    """Parts of a leaf and the devices that hold each; {} for a leaf each process holds whole."""
    sharding = getattr(leaf, "sharding", None)
    if group.count == 1 or sharding is None or sharding.is_fully_addressable:
        return {}
    return devices_of(sharding, leaf.shape)


def _copies(leaf: Any, owners: Mapping[Bounds, Any], group: Group) -> dict[Bounds, np.ndarray]:
    """Copies, since on CPU a buffer may be shared with one that the next update reuses."""
    if not owners:
        return {tuple((0, n) for n in np.shape(leaf)): np.array(leaf)}
    shards = {shard.device: shard for shard in leaf.addressable_shards}
    return {
        bounds: np.array(shards[device].data)
        for bounds, device in owners.items()
        if device.process_index == group.index
    }


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


def _size(bounds: Bounds) -> int:
    return int(np.prod([stop - start for start, stop in bounds], dtype=np.int64))
