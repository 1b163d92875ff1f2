"""Where arrays live: batches split over all devices, parameters whole on each or sharded."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lawa_jax.distributed import Group, current_group
from lawa_jax.errors import ConfigError
from lawa_jax.tree import PyTree

# Smaller arrays are not worth the messages that gathering them costs.
_LEAST_SHARDED = 1 << 12


class Placement:
    """Placement over `devices` (all of them by default), seen as a grid of data x fsdp.

    A batch is split over all devices; every array's first axis is the batch axis. Parameters and
    optimizer state are split over groups of `fsdp` devices along their largest axis that divides
    (fully sharded data parallelism; Rajbhandari et al. 2020, arXiv 1910.02054) and are whole on
    every device with ``fsdp=1``. XLA inserts the gathers and reductions.

    With several processes, each hands in its own contiguous part of every batch, and arrays span
    the devices of all of them.

    Raises:
      ConfigError: `fsdp` does not divide the number of devices.
    """

    def __init__(
        self,
        devices: list[jax.Device] | None = None,
        *,
        fsdp: int = 1,
        group: Group | None = None,
    ) -> None:
        self.group = current_group() if group is None else group
        # By process, so that a process's part of a batch is contiguous.
        grid = np.asarray(sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id)))
        if fsdp < 1 or grid.size % fsdp:
            raise ConfigError(f"fsdp: {grid.size} devices do not divide into groups of {fsdp}")
        self._mesh = Mesh(grid.reshape(-1, fsdp), ("data", "fsdp"))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self._batch = NamedSharding(self._mesh, PartitionSpec(("data", "fsdp")))

    @property
    def process(self) -> tuple[int, int]:
        """(index, count) of this process: which part of every batch it loads."""
        return self.group.index, self.group.count

    @property
    def device_count(self) -> int:
        """Number of devices."""
        return self._mesh.size

    def check_batch(self, batch_size: int) -> None:
        """Raises ConfigError if a batch does not divide over the devices."""
        if batch_size % self.device_count:
            raise ConfigError(
                f"batch size {batch_size} does not divide over {self.device_count} devices; "
                f"choose a multiple of {self.device_count}"
            )

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """Where a parameter of this shape lives."""
        fsdp = self._mesh.shape["fsdp"]
        axes = [i for i, n in enumerate(shape) if n % fsdp == 0]
        if fsdp == 1 or not axes or np.prod(shape, dtype=np.int64) < _LEAST_SHARDED:
            return self._replicated
        axis = max(axes, key=lambda i: shape[i])
        return NamedSharding(self._mesh, PartitionSpec(*[None] * axis, "fsdp"))

    def state(self, tree: PyTree) -> PyTree:
        """Parameters or a train state on the devices; never an alias of the caller's memory."""
        return jax.tree.map(lambda leaf: _put(leaf, self.sharding(np.shape(leaf))), tree)

    def kept(self, tree: PyTree) -> PyTree:
        """Inside a jitted step: the tree where `state` puts it."""
        places = jax.tree.map(lambda leaf: self.sharding(leaf.shape), tree)
        return jax.lax.with_sharding_constraint(tree, places)

    def gathered(self, tree: PyTree) -> PyTree:
        """Inside a jitted step: the tree whole on every device, to be computed with.

        Without it XLA may spread the shards' layout over activations instead.
        """
        return jax.lax.with_sharding_constraint(tree, self._replicated)

    def batch(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """This process's part of a batch, split over its devices along the first axis."""
        if self._batch.is_fully_addressable:
            return jax.device_put(batch, self._batch)
        make = jax.make_array_from_process_local_data
        return {name: make(self._batch, part) for name, part in batch.items()}

    def abstract_batch(self, batch: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of whole batches, and where they live, for compiling ahead of time."""
        return {
            name: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=self._batch)
            for name, part in batch.items()
        }

    def abstract_state(self, tree: PyTree) -> PyTree:
        """Shapes of a train state or model, and where they live, for compiling ahead of time."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding(x.shape)), tree
        )


def _put(leaf: Any, place: NamedSharding) -> jax.Array:
    if place.is_fully_addressable:
        return jax.device_put(leaf, place, may_alias=False)
    # `device_put` would first compare the whole array between all processes.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, place, lambda index: np.array(host[index]))
