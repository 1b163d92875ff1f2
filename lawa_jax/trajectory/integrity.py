"""Comparing stored bytes with the digests taken when they were saved.

Orbax loads a flipped bit as a number; these helpers turn it into an error.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.trajectory.checkpoint import Checkpoint
from lawa_jax.trajectory.digest import combine, leaf_digest, leaf_digest_block, to_hex

_BLOCK_BYTES = 2 << 20


def check_digest(label: str, name: str, digest: int | str, expected: str) -> None:
    """Compare a leaf's digest with the stored one.

    Raises:
      CorruptCheckpointError: they differ.
    """
    found = digest if isinstance(digest, str) else to_hex(digest)
    if found != expected:
        raise CorruptCheckpointError(
            f"{label}, leaf {name!r}: bytes changed since saving (digest expected {expected}, "
            f"found {found}); restore it from a copy"
        )


def verify_leaf(checkpoint: Checkpoint, name: str, array: np.ndarray) -> None:
    """Check a leaf that was read whole; without a stored digest there is nothing to check.

    Raises:
      CorruptCheckpointError: bytes changed since saving.
    """
    expected = checkpoint.checksums.get(name)
    if expected is not None:
        check_digest(checkpoint.label, name, leaf_digest(array), expected)


def stored_digest(checkpoint: Checkpoint, name: str) -> int:
    """The digest of a leaf's stored bytes, read block by block."""
    spec = checkpoint.leaves[name]
    buffer = np.empty(0, spec.dtype)
    total = 0
    for index in checkpoint.blocks(name, _BLOCK_BYTES):
        shape = tuple(s.stop - s.start for s in index)
        size = int(np.prod(shape, dtype=np.int64))
        if buffer.size < size:
            buffer = np.empty(size, spec.dtype)
        block = buffer[:size].reshape(shape)
        checkpoint.read(name, index, block)
        total = combine(total, leaf_digest_block(block, spec.shape, index))
    return total


def verify_checkpoint(
    checkpoint: Checkpoint, expected: Mapping[str, str] | None = None, *, threads: int = 2
) -> int:
    """Read every leaf and compare its digest.

    Args:
      checkpoint: the one to read.
      expected: digests by leaf; by default those saved beside it.
      threads: how many leaves to read at once; each takes a buffer of 2 MiB, or of one chunk of
        a compressed leaf.

    Returns:
      How many leaves were compared; 0 for foreign checkpoints, which have no digests.

    Raises:
      CorruptCheckpointError: a leaf is missing or its bytes changed since saving.
    """
    expected = checkpoint.checksums if expected is None else expected
    left_out = set(checkpoint.selection.left_out)
    for name in expected:
        if name not in checkpoint.leaves and name not in left_out:
            raise CorruptCheckpointError(
                f"{checkpoint.label}: leaf {name!r} has a checksum but is not stored"
            )

    def check(name: str) -> None:
        check_digest(checkpoint.label, name, stored_digest(checkpoint, name), expected[name])

    names = [name for name in checkpoint.leaves if name in expected]
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(check, names):
            pass
    return len(names)
