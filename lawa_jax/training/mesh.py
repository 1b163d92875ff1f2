"""Where arrays live: batches split over all devices, parameters whole on each or sharded."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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

    Raises:
      ConfigError: `fsdp` does not divide the number of devices.
    """

    def __init__(self, devices: list[jax.Device] | None = None, *, fsdp: int = 1) -> None:
        grid = np.asarray(devices or jax.devices())
        if fsdp < 1 or grid.size % fsdp:
            raise ConfigError(f"fsdp: {grid.size} devices do not divide into groups of {fsdp}")
        self._mesh = Mesh(grid.reshape(-1, fsdp), ("data", "fsdp"))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self._batch = NamedSharding(self._mesh, PartitionSpec(("data", "fsdp")))

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

    def replicate(self, tree: PyTree) -> PyTree:
        """The tree on every device; never an alias of the caller's host memory."""
        return jax.device_put(tree, self._replicated, may_alias=False)

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
        places = jax.tree.map(lambda leaf: self.sharding(np.shape(leaf)), tree)
        return jax.device_put(tree, places, may_alias=False)

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
        """A batch of host arrays, split over the devices along the first axis."""
        return jax.device_put(batch, self._batch)
