"""The arithmetic of averaging, which knows no files: windows, coefficients, sums, statistics."""
