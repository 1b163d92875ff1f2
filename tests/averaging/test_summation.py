"""One rounding, exact pieces, and the error bound of compensated float32."""

import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from lawa_jax.averaging import host, summation
from lawa_jax.averaging.device import Accumulator, average
from lawa_jax.errors import SelectionError

SMALL = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e3m4": ml_dtypes.float8_e3m4,
}


def ladder(dtype):
    """All finite numbers >= 0 of a dtype in order, which is that of their bits: float64[n]."""
    dtype = np.dtype(dtype)
    x = np.arange(2 ** (8 * dtype.itemsize - 1)).astype(f"u{dtype.itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        x = x.astype(np.float64)
    return x[np.isfinite(x)]


def nearest(x, dtype):
    """The number of `dtype` nearest to each float64, ties to even bits; exact, and slow to fool."""
    numbers = ladder(dtype)
    above = np.clip(np.searchsorted(numbers, np.abs(x)), 1, len(numbers) - 1)
    low, high = numbers[above - 1], numbers[above]
    # Numbers of 16 bits and their midpoints are exact in float64, and so the comparison is.
    middle = (low + high) / 2
    up = (np.abs(x) > middle) | ((np.abs(x) == middle) & (above % 2 == 0))
    return np.copysign(np.where(up, high, low), x)


def on_host(x, dtype):
    return host.round_once(x, dtype)


def on_device(x, dtype):
    with jax.enable_x64(True):
        # Jitted, as XLA's conversions inside a fusion are what is used.
        return np.asarray(jax.jit(summation._round_once, static_argnums=(1, 2))(x, None, dtype))


def on_device_from_pairs(x, dtype):
    hi = x.astype(np.float32)
    lo = (x - hi).astype(np.float32)
    return np.asarray(jax.jit(summation._round_once, static_argnums=2)(hi, lo, dtype))


ROUNDINGS = [on_host, on_device, on_device_from_pairs]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", SMALL)
def test_numbers_and_neighbourhoods_of_midpoints_are_rounded_once(rounding, name):
    dtype = np.dtype(SMALL[name])
    numbers = ladder(dtype)
    if name == "bfloat16":
        # Its subnormals are float32's, which XLA may flush; so are their remainders.
        numbers = numbers[numbers >= 2.0**-70]
    middle = (numbers[:-1] + numbers[1:]) / 2
    # float32 can hold the midpoints, not these distances from them.
    near = [middle * (1 + sign * 2.0**-power) for sign in (1, -1) for power in (30, 40, 45)]
    x = np.concatenate([numbers, middle, *near, numbers * (1 + 2.0**-45)])
    x = np.concatenate([x, -x])
    got = rounding(x, dtype)
    assert got.dtype == dtype
    expected = nearest(x, dtype)
    assert_array_equal(got.astype(np.float64), expected)
    assert_array_equal(np.signbit(got.astype(np.float64)), np.signbit(expected))


@pytest.mark.parametrize("rounding", [on_host, on_device])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_overflow_and_nan(rounding, name):
    dtype = np.dtype(SMALL[name])
    largest = float(ml_dtypes.finfo(dtype).max)
    x = np.array([1e39, -1e39, 1e300, np.inf, -np.inf, np.nan, largest, -largest])
    got = rounding(x, dtype).astype(np.float64)
    assert_array_equal(got, [*np.array([1, -1, 1, 1, -1]) * np.inf, np.nan, largest, -largest])


@pytest.mark.parametrize("rounding", [on_host, on_device])
def test_wide_dtypes_are_converted(rounding):
    x = np.array([1 / 3, 1 + 2**-24, -(1 + 2**-24 + 2**-50), 1e39])
    assert_array_equal(rounding(x, np.dtype("float64")), x)
    assert_array_equal(
        rounding(x, np.dtype("float32")),
        np.array([11184811 / 2**25, 1, -(1 + 2**-23), np.inf], np.float32),
    )


def test_rounding_does_not_touch_its_input():
    x = np.array([1 / 3, 2 / 3])
    for dtype in ("float16", "float32", "float64"):
        y = host.round_once(x, np.dtype(dtype))
        y += 1
        assert_array_equal(x, [1 / 3, 2 / 3])


def bits_of(x):
    """Number of significant bits of a float."""
    n = abs(Fraction(float(x)).numerator)
    return n.bit_length() if n % 2 else (n // (n & -n or 1)).bit_length()


@given(st.floats(-(2.0**32), 2.0**32).filter(lambda w: abs(w) > 2.0**-60))
def test_pieces_of_a_weight(w):
    pieces = summation._pieces(np.float64([w]))[0]
    assert pieces.dtype == np.float32
    assert max(map(bits_of, pieces[:2])) <= 12
    missed = sum(Fraction(float(p)) for p in pieces) - Fraction(w)
    assert abs(missed) <= Fraction(abs(w)) / 2**46


@given(st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100, allow_subnormal=False))
def test_cut_leaves_two_halves_of_12_bits(x):
    head = np.asarray(summation._cut(jnp.float32(x)))
    tail = np.float32(x) - head
    assert bits_of(head) <= 12
    assert bits_of(tail) <= 12
    assert Fraction(float(head)) + Fraction(float(tail)) == Fraction(x)


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_two_sum_is_free_of_error(seed):
    rng = np.random.default_rng(seed)
    a, b = (np.ldexp(rng.normal(size=64), rng.integers(-30, 30, 64)).astype("f4") for _ in "ab")
    s, e = map(np.asarray, jax.jit(summation._two_sum)(a, b))
    assert_array_equal(s, a + b)
    for i in range(64):
        assert Fraction(float(s[i])) + Fraction(float(e[i])) == Fraction(float(a[i])) + Fraction(
            float(b[i])
        )


def exact_mean(column, weights):
    total = sum(map(Fraction, weights))
    products = [
        Fraction(w) * Fraction(float(x)) / total for w, x in zip(weights, column, strict=True)
    ]
    return sum(products), sum(map(abs, products))


def check_bound(columns, weights):
    """float32[k, n] against exact arithmetic, in the pair that comes before the last rounding."""
    k = len(columns)
    acc = Accumulator(precision="compensated")
    for x, w in zip(columns, weights, strict=True):
        acc.add(x, w)
    rounded = np.asarray(acc.result())
    _, divisor, _ = summation.operands([1.0], float(np.sum(weights)), "compensated")
    (total,) = acc._sums
    hi, lo = map(np.asarray, jax.jit(summation._divide_pair)(total.hi, total.lo, divisor))
    for i in range(columns.shape[1]):
        exact, size = exact_mean(columns[:, i], weights)
        slack = Fraction(k) / (2**120 * abs(sum(map(Fraction, weights))))
        bound = (abs(exact) + 2 * k * k * size) / 2**44 + slack
        error = abs(Fraction(float(hi[i])) + Fraction(float(lo[i])) - exact)
        assert error <= bound, (columns[:, i], weights, float(exact), float(error / bound))
        # Rounding to float32 adds half a unit in its last place.
        assert abs(Fraction(float(rounded[i])) - exact) <= bound * 2 + abs(exact) / 2**24


def wide_range(rng, k, n=24, low=-40, high=40):
    return np.ldexp(rng.normal(size=(k, n)), rng.integers(low, high, (k, n))).astype("f4")


def cancelling(rng, k, n=24):
    x = wide_range(rng, k, n, -4, 4)
    x[k // 2 : 2 * (k // 2)] = -x[: k // 2] * np.float32(1 + 2**-20)
    return x


def alike(rng, k, n=24):
    start = rng.normal(size=n)
    return (start + 1e-5 * rng.normal(size=(k, n))).astype("f4")


@pytest.mark.parametrize("make", [wide_range, cancelling, alike])
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 12), weighted=st.sampled_from("usn"))
def test_compensated_sums_keep_their_bound(make, seed, k, weighted):
    rng = np.random.default_rng(seed)
    weights = {
        "u": np.ones(k),
        "s": rng.uniform(0.01, 1, k) * 10.0 ** rng.integers(-6, 6),  # normalised to anything
        "n": np.where(rng.random(k) < 0.3, -0.3, 1.0) * rng.uniform(0.5, 1.5, k),
    }[weighted].tolist()
    if abs(sum(weights)) < 1e-3 * sum(map(abs, weights)):
        weights = [1.0] * k
    check_bound(make(rng, k), weights)


