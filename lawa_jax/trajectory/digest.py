"""Digests of leaves that add up over shards and chunks.

The digest of an array is a sum over its 32-bit words (two words for float64, half a word or less
for narrower types), in C order of the whole array::

    D(x) = sum_i (bits_i + 1) * M_i  mod 2**64,    M_i = table[i mod 2**14] * key(i div 2**14)

with odd pseudo-random multipliers M_i. Being a sum over (global index, bits), it does not depend
on how the array is cut: digests of disjoint blocks of a leaf are added mod 2**64, whichever
process or chunk they come from.

What it detects: any single changed word, always, since an odd M_i is invertible; words that moved
or changed together, with a probability of missing it of at most about 2**-32. It guards against
damage, not against forgery: `strong_digest` is the cryptographic one.

Example:
  >>> import numpy as np

from lawa_jax.tree import Index
  >>> x = np.arange(6, dtype=np.float32).reshape(2, 3)
  >>> top = leaf_digest_block(x[:1], x.shape, (slice(0, 1), slice(0, 3)))
  >>> bottom = leaf_digest_block(x[1:], x.shape, (slice(1, 2), slice(0, 3)))
  >>> combine(top, bottom) == leaf_digest(x)
  True
"""

import hashlib
import threading
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 and float8 with numpy)
import numpy as np

from lawa_jax.tree import Index

ALGORITHM = "lawa-sum64-v1"
"""The name stored beside digests; it changes whenever the numbers would."""

_TABLE_BITS = 14
_BLOCK = 1 << _TABLE_BITS  # words; table and widened words (2 x 128 KiB) stay in the L2 cache
_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_KEY_SEED = 0x6C617761  # "lawa"
# Below this run length, rows are gathered together instead of looped over.
_LONG_RUN = 1024
_local = threading.local()


