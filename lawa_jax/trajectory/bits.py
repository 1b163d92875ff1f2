"""Comparing arrays bit for bit."""

import numpy as np


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays have the same shape, dtype and bits (NaN equal to itself)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind in "iub":
        return np.array_equal(a, b)
    bits = np.dtype(f"u{min(a.itemsize, 8)}")
    if a.dtype.kind == "c":
        return same_bits(a.real, b.real) and same_bits(a.imag, b.imag)
    # Views of other item sizes need a contiguous last axis; equal sizes do not.
    return np.array_equal(a.view(bits), b.view(bits))
