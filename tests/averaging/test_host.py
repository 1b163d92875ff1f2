import math
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from lawa_jax.averaging.device import Accumulator
from lawa_jax.averaging.host import BlockAverage
from lawa_jax.errors import SelectionError

DTYPES = {
    name: np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        "float8_e4m3fn",
        "float8_e5m2",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "complex64",
        "complex128",
    )
}


def numbers(rng, dtype, n):
    """Numbers and means of them that no dtype's range makes subnormal, and zeros of both signs."""
    span = 3 if dtype.itemsize == 1 else 8 if dtype == np.float16 else 40

    def part():
        x = np.ldexp(rng.uniform(0.5, 1, n) * rng.choice([-1, 1], n), rng.integers(-span, span, n))
        return np.where(rng.random(n) < 0.1, np.copysign(0.0, x), x)

    return (part() + 1j * part() if dtype.kind == "c" else part()).astype(dtype)


def mean_of(blocks, weights=None, out=None, block=None):
    weights = [1.0] * len(blocks) if weights is None else weights
    dtype = blocks[0].dtype
    block = block or BlockAverage(blocks[0].size, dtype)
    for x, w in zip(blocks, weights, strict=True):
        block.add(x, w)
    return block.mean(math.fsum(weights), np.dtype(out or dtype))


def same_bits(a, b):
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert_array_equal(a.view(np.uint8), b.view(np.uint8))


def test_by_hand():
    assert_array_equal(mean_of([np.float32([1, 2]), np.float32([3, 6])]), np.float32([2, 4]))
    assert_array_equal(mean_of([np.float32([1]), np.float32([4])], [2, 1]), np.float32([2]))
    assert_array_equal(mean_of([np.float64([1]), np.float64([4])], [2, 1]), [2.0])
    z = mean_of([np.complex64([1 + 2j]), np.complex64([3 - 4j])])
    assert_array_equal(z, np.complex64([2 - 1j]))
    assert_array_equal(mean_of([np.float16([6e4])] * 3), np.float16([6e4]))


@pytest.mark.parametrize("name", DTYPES)
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    k=st.integers(1, 6),
    size=st.sampled_from([1, 5, 64]),
    weighted=st.booleans(),
    out=st.sampled_from([None, "float32", "float64"]),
)
def test_host_and_device_agree_bit_for_bit(name, seed, k, size, weighted, out):
    rng = np.random.default_rng(seed)
    blocks = [numbers(rng, DTYPES[name], size) for _ in range(k)]
    weights = rng.uniform(0.01, 3, k).tolist() if weighted else [1.0] * k
    device = Accumulator(dtype=out, precision="float64")
    for x, w in zip(blocks, weights, strict=True):
        device.add(x, w)
    on_device, on_host = np.asarray(device.result()), mean_of(blocks, weights, out)
    assert on_device.dtype == on_host.dtype
    # Where a mean cancels into the subnormal numbers, XLA may have flushed it.
    parts = [
        x.view(f"f{x.itemsize // 2}") if x.dtype.kind == "c" else x for x in (on_device, on_host)
    ]
    tiny = float(ml_dtypes.finfo(parts[1].dtype).smallest_normal)
    normal = (np.abs(parts[1].astype(np.float64)) >= tiny) | (parts[1] == 0)
    same_bits(parts[0][normal], parts[1][normal])


@pytest.mark.parametrize("name", DTYPES)
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), k=st.integers(1, 6), weighted=st.booleans())
def test_the_average_of_identical_blocks_is_the_block(name, seed, k, weighted):
    rng = np.random.default_rng(seed)
    x = numbers(rng, DTYPES[name], 33)
    same_bits(mean_of([x] * k, rng.uniform(0.01, 3, k).tolist() if weighted else None), x)


@pytest.mark.parametrize("name", DTYPES)
def test_subnormal_numbers_survive(name):
    # Unlike on the device, where XLA may flush them.
    tiny = ml_dtypes.finfo(np.dtype(f"f{DTYPES[name].itemsize // 2}") if "c" in DTYPES[name].kind
                           else DTYPES[name]).smallest_subnormal  # fmt: skip
    x = np.array([tiny, -tiny]).astype(DTYPES[name])
    assert np.all(x != 0)
    same_bits(mean_of([x, x, x]), x)


def test_complex_means_stay_complex():
    z = np.complex64([1 + 2j])
    assert mean_of([z], out="float32").dtype == np.complex64
    assert mean_of([z], out="float64").dtype == np.complex128
    assert mean_of([z], out="bfloat16").dtype == np.complex64
    assert mean_of([z.astype("complex128")], out="complex64").dtype == np.complex64


@pytest.mark.parametrize("name", ["float32", "float64", "complex64"])
def test_buffers_are_reused(name):
    rng, dtype = np.random.default_rng(0), DTYPES[name]
    block = BlockAverage(64, dtype)
    buffers = [block._sum, block._product]
    for size in (64, 3, 17, 64):
        block.reset()
        blocks = [numbers(rng, dtype, size) for _ in range(3)]
        same_bits(mean_of(blocks, block=block), mean_of(blocks))
    assert block._sum is buffers[0]
    assert block._product is buffers[1]


