"""The weighted sum of one leaf, on the device, in float64 or in compensated float32.

Pure functions of arrays, to be traced under `jax.jit`: ``first`` begins a sum with the oldest
checkpoint's leaf, ``add`` continues it, ``finish`` divides and rounds.
`lawa_jax.averaging.device` states what they guarantee and drives them over whole trees.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lawa_jax.errors import SelectionError

Precision = Literal["auto", "float64", "compensated"]

# Leaves room for the leaves' own range in float32's exponents.
_LARGEST = 2.0**32


class Sum(NamedTuple):
    """The running sum of one averaged leaf; shapes are the leaf's.

    Attributes:
      hi: float64 (``float64``) or float32 (``compensated``): the sum.
      lo: float32: what `hi` lost to rounding; None under ``float64``.
      origin: float64: the oldest leaf, of which differences are summed; None but for float64
        leaves.
    """

    hi: jax.Array
    lo: jax.Array | None
    origin: jax.Array | None


def resolve(precision: Precision) -> Precision:
    if precision == "auto":
        return "compensated" if jax.default_backend() == "tpu" else "float64"
    if precision not in ("float64", "compensated"):
        raise SelectionError(
            f"expected precision 'auto', 'float64' or 'compensated', found {precision!r}"
        )
    return precision


def operands(weights: Sequence[float], total: float, precision: Precision) -> tuple[Any, Any, Any]:
    """Weights as numbers the kernels take, the divisor, and a zero XLA cannot know to be zero.

    Raises:
      SelectionError: weights outside the range that compensated float32 can hold.
    """
    w = np.asarray(weights, np.float64)
    if precision == "float64":
        return w, np.float64(total), np.int64(0)
    if np.abs(w).max() > _LARGEST or abs(total) < 1 / _LARGEST:
        raise SelectionError(
            "compensated float32 sums expect weights of at most 2^32 with a sum of at least "
            f"2^-32, found {w.tolist()} with the sum {total:.9g}; scale them"
        )
    return _pieces(w), _pieces(np.asarray(total, np.float64)), np.int32(0)


def _pieces(w: np.ndarray) -> np.ndarray:
    """float64 numbers as float32 of 12, 12 and 24 leading bits, along a new last axis."""
    first = _leading_bits(w.astype(np.float32))
    second = _leading_bits((w - first).astype(np.float32))
    third = (w - first - second).astype(np.float32)
    return np.stack([first, second, third], axis=-1)


def _leading_bits(x: np.ndarray) -> np.ndarray:
    """float32 numbers cut to 12 significant bits, so that products of two are exact."""
    return (x.view(np.int32) & np.int32(-0x1000)).view(np.float32)


def _as_real(x: jax.Array) -> jax.Array:
    """Complex arrays as real ones with a last axis of (real, imaginary)."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.stack([x.real, x.imag], axis=-1)
    return x


def first(leaf: Any, weight: jax.Array, zero: jax.Array, precision: str) -> Sum:
    """The sum of one product; begun so, and not at zero, it keeps the sign of -0.0."""
    x = _as_real(jnp.asarray(leaf))
    if precision == "compensated":
        start = Sum(-jnp.zeros_like(x, jnp.float32), jnp.zeros_like(x, jnp.float32), None)
        return _add_compensated(start, x.astype(jnp.float32), weight)
    if x.dtype == jnp.float64:
        return Sum(jnp.zeros_like(x), None, x)
    return Sum(_bits_xor(weight * x.astype(jnp.float64), zero), None, None)


def add(total: Sum, leaf: Any, weight: jax.Array, zero: jax.Array, precision: str) -> Sum:
    """``total + weight * leaf``."""
    x = _as_real(jnp.asarray(leaf))
    if precision == "compensated":
        return _add_compensated(total, x.astype(jnp.float32), weight)
    x = x.astype(jnp.float64)
    if total.origin is not None:
        x = x - total.origin
    return Sum(total.hi + _bits_xor(weight * x, zero), None, total.origin)


def _bits_xor(x: jax.Array, zero: jax.Array) -> jax.Array:
    """`x`, behind an XOR with a zero that XLA cannot see through.

    XLA contracts a product and a sum into a fused multiply-add, which rounds differently from
    numpy's two operations; neither `lax.optimization_barrier` nor `lax.reduce_precision` stops it.
    """
    bits = lax.bitcast_convert_type(x, zero.dtype)
    return lax.bitcast_convert_type(bits ^ zero, x.dtype)


