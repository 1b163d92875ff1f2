"""Uncompressed zarr 2 chunks, read in place.

A raw chunk file is the C-order bytes of an array, so any block of it is a few byte ranges: they are
read with ``preadv`` straight into the caller's buffer where the block is contiguous in both, else
through a small scratch buffer. The interpreter lock is released while reading, so several threads
may read at once.
"""

import itertools
import os
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.trajectory.formats.zarr_header import ArrayHeader
from lawa_jax.trajectory.storage import open_regular

_SCRATCH_BYTES = 4 << 20
Bounds = tuple[tuple[int, int], ...]


def chunk_file(header: ArrayHeader, position: tuple[int, ...]) -> str:
    """File name of a chunk: ``0.3``; a 0-dimensional array's is ``0``."""
    return header.separator.join(map(str, position)) or "0"


def overlaps(
    header: ArrayHeader, bounds: Bounds
) -> Iterator[tuple[tuple[int, ...], Bounds, tuple[slice, ...]]]:
    """Chunks that meet a block: position, bounds inside the chunk, slices inside the block."""
    ranges = [
        range(start // c, -(-stop // c))
        for (start, stop), c in zip(bounds, header.chunks, strict=True)
    ]
    for position in itertools.product(*ranges):
        inside, target = [], []
        for p, c, (start, stop) in zip(position, header.chunks, bounds, strict=True):
            low, high = max(start, p * c), min(stop, (p + 1) * c)
            inside.append((low - p * c, high - p * c))
            target.append(slice(low - start, high - start))
        yield position, tuple(inside), tuple(target)


def _pread(fd: int, into: memoryview, offset: int, where: str) -> None:
    while len(into):
        n = os.preadv(fd, [into], offset)
        if n == 0:
            raise CorruptCheckpointError(f"{where} ended early, at byte {offset}")
        into, offset = into[n:], offset + n


def _bytes_of(array: np.ndarray) -> memoryview:
    return memoryview(cast(Any, array.reshape(-1).view(np.uint8)))


def _read_region(
    fd: int, chunks: tuple[int, ...], bounds: Bounds, out: np.ndarray, where: str
) -> None:
    """Fill `out` with the region `bounds` of one chunk file."""
    # Dimensions from `first` on are contiguous in the file: `first` itself in part, the rest whole.
    first = len(chunks)
    while first > 0 and bounds[first - 1] == (0, chunks[first - 1]):
        first -= 1
    first = max(first - 1, 0)
    strides = [out.itemsize] * len(chunks)
    for axis in range(len(chunks) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * chunks[axis + 1]
    offset = sum(start * s for (start, _), s in zip(bounds, strides, strict=True))
    is_run = all(stop - start == 1 for start, stop in bounds[:first])
    if is_run and out.flags.c_contiguous:
        _pread(fd, _bytes_of(out), offset, where)
        return
    last = sum((stop - 1) * s for (_, stop), s in zip(bounds, strides, strict=True))
    span = last + out.itemsize - offset
    if span <= _SCRATCH_BYTES:
        scratch = np.empty(span, np.uint8)
        _pread(fd, _bytes_of(scratch), offset, where)
        source = np.ndarray(out.shape, out.dtype, buffer=scratch, strides=strides)
        np.copyto(out, source)
        return
    # Halve the first dimension that can be: a wide span means that one has more than one row.
    cut = next(a for a, (start, stop) in enumerate(bounds) if stop - start > 1)
    start, stop = bounds[cut]
    middle = (start + stop) // 2
    for low, high in ((start, middle), (middle, stop)):
        part = (*bounds[:cut], (low, high), *bounds[cut + 1 :])
        where_out = cast(Any, (*(slice(None),) * cut, slice(low - start, high - start)))
        _read_region(fd, chunks, part, out[where_out], where)


def read_block(
    folder: str,
    header: ArrayHeader,
    bounds: Bounds,
    out: np.ndarray,
    *,
    leaf: str,
) -> None:
    """Fill `out` with the block `bounds` (start, stop a dimension) of a raw array.

    Args:
      folder: the array's directory, with ``.zarray`` and the chunk files.
      header: from its ``.zarray``; `is_raw`.
      bounds: within the shape.
      out: the block's shape and the header's dtype.
      leaf: "RUN@90, leaf 'params/w'", for messages.

    Raises:
      CorruptCheckpointError: a chunk file is missing or has another size than its header says.
    """
    for position, inside, target in overlaps(header, bounds):
        path = f"{folder}/{chunk_file(header, position)}"
        where = f"{leaf}: chunk file {path}"
        try:
            fd = open_regular(path)
        except FileNotFoundError as error:
            raise CorruptCheckpointError(f"{where} is missing; restore it from a copy") from error
        except OSError as error:
            raise CorruptCheckpointError(f"{where} cannot be read: {error}") from error
        try:
            size = os.fstat(fd).st_size
            if size != header.chunk_nbytes:
                raise CorruptCheckpointError(
                    f"{where} is damaged: expected {header.chunk_nbytes} bytes, found {size}; "
                    "restore it from a copy"
                )
            _read_region(fd, header.chunks, inside, out[cast(Any, (*target, ...))], where)
        except OSError as error:
            raise CorruptCheckpointError(f"{where} cannot be read: {error}") from error
        finally:
            os.close(fd)