def test_compensated_means_differ_from_float64_ones_only_next_to_ties():
    x = np.random.default_rng(0).normal(size=(10, 1000)).astype("f4")
    plain = np.asarray(average(list(x), precision="float64"))
    compensated = np.asarray(average(list(x), precision="compensated"))
    for i in np.flatnonzero(compensated != plain):
        exact, _ = exact_mean(x[:, i], [1.0] * 10)
        low, high = (Fraction(float(y[i])) for y in (plain, compensated))
        assert abs(exact - (low + high) / 2) <= abs(exact) / 2**44
    # Every tenth sum is a tie at worst; float32 sums differ far more often.
    naive = np.add.reduce(x, axis=0) / np.float32(10)
    assert np.mean(compensated != plain) < 0.1 < 0.2 < np.mean(naive != plain)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float8_e4m3fn", "complex64"])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 9), weighted=st.booleans())
def test_compensated_average_of_identical_trees_is_the_tree(name, seed, k, weighted):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(SMALL.get(name, name))
    x = rng.normal(size=16) * 4 + 1j * rng.normal(size=16)
    x = (x if name == "complex64" else x.real).astype(dtype)
    acc = Accumulator(precision="compensated")
    for w in rng.uniform(0.01, 3, k) if weighted else np.ones(k):
        acc.add(x, w)
    result = acc.result()
    assert result.dtype == dtype
    assert_array_equal(np.asarray(result).view(np.uint8), x.view(np.uint8))


def test_compensated_means_next_to_a_tie_are_rounded_once():
    trees = [jnp.array([1, -1], "bfloat16"), jnp.array([1 + 2**-7, -1 - 2**-7], "bfloat16")]
    for e, expected in ((2**-30, 1 + 2**-7), (-(2**-30), 1)):
        got = average(trees, [1 - e, 1 + e], precision="compensated")
        assert_array_equal(np.asarray(got).astype("f4"), [expected, -expected])


def test_compensated_streaming_gives_the_same_bits():
    x = wide_range(np.random.default_rng(1), 5)
    weights = [0.3, 1, 2.5, 0.7, 1e-3]
    acc = Accumulator(precision="compensated")
    for column, w in zip(x, weights, strict=True):
        acc.add(column, w)
    assert_array_equal(acc.result(), average(list(x), weights, precision="compensated"))


def test_compensated_weights_out_of_float32s_reach():
    x = jnp.ones(2)
    for weights in ([1e39, 1.0], [1e-20, 1e-20]):
        with pytest.raises(SelectionError, match=re.escape("of at most 2^32 with a sum of at lea")):
            average([x, x], weights, precision="compensated")
        # float64 has no such limits.
        assert_array_equal(average([x, x], weights, precision="float64"), x)
    acc = Accumulator(precision="compensated")
    with pytest.raises(SelectionError, match="scale them"):
        acc.add(x, 1e39)


def test_precision_follows_the_backend(monkeypatch):
    assert summation.resolve("auto") == "float64"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert summation.resolve("auto") == "compensated"
    assert summation.resolve("float64") == "float64"
