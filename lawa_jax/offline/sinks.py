"""Where finished blocks of an average go, besides a `StepWriter`."""

from collections.abc import Mapping

import numpy as np

from lawa_jax.tree import Index, LeafSpec


class MemorySink:
    """Arrays in memory, by leaf name in `leaves`."""

    def __init__(self, specs: Mapping[str, LeafSpec]) -> None:
        self.leaves = {name: np.empty(spec.shape, spec.dtype) for name, spec in specs.items()}

    def write(self, name: str, index: Index, array: np.ndarray) -> None:
        """Keep a block."""
        self.leaves[name][index] = array


class NullSink:
    """Nowhere: for averages that are complete already."""

    def write(self, name: str, index: Index, array: np.ndarray) -> None:
        """Drop a block."""
