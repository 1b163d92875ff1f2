"""Digests: published values, additivity over any cut, and what they detect."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lawa_jax.trajectory import digest

MASK = (1 << 64) - 1


def splitmix64(state):
    z = (state * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def by_the_formula(array):
    """The definition, word by word, in Python integers."""
    words = np.frombuffer(array.tobytes(), f"<u{min(array.itemsize, 4)}")
    total = 0
    for i, bits in enumerate(words.tolist()):
        multiplier = (splitmix64(i % 2**14) | 1) * (splitmix64(i // 2**14 + 0x6C617761) | 1)
        total += (bits + 1) * multiplier
    return total & MASK


# Stored digests must stay readable: these values never change.
VECTORS = [
    (np.zeros((), np.float32), "99472d00d3fd703f"),
    (np.arange(6, dtype=np.float32).reshape(2, 3), "c20a265443ff3b06"),
    (np.array([True, False]), "e6f8b3195d3e63a3"),
    (np.arange(-2, 2, dtype=np.int8), "7ca8fe1f314f88da"),
    (np.array([1.5, -2.0], ml_dtypes.bfloat16), "89f842d5885063a4"),
    (np.array([1.5, -2.0], np.float16), "4d6981628ccbf564"),
    (np.array([1.5, -2.0], np.float64), "d3b47c24c6097ce0"),
    (np.array([1.5 - 2.0j], np.complex64), "0a6e8527f980f364"),
    (np.arange(40000, dtype=np.int64), "0fc9065c6356011c"),
    (np.zeros((0, 3), np.float32), "0000000000000000"),
]


@pytest.mark.parametrize(("array", "expected"), VECTORS)
def test_published_vectors(array, expected):
    assert digest.to_hex(digest.leaf_digest(array)) == expected
    assert digest.leaf_digest(array) == by_the_formula(array)


def test_the_generator_is_splitmix64():
    # First outputs for seed 0, from the reference implementation (prng.di.unimi.it/splitmix64.c).
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [splitmix64(i) for i in range(3)] == first
    assert digest._splitmix64(np.arange(3, dtype=np.uint64)).tolist() == first


DTYPES = [
    "bool",
    "int8",
    "uint16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "bfloat16",
    "float8_e4m3fn",
    "int4",
]


def random_array(seed, shape, dtype):
    r = np.random.default_rng(seed)
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    if dtype.name in ("bool", "int4"):
        return r.integers(0, 2, shape).astype(dtype)
    return r.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype).reshape(shape)


@st.composite
def cuts(draw):
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=0, max_size=4)))
    chunk = tuple(draw(st.integers(1, n)) for n in shape)
    return shape, chunk


@given(cut=cuts(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_digests_add_up_over_any_grid(cut, dtype, seed):
    shape, chunk = cut
    array = random_array(seed, shape, dtype)
    parts = []
    for position in np.ndindex(*(-(-n // c) for n, c in zip(shape, chunk, strict=True))):
        index = tuple(
            slice(p * c, min((p + 1) * c, n))
            for p, c, n in zip(position, chunk, shape, strict=True)
        )
        parts.append(digest.leaf_digest_block(array[index], shape, index))
    assert digest.combine(*parts) == digest.leaf_digest(array) == by_the_formula(array)


@pytest.mark.parametrize("columns", [7, 900, 1024, 3000, 20000])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_column_blocks_of_every_width(columns, dtype):
    # Widths on both sides of the switch between looping and gathering, crossing table blocks.
    width = 2 * columns + 11
    rows = max(5, 60_000 // width)
    array = random_array(1, (rows, width), dtype)
    bounds = [0, columns, 2 * columns, array.shape[1]]
    parts = [
        digest.leaf_digest_block(
            array[:, low:high], array.shape, (slice(0, rows), slice(low, high))
        )
        for low, high in itertools.pairwise(bounds)
    ]
    assert digest.combine(*parts) == digest.leaf_digest(array)


@given(
    dtype=st.sampled_from(["uint8", "float16", "float32", "float64", "complex64"]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_any_flipped_bit_is_detected(dtype, seed, data):
    array = random_array(seed, (5, 7), dtype)
    changed = array.copy()
    bit = data.draw(st.integers(0, array.nbytes * 8 - 1))
    changed.reshape(-1).view(np.uint8)[bit // 8] ^= np.uint8(1 << bit % 8)
    assert digest.leaf_digest(changed) != digest.leaf_digest(array)


@pytest.mark.parametrize("dtype", ["uint8", "bfloat16", "float32", "float64"])
def test_swaps_moves_and_sign_flips_are_detected(dtype):
    array = np.linspace(-4, 4, 64).astype(getattr(ml_dtypes, dtype, dtype))
    seen = {digest.leaf_digest(array)}
    count = 1
    for i in range(63):
        swapped = array.copy()
        swapped[[i, 63]] = swapped[[63, i]]
        if swapped.tobytes() != array.tobytes():
            seen.add(digest.leaf_digest(swapped))
            count += 1
    for changed in (np.roll(array, 1), array[::-1].copy(), -array, array.reshape(8, 8).T.copy()):
        seen.add(digest.leaf_digest(changed))
        count += 1
    # A pair of sign bits: where a plain product mod 2**64 is weakest.
    for i in range(0, 62, 2):
        flipped = array.copy()
        top = flipped.view(f"u{array.itemsize}")
        top[[i, i + 1]] ^= np.array(1 << (8 * array.itemsize - 1), top.dtype)
        seen.add(digest.leaf_digest(flipped))
        count += 1
    # -array equals the reversal of a symmetric ramp.
    assert len(seen) >= count - 1


def test_a_missing_block_of_zeros_is_missed_by_nobody():
    zeros = np.zeros((4, 4), np.float32)
    top = digest.leaf_digest_block(zeros[:2], (4, 4), (slice(0, 2), slice(0, 4)))
    assert top != digest.leaf_digest(zeros)


def test_layout_in_memory_does_not_matter():
    array = random_array(3, (6, 5), "float32")
    assert digest.leaf_digest(np.asfortranarray(array)) == digest.leaf_digest(array)
    assert digest.leaf_digest(array.astype(">f4")) == digest.leaf_digest(array)
    assert digest.strong_digest(np.asfortranarray(array)) == digest.strong_digest(array)


def test_strong_digest_is_sha256():
    abc = np.frombuffer(b"abc", np.uint8)
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest.strong_digest(abc) == expected


def test_wrong_blocks_are_refused():
    block = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError, match=r"block \(2, 2\) does not fit index"):
        digest.leaf_digest_block(block, (4, 4), (slice(0, 2), slice(3, 5)))
    with pytest.raises(ValueError, match="does not fit index"):
        digest.leaf_digest_block(block, (4, 4), (slice(0, 2),))
    with pytest.raises(TypeError, match="no digest for arrays of dtype object"):
        digest.leaf_digest(np.array(["x", None], object))


@settings(max_examples=5)
@given(seed=st.integers(0, 9))
def test_threads_do_not_disturb_each_other(seed):
    from concurrent.futures import ThreadPoolExecutor

    arrays = [random_array(seed + i, (40_000,), "float32") for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(digest.leaf_digest, arrays))
    assert together == [digest.leaf_digest(a) for a in arrays]
