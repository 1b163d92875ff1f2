"""Where arrays live: parameters on every device, batches split over all of them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lawa_jax.errors import ConfigError
from lawa_jax.tree import PyTree


class Placement:
    """Data-parallel placement over `devices` (all of them by default).

    A batch must divide evenly over the devices; every array's first axis is the batch axis.
    """

    def __init__(self, devices: list[jax.Device] | None = None) -> None:
        self._mesh = Mesh(np.asarray(devices or jax.devices()), ("data",))
        self._replicated = NamedSharding(self._mesh, PartitionSpec())
        self._batch = NamedSharding(self._mesh, PartitionSpec("data"))

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

    def batch(self, batch: dict[str, Any]) -> dict[str, jax.Array]:
        """A batch of host arrays, split over the devices along the first axis."""
        return jax.device_put(batch, self._batch)
