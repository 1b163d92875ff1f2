"""Comparing stored bytes with the digests taken when they were saved.

Orbax loads a flipped bit as a number; these helpers turn it into an error.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from lawa_jax.checkpoints.checkpoint import Checkpoint, Index
from lawa_jax.digest import combine, leaf_digest, leaf_digest_block, to_hex
from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.tree import LeafSpec

_BLOCK_BYTES = 8 << 20


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


def blocks(spec: LeafSpec, chunk: tuple[int, ...], limit: int = _BLOCK_BYTES) -> Iterator[Index]:
    """Blocks that cover a leaf in C order, of at most `limit` bytes or one row of chunks.

    Leading dimensions are cut one by one until a block fits; the last cut is a multiple of the
    chunk there, where that fits.
    """
    if spec.size == 0:
        return
    row, axis = spec.nbytes, 0
    while axis < len(spec.shape) and row > limit and row // spec.shape[axis] >= limit:
        row //= spec.shape[axis]
        axis += 1
    outer = spec.shape[:axis]
    if axis == len(spec.shape):
        for position in np.ndindex(*outer):
            yield tuple(slice(i, i + 1) for i in position)
        return
    step = max(1, limit // max(1, row // spec.shape[axis]))
    if step > chunk[axis]:
        step -= step % chunk[axis]
    for position in np.ndindex(*outer):
        for start in range(0, spec.shape[axis], step):
            yield (
                *(slice(i, i + 1) for i in position),
                slice(start, min(start + step, spec.shape[axis])),
                *(slice(0, n) for n in spec.shape[axis + 1 :]),
            )


def stored_digest(checkpoint: Checkpoint, name: str) -> int:
    """The digest of a leaf's stored bytes, read block by block."""
    spec = checkpoint.leaves[name]
    buffer = np.empty(0, spec.dtype)
    total = 0
    for index in blocks(spec, checkpoint.chunk_shape(name)):
        shape = tuple(s.stop - s.start for s in index)
        size = int(np.prod(shape, dtype=np.int64))
        if buffer.size < size:
            buffer = np.empty(size, spec.dtype)
        block = buffer[:size].reshape(shape)
        checkpoint.read(name, index, block)
        total = combine(total, leaf_digest_block(block, spec.shape, index))
    return total


def verify_checkpoint(checkpoint: Checkpoint, expected: Mapping[str, str] | None = None) -> int:
    """Read every leaf and compare its digest.

    Args:
      checkpoint: the one to read.
      expected: digests by leaf; by default those saved beside it.

    Returns:
      How many leaves were compared; 0 for foreign checkpoints, which have no digests.

    Raises:
      CorruptCheckpointError: a leaf is missing or its bytes changed since saving.
    """
    expected = checkpoint.checksums if expected is None else expected
    for name, digest in expected.items():
        if name in checkpoint.leaves:
            check_digest(checkpoint.label, name, stored_digest(checkpoint, name), digest)
        elif name not in checkpoint.selection.left_out:
            raise CorruptCheckpointError(
                f"{checkpoint.label}: leaf {name!r} has a checksum but is not stored"
            )
    return len(expected)
