"""Writing blocks of an array into raw zarr 2 chunk files, one file a chunk, in any order."""

import os
import threading
from pathlib import Path
from typing import Any, cast

import numpy as np

from lawa_jax.trajectory.formats.raw_chunks import Bounds, chunk_file, overlaps
from lawa_jax.trajectory.formats.zarr_header import ArrayHeader


class ChunkFiles:
    """The chunk files of one array; `write` is thread-safe for disjoint blocks."""

    def __init__(self, folder: Path, header: ArrayHeader) -> None:
        self._folder = folder
        self._header = header
        self._sized: set[tuple[int, ...]] = set()
        self._lock = threading.Lock()

    def _open(self, position: tuple[int, ...]) -> int:
        path = self._folder / chunk_file(self._header, position)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        with self._lock:
            if position not in self._sized:
                # Full size from the start: chunks at the edges are padded with zeros.
                os.ftruncate(fd, self._header.chunk_nbytes)
                self._sized.add(position)
        return fd

    def write(self, bounds: Bounds, block: np.ndarray) -> None:
        """Write a block; `block` has the header's dtype and the shape of `bounds`."""
        for position, inside, target in overlaps(self._header, bounds):
            fd = self._open(position)
            try:
                _write_region(fd, self._header.chunks, inside, block[cast(Any, (*target, ...))])
            finally:
                os.close(fd)


def _pwrite(fd: int, data: memoryview, offset: int) -> None:
    while len(data):
        n = os.pwrite(fd, data, offset)
        data, offset = data[n:], offset + n


def _write_region(fd: int, chunks: tuple[int, ...], bounds: Bounds, block: np.ndarray) -> None:
    """Write a region of one chunk: one call for each contiguous run of bytes."""
    first = len(chunks)
    while first > 0 and bounds[first - 1] == (0, chunks[first - 1]):
        first -= 1
    first = max(first - 1, 0)  # runs extend over dimensions first, first + 1, ...
    strides = [block.itemsize] * len(chunks)
    for axis in range(len(chunks) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * chunks[axis + 1]
    base = sum(start * s for (start, _), s in zip(bounds, strides, strict=True))
    outer = block.shape[:first]
    for row in np.ndindex(*outer):
        data = np.ascontiguousarray(block[row]).reshape(-1)
        offset = base + sum(i * s for i, s in zip(row, strides, strict=False))
        _pwrite(fd, memoryview(cast(Any, data.view(np.uint8))), offset)