def _add_compensated(total: Sum, x: jax.Array, weight: jax.Array) -> Sum:
    """Add ``weight * x`` to the pair (hi, lo), all products and sums free of error but the last.

    x = x1 + x2 and w = w1 + w2 + w3 are cut to pieces of 12 bits, whose products are exact in
    float32's 24 bits, and which therefore survive contraction into a fused multiply-add.
    """
    assert total.lo is not None
    return Sum(*_add_product(total.hi, total.lo, x, weight), None)


def _add_product(
    hi: jax.Array, lo: jax.Array, x: jax.Array, w: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x1 = _cut(x)
    x2 = x - x1
    for term in (w[0] * x1, w[0] * x2, w[1] * x1, w[1] * x2, w[2] * x):
        hi, error = _two_sum(hi, term)
        lo = lo + error
    return hi, lo


def _cut(x: jax.Array) -> jax.Array:
    """float32 numbers cut to 12 significant bits."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return lax.bitcast_convert_type(bits & jnp.int32(-0x1000), jnp.float32)


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``s + e = a + b`` exactly, s the rounded sum (Knuth, TAOCP 2, 4.2.2, theorem B)."""
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def _divide_pair(hi: jax.Array, lo: jax.Array, divisor: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``(hi + lo) / divisor`` as a pair: a float32 quotient, and what its remainder adds."""
    hi, lo = _two_sum(hi, lo)
    quotient = hi / divisor.sum()
    remainder, rest = _add_product(hi, lo, -quotient, divisor)
    return _two_sum(quotient, (remainder + rest) / divisor.sum())


def finish(
    total: Sum, divisor: jax.Array, zero: jax.Array, source: Any, precision: str, dtype: str | None
) -> jax.Array:
    """``total / divisor`` rounded once to `dtype`, or to the dtype of the leaves, `source`."""
    if precision == "compensated":
        assert total.lo is not None
        mean, rest = _divide_pair(total.hi, total.lo, divisor)
    else:
        # XLA turns the division by a broadcast number into a product with its reciprocal, which
        # differs in the last place; a divisor that could differ per element is left alone.
        sums = lax.bitcast_convert_type(total.hi, zero.dtype)
        own = _bits_xor(jnp.broadcast_to(divisor, total.hi.shape), sums & zero)
        mean, rest = total.hi / own, None
        if total.origin is not None:
            mean = jnp.where(mean == 0, total.origin, total.origin + mean)
    out = jnp.dtype(dtype) if dtype else source
    if jnp.issubdtype(source, jnp.complexfloating):
        if not jnp.issubdtype(out, jnp.complexfloating):
            out = jnp.complex128 if out == jnp.float64 else jnp.complex64
        part = jnp.float64 if out == jnp.complex128 else jnp.float32
        return lax.complex(mean[..., 0].astype(part), mean[..., 1].astype(part))
    return _round_once(mean, rest, out)


def _round_once(x: jax.Array, rest: jax.Array | None, dtype: Any) -> jax.Array:
    """``x + rest`` rounded to `dtype` once; `rest` is what a float32 `x` lost to rounding.

    XLA and numpy convert float64 to 16 and 8 bits through float32, which rounds twice. Going
    through float32 "rounded to odd" (truncated, last bit set if anything was cut off) leaves the
    tie-breaking information in place (Boldo and Melquiond 2008).
    """
    if jnp.dtype(dtype).itemsize >= 4:
        return x.astype(dtype)
    f = x.astype(jnp.float32)
    if rest is None:
        rest = x - f.astype(x.dtype)
    bits = lax.bitcast_convert_type(f, jnp.int32)
    # Rounding went away from zero where the rest points back towards it.
    away = (rest != 0) & (jnp.signbit(rest) != jnp.signbit(f))
    bits = bits - away.astype(jnp.int32)
    bits = bits | ((rest != 0) & jnp.isfinite(f)).astype(jnp.int32)
    return lax.bitcast_convert_type(bits, jnp.float32).astype(dtype)
