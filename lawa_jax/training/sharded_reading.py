"""Reading a checkpoint onto the devices of several processes, each only what it holds."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lawa_jax.distributed import Group, together
from lawa_jax.training.snapshot import bounds_in, devices_of, slices
from lawa_jax.trajectory.checkpoint import Checkpoint
from lawa_jax.trajectory.digest import combine, leaf_digest_block, to_hex
from lawa_jax.trajectory.formats.raw_chunks import Bounds
from lawa_jax.trajectory.integrity import check_digest, verify_leaf
from lawa_jax.tree import nested


def read_sharded(
    checkpoint: Checkpoint, sharding: Callable[[tuple[int, ...]], Any], group: Group
) -> dict[str, Any]:
    """The tree of a checkpoint, saved on any number of devices, as global arrays.

    Every process reads the parts its devices hold. Digests are compared all the same: those of the
    parts add up to that of the leaf.

    Args:
      checkpoint: the same one in every process.
      sharding: of a leaf by its shape (`Placement.sharding`).
      group: the processes; all call this.

    Raises:
      CorruptCheckpointError: bytes changed since saving; in every process.
    """
    arrays: dict[tuple[str, ...], Any] = {}
    digests: dict[str, int] = {}

    def read() -> dict[str, int]:
        for name, spec in checkpoint.leaves.items():
            place = sharding(spec.shape)
            blocks = _blocks(checkpoint, name, place, group, digests)
            arrays[checkpoint.keys[name]] = _array(spec.shape, place, blocks)
        return digests

    parts = together(group, "read", read)
    for name in sorted(set().union(*parts)):
        if (expected := checkpoint.checksums.get(name)) is not None:
            found = combine(*(part.get(name, 0) for part in parts))
            check_digest(checkpoint.label, name, to_hex(found), expected)
    return nested(arrays)


def _blocks(
    checkpoint: Checkpoint, name: str, place: Any, group: Group, digests: dict[str, int]
) -> dict[Bounds, np.ndarray]:
    """The parts of a leaf that this process holds; adds to the digests those it answers for."""
    shape = checkpoint.leaves[name].shape
    if place.is_fully_replicated:
        leaf = checkpoint.read_leaf(name)
        verify_leaf(checkpoint, name, leaf)
        return {tuple((0, n) for n in shape): leaf}
    blocks = {}
    for bounds, devices in devices_of(place, shape).items():
        holders = {device.process_index for device in devices}
        if group.index not in holders:
            continue
        index = slices(bounds)
        block = np.empty(tuple(b - a for a, b in bounds), checkpoint.leaves[name].dtype)
        checkpoint.read(name, index, block)
        blocks[bounds] = block
        if group.index == min(holders):
            part = leaf_digest_block(block, shape, index)
            digests[name] = combine(digests.get(name, 0), part)
    return blocks


def _array(shape: tuple[int, ...], place: Any, blocks: dict[Bounds, np.ndarray]) -> Any:
    import jax

    # A copy for each device: on CPU an array may be used in place, and a donated one reused.
    return jax.make_array_from_callback(
        shape, place, lambda index: np.array(blocks[bounds_in(index or (), shape)])
    )