@pytest.mark.parametrize("name", DTYPES)
def test_the_buffers_take_what_is_said(name):
    block = BlockAverage(500_000, DTYPES[name])
    taken = sum(x.nbytes for x in vars(block).values() if isinstance(x, np.ndarray))
    said = 500_000 * BlockAverage.bytes_per_element(DTYPES[name])
    assert said < taken <= said + (1 << 20)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_mean_may_be_read_midway_and_kept(name):
    block, one = BlockAverage(2, DTYPES[name]), np.ones(2, name)
    block.add(one, 1.0)
    first = block.mean(1.0, DTYPES[name])
    block.add(3 * one, 1.0)
    assert_array_equal(block.mean(2.0, DTYPES[name]), 2 * one)
    assert_array_equal(block.mean(2.0, DTYPES[name]), 2 * one)
    assert_array_equal(first, one)


@pytest.mark.parametrize("name", ["float16", "float32", "float64", "complex64"])
def test_blocks_are_neither_changed_nor_kept(name):
    x = np.ones(4, name)
    block = BlockAverage(4, DTYPES[name])
    for i in range(1, 4):
        x[:] = i
        block.add(x, 0.5)
        assert_array_equal(x, np.full(4, i, name))
    x[:] = 99
    assert_array_equal(block.mean(1.5, DTYPES[name]), np.full(4, 2, name))


def test_blocks_of_any_shape_and_layout():
    x = np.arange(6, dtype="f4").reshape(2, 3)
    assert_array_equal(mean_of([x, x + 2]), (x + 1).ravel())
    assert_array_equal(mean_of([x.T, x.T]), x.T.ravel())


@pytest.mark.parametrize("name", DTYPES)
def test_finite_blocks_are_finite(name):
    rng, dtype = np.random.default_rng(0), DTYPES[name]
    block = BlockAverage(64, dtype)
    for _ in range(3):
        block.add(numbers(rng, dtype, 64), 0.7)
    assert block.is_finite()


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0, -1.0])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["float8_e5m2", "float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
)
def test_nan_and_infinity_are_found_wherever_they_are(name, bad, at, weight):
    blocks = [np.ones(65, DTYPES[name]) for _ in range(3)]
    blocks[at][64] = bad
    block = BlockAverage(65, DTYPES[name])
    for x in blocks:
        block.add(x, weight)
    assert not block.is_finite()
    # The next block starts afresh.
    block.reset()
    block.add(np.ones(65, DTYPES[name]), 1.0)
    assert block.is_finite()


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
def test_infinities_that_cancel_are_found(name):
    block = BlockAverage(2, DTYPES[name])
    block.add(np.array([np.inf, 1], name), 1.0)
    block.add(np.array([-np.inf, 1], name), 1.0)
    assert not block.is_finite()
    # Infinities of two elements cancel in the checking sum, not in the verdict.
    block.reset()
    block.add(np.array([np.inf, -np.inf], name), 1.0)
    assert not block.is_finite()


def test_large_numbers_are_finite_though_their_sum_is_not():
    block = BlockAverage(4, DTYPES["float64"])
    block.add(np.full(4, 1e308), 1.0)
    assert block.is_finite()
    assert_array_equal(block.mean(1.0, DTYPES["float64"]), np.full(4, 1e308))


def test_overflow_of_the_output_is_infinite():
    assert_array_equal(mean_of([np.array([1e39, -1e39])], out="float32"), [np.inf, -np.inf])
    assert_array_equal(mean_of([np.complex128([1e39])], out="complex64"), np.complex64([np.inf]))


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8"])
def test_integers_are_not_averaged(dtype):
    with pytest.raises(SelectionError, match=f"leaves of dtype {dtype} are not averaged"):
        BlockAverage(1, np.dtype(dtype))


def test_blocks_that_do_not_fit():
    block = BlockAverage(4, DTYPES["float32"])
    with pytest.raises(ValueError, match=re.escape("a block of at most 4 numbers, found 5")):
        block.add(np.ones(5, "f4"), 1.0)
    block.add(np.ones(3, "f4"), 1.0)
    # One number would broadcast.
    for n in (1, 2, 4):
        with pytest.raises(ValueError, match=re.escape(f"a block of 3 numbers, found {n}")):
            block.add(np.ones(n, "f4"), 1.0)
    assert_array_equal(block.mean(1.0, DTYPES["float32"]), np.ones(3, "f4"))


def test_a_mean_of_nothing():
    block = BlockAverage(4, DTYPES["float32"])
    for _ in range(2):
        with pytest.raises(SelectionError, match="no block was added"):
            block.mean(1.0, DTYPES["float32"])
        block.add(np.ones(4, "f4"), 1.0)
        block.reset()
