"""Where finished blocks of an average go, besides a `StreamingWriter`."""

import threading
from collections.abc import Mapping

import numpy as np

from lawa_jax.digest import combine, leaf_digest_block, to_hex
from lawa_jax.streaming.plan import Index
from lawa_jax.tree import LeafSpec


class MemorySink:
    """Arrays in memory, by leaf name in `leaves`."""

    def __init__(self, specs: Mapping[str, LeafSpec]) -> None:
        self.leaves = {name: np.empty(spec.shape, spec.dtype) for name, spec in specs.items()}

    def write(self, name: str, index: Index, array: np.ndarray) -> None:
        """Keep a block."""
        self.leaves[name][index] = array


class DigestSink:
    """Digests of the leaves, and nothing else."""

    def __init__(self, specs: Mapping[str, LeafSpec]) -> None:
        self._specs, self._digests = specs, dict.fromkeys(specs, 0)
        self._lock = threading.Lock()

    def write(self, name: str, index: Index, array: np.ndarray) -> int:
        """Add a block's digest; returns it."""
        digest = leaf_digest_block(array, self._specs[name].shape, index)
        with self._lock:
            self._digests[name] = combine(self._digests[name], digest)
        return digest

    def digests(self) -> dict[str, str]:
        """Digests by leaf name."""
        return {name: to_hex(digest) for name, digest in self._digests.items()}


class NullSink:
    """Nowhere: for averages that are complete already."""

    def write(self, name: str, index: Index, array: np.ndarray) -> None:
        """Drop a block."""