def _splitmix64(state: np.ndarray) -> np.ndarray:
    """Output of the splitmix64 generator at each state (Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = state * np.uint64(_GOLDEN) + np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


_TABLE = _splitmix64(np.arange(_BLOCK, dtype=np.uint64)) | np.uint64(1)
# sum of (bits + 1) M = sum of bits M + sum of M: the latter from prefix sums.
_PREFIX = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_TABLE, dtype=np.uint64)])


def _key(block: int) -> int:
    """Odd multiplier of the `block`-th run of 2**14 words."""
    z = ((block + _KEY_SEED) * _GOLDEN + _GOLDEN) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return (z ^ (z >> 31)) | 1


def _keys(blocks: np.ndarray) -> np.ndarray:
    return _splitmix64(blocks.astype(np.uint64) + np.uint64(_KEY_SEED)) | np.uint64(1)


def _words(array: np.ndarray) -> np.ndarray:
    """The bits of `array` [...] as unsigned words [..., words per element], least significant
    first."""
    dtype = array.dtype
    if dtype.hasobject or dtype.itemsize not in (1, 2, 4, 8, 16):
        raise TypeError(f"no digest for arrays of dtype {dtype}")
    if dtype.byteorder == ">":
        array = array.astype(dtype.newbyteorder("<"))
    word = np.dtype(f"<u{min(array.itemsize, 4)}")
    flat = np.ascontiguousarray(array).reshape(-1)
    words = flat.view(word).reshape(*array.shape, array.itemsize // word.itemsize)
    if dtype.name in ("int4", "uint4", "int2", "uint2"):
        # One value a byte; the unused upper bits are nobody's business.
        words = words & np.uint8(15 if dtype.name.endswith("4") else 3)
    return words


def _run(words: np.ndarray, start: int) -> int:
    """Sum over a contiguous run of words whose first has the global index `start`."""
    buffer = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = np.empty(_BLOCK, np.uint64)
    total = done = 0
    while done < words.size:
        block, low = divmod(start + done, _BLOCK)
        n = min(_BLOCK - low, words.size - done)
        wide = buffer[:n]
        np.copyto(wide, words[done : done + n])
        part = int(np.dot(wide, _TABLE[low : low + n]))
        part += int(_PREFIX[low + n]) - int(_PREFIX[low])
        total += part * _key(block)
        done += n
    return total & _MASK64


def _rows(words: np.ndarray, starts: np.ndarray) -> int:
    """Sum over short rows of words [rows, run], whose first words have the indices `starts`."""
    run = words.shape[1]
    index = starts[:, None] + np.arange(run, dtype=np.int64)
    weights = _TABLE[index & (_BLOCK - 1)]
    blocks = starts >> _TABLE_BITS
    weights *= _keys(blocks)[:, None]
    crossing = np.flatnonzero(((starts + run - 1) >> _TABLE_BITS) != blocks)
    if crossing.size:
        index = index[crossing]
        weights[crossing] = _TABLE[index & (_BLOCK - 1)] * _keys(index >> _TABLE_BITS)
    wide = words.astype(np.uint64)
    wide += np.uint64(1)
    return int(np.dot(wide.reshape(-1), weights.reshape(-1)))


def leaf_digest_block(array: Any, shape: tuple[int, ...], index: Index) -> int:
    """The part of a leaf's digest that comes from one block of it.

    Args:
      array: the block's values; a shape equal to that of `index`.
      shape: the whole leaf's shape.
      index: where the block lies: one slice (start, stop; step 1) a dimension.

    Returns:
      An integer in [0, 2**64); add those of all blocks with `combine`.

    Raises:
      ValueError: the index does not fit the shape, or the array does not fit the index.
      TypeError: the dtype has no fixed bits (strings, objects).
    """
    array = np.asarray(array)
    bounds = [s.indices(n) for s, n in zip(index, shape, strict=False)]
    block = tuple(max(0, stop - start) for start, stop, _ in bounds)
    if len(index) != len(shape) or array.shape != block or any(b[2] != 1 for b in bounds):
        raise ValueError(
            f"a block {array.shape} does not fit index {index} of a leaf of shape {shape}"
        )
    if array.size == 0:
        return 0
    words = _words(array)
    # One more dimension for the words of an element, then merge the dimensions that the block
    # covers whole into the run.
    dims = (*shape, words.shape[-1])
    sizes = words.shape
    offsets = [start for start, _, _ in bounds] + [0]
    strides = [1] * len(dims)
    for axis in range(len(dims) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * dims[axis + 1]
    first = len(dims) - 1
    while first > 0 and sizes[first] == dims[first]:
        first -= 1
    run = sizes[first] * strides[first]
    base = sum(o * s for o, s in zip(offsets, strides, strict=True))
    outer = sizes[:first]
    rows = words.reshape(-1, run)
    total = 0
    step = 256 if run >= _LONG_RUN else max(1, (1 << 15) // run)
    for row in range(0, len(rows), step):
        stop = min(row + step, len(rows))
        where = np.unravel_index(np.arange(row, stop), outer) if outer else ()
        starts = np.full(stop - row, base, np.int64)
        for axis, position in enumerate(where):
            starts += position * strides[axis]
        if run >= _LONG_RUN:
            total += sum(
                _run(words, start)
                for words, start in zip(rows[row:stop], starts.tolist(), strict=True)
            )
        else:
            total += _rows(rows[row:stop], starts)
    return total & _MASK64


def leaf_digest(array: Any) -> int:
    """The digest of a whole array, an integer in [0, 2**64)."""
    array = np.asarray(array)
    return leaf_digest_block(array, array.shape, tuple(slice(0, n) for n in array.shape))


def combine(*digests: int) -> int:
    """The digest of a leaf from those of disjoint blocks that cover it."""
    return sum(digests) & _MASK64


def to_hex(digest: int) -> str:
    """A digest as it is stored: 16 hexadecimal digits."""
    return format(digest & _MASK64, "016x")


def strong_digest(array: Any) -> str:
    """SHA-256 of the array's bytes in C order, little endian, in hexadecimal."""
    array = np.ascontiguousarray(array)
    if array.dtype.hasobject:
        raise TypeError(f"no digest for arrays of dtype {array.dtype}")
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()
