"""The same weighted combination on the host, block by block in numpy.

`BlockAverage` holds the running sum of one block of one leaf in float64, whatever the number of
checkpoints; `lawa_jax.averaging.device` states the contract, and both give the same bits.
"""

from collections.abc import Iterator

import numpy as np

from lawa_jax.errors import SelectionError
from lawa_jax.tree import is_averaged

# Temporaries stay in a core's cache, and small beside the sums.
_TILE = 1 << 16


class BlockAverage:
    """The running weighted mean of a block: ``add`` from the oldest to the newest, then ``mean``.

    Buffers are allocated once and reused by ``reset``, since page faults of fresh allocations
    cost more than the arithmetic.

    >>> block = BlockAverage(2, np.dtype("float32"))
    >>> block.add(np.float32([1, 2]), 1.0)
    >>> block.add(np.float32([3, 6]), 1.0)
    >>> block.mean(2.0, np.dtype("float32"))
    array([2., 4.], dtype=float32)
    """

    def __init__(self, capacity: int, dtype: np.dtype) -> None:
        """Room for `capacity` elements of leaves of `dtype`.

        Raises:
          SelectionError: `dtype` is not averaged (integers, booleans).
        """
        if not is_averaged(dtype):
            raise SelectionError(f"leaves of dtype {dtype.name} are not averaged")
        self._complex = dtype.kind == "c"
        self._wide = dtype in (np.dtype(np.float64), np.dtype(np.complex128))
        self._part = np.dtype(f"f{dtype.itemsize // 2}") if self._complex else dtype
        # Types of ml_dtypes (bfloat16, float8) numpy does not know how to widen as it adds.
        self._widens = self._part in (np.dtype(np.float16), np.dtype(np.float32))
        room = capacity * (2 if self._complex else 1)
        self._sum = np.empty(room, np.float64)
        self._product = np.empty(min(room, _TILE), np.float64)
        self._origin = np.empty(room, np.float64) if self._wide else None
        self._count = 0
        self._size = 0

    @staticmethod
    def bytes_per_element(dtype: np.dtype) -> int:
        """Bytes of buffers an element of `dtype` takes, besides a megabyte of temporaries."""
        wide = dtype in (np.dtype(np.float64), np.dtype(np.complex128))
        return (2 if wide else 1) * 8 * (2 if dtype.kind == "c" else 1)

    def reset(self) -> None:
        """Forget everything added, keep the buffers."""
        self._count = 0

    def add(self, block: np.ndarray, weight: float) -> None:
        """Add ``weight * block``; blocks are flat and all of one length.

        Raises:
          ValueError: the block does not fit the buffers, or its length is not the first one's.
        """
        x = block.reshape(-1).view(self._part)
        first = self._count == 0
        if x.size > self._sum.size or (not first and x.size != self._size):
            expected = f"at most {self._sum.size}" if first else f"{self._size}"
            raise ValueError(f"expected a block of {expected} numbers, found {x.size}")
        self._count += 1
        if first:
            self._size = x.size
        # Infinities are for `is_finite` to report.
        with np.errstate(over="ignore", invalid="ignore"):
            self._accumulate(x, weight, first)

    def _accumulate(self, x: np.ndarray, weight: float, first: bool) -> None:
        if self._widens and weight == 1.0:
            # numpy widens as it adds: half the memory traffic of the steps below.
            total = self._sum[: self._size]
            if first:
                np.copyto(total, x)
            else:
                np.add(total, x, out=total)
            return
        for tile in self._tiles():
            self._accumulate_tile(x[tile], tile, weight, first)

    def _tiles(self) -> Iterator[slice]:
        return (slice(i, min(i + _TILE, self._size)) for i in range(0, self._size, _TILE))

    def _accumulate_tile(self, x: np.ndarray, tile: slice, weight: float, first: bool) -> None:
        total, product = self._sum[tile], self._product[: x.size]
        if self._origin is not None:
            origin = self._origin[tile]
            if first:
                np.copyto(origin, x)
                total[...] = 0.0
                return
            np.subtract(x, origin, out=product)
        else:
            product = total if first else product
            np.copyto(product, x)
        if weight != 1.0:
            np.multiply(product, weight, out=product)
        if not first:
            np.add(total, product, out=total)

    def is_finite(self) -> bool:
        """Whether everything added was finite: a NaN or infinity never leaves a sum."""
        # Summing is the cheapest pass that lets no NaN or infinity through; an overflow of finite
        # float64 sums is told apart by the slower test.
        parts = [self._sum[: self._size]]
        if self._origin is not None:
            parts.append(self._origin[: self._size])
        with np.errstate(over="ignore", invalid="ignore"):
            return all(bool(np.isfinite(p.sum())) or bool(np.isfinite(p).all()) for p in parts)

    def mean(
        self, total_weight: float, dtype: np.dtype, *, out: np.ndarray | None = None
    ) -> np.ndarray:
        """The sum divided by `total_weight`, rounded once to `dtype`; the sum is left intact.

        Args:
          total_weight: the sum of the weights.
          dtype: of the result; real types mean their complex counterpart for complex leaves.
          out: a flat array to be filled instead of a new one.

        Raises:
          SelectionError: nothing was added.
        """
        if self._count == 0:
            raise SelectionError("there is nothing to average: no block was added")
        if self._complex and dtype.kind != "c":
            dtype = np.dtype(f"c{max(8, dtype.itemsize * 2)}")
        part = np.dtype(f"f{dtype.itemsize // 2}") if self._complex else dtype
        parts = np.empty(self._size, part) if out is None else out.view(part)
        with np.errstate(over="ignore", invalid="ignore"):
            if self._origin is None and part == np.float32:
                # numpy narrows as it divides, rounding the float64 quotient.
                total = self._sum[: self._size]
                np.divide(total, total_weight, out=parts, dtype=np.float64, casting="same_kind")
                return parts.view(dtype)
            for tile in self._tiles():
                parts[tile] = round_once(self._mean(tile, total_weight), part)
        return parts.view(dtype)

    def _mean(self, tile: slice, total_weight: float) -> np.ndarray:
        total = self._sum[tile]
        mean = self._product[: total.size]
        np.divide(total, total_weight, out=mean)
        if self._origin is not None:
            # x + 0.0 is x for every x but -0.0, whose sign it would lose.
            zero = mean == 0
            np.add(self._origin[tile], mean, out=mean)
            np.copyto(mean, self._origin[tile], where=zero)
        return mean


def round_once(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """float64 numbers rounded to `dtype` once, also to bfloat16 and float8.

    numpy's conversions to those go through float32 and so round twice; float32 "rounded to odd"
    in between keeps the tie-breaking information (see `lawa_jax.averaging.device`).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype.itemsize >= 4:
            return x.astype(dtype)
        f = x.astype(np.float32)
        bits = f.view(np.int32)
        back = f.astype(np.float64)
        bits -= np.abs(back) > np.abs(x)
        bits |= (back != x) & np.isfinite(x)
        return f.astype(dtype)
