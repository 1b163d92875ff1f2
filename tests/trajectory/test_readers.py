"""The raw reader and TensorStore give the same bits for any shape, dtype, chunk grid and block."""

import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.output import StepWriter
from lawa_jax.trajectory import open_checkpoint, stored_digest
from lawa_jax.trajectory.digest import leaf_digest
from lawa_jax.trajectory.formats import raw_chunks
from lawa_jax.trajectory.formats.zarr_header import parse_header
from lawa_jax.trajectory.partition import blocks
from lawa_jax.tree import LeafSpec

DTYPES = [
    "bool",
    "int8",
    "int64",
    "uint16",
    "float16",
    "float32",
    "float64",
    "complex64",
    "bfloat16",
    "float8_e4m3fn",
    "int4",
]


def random_array(seed, shape, dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    r = np.random.default_rng(seed)
    if dtype.name in ("bool", "int4"):
        return r.integers(0, 2, shape).astype(dtype)
    return r.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype).reshape(shape)


@st.composite
def stored_arrays(draw):
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=0, max_size=4)))
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    blocks = []
    for _ in range(3):
        starts = [draw(st.integers(0, n - 1)) for n in shape]
        index = [slice(a, draw(st.integers(a + 1, n))) for a, n in zip(starts, shape, strict=True)]
        blocks.append(tuple(index))
    array = random_array(draw(st.integers(0, 99)), shape, draw(st.sampled_from(DTYPES)))
    return array, chunks, blocks


def write_with_tensorstore(directory, array, chunks):
    import tensorstore as ts

    metadata = {
        "chunks": list(chunks),
        "compressor": None,
        "dtype": array.dtype.name if array.dtype.name in dir(ml_dtypes) else array.dtype.str,
        "fill_value": None,
        "filters": None,
        "order": "C",
        "shape": list(array.shape),
        "zarr_format": 2,
    }
    store = ts.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{directory}/x/"},
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        },
        context=ts.Context({"file_io_sync": False}),
        create=True,
    ).result()
    store[...] = array


@settings(max_examples=100)
@given(stored=stored_arrays(), scratch=st.sampled_from([1, 64, 1 << 22]))
def test_both_readers_agree_on_what_tensorstore_wrote(stored, scratch):
    array, chunks, indices = stored
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_chunks, "_SCRATCH_BYTES", scratch)
        write_with_tensorstore(directory, array, chunks)
        checkpoint = open_checkpoint(directory)  # no _METADATA: found by its folders
        through_tensorstore = open_checkpoint(directory, in_place=False)
        assert checkpoint.is_raw("x")
        assert checkpoint.leaves["x"] == LeafSpec(array.shape, array.dtype)
        assert checkpoint.chunk_shape("x") == chunks
        assert checkpoint.read_leaf("x").tobytes() == array.tobytes()
        assert stored_digest(checkpoint, "x") == leaf_digest(array)
        for index in indices:
            raw, slow = np.empty_like(array[index]), np.empty_like(array[index])
            checkpoint.read("x", index, raw)
            through_tensorstore.read("x", index, slow)
            assert raw.tobytes() == slow.tobytes() == array[index].tobytes()


@settings(max_examples=40)
@given(stored=stored_arrays(), limit=st.sampled_from([1, 40, 500, 1 << 20]))
def test_blocks_written_in_any_order_are_read_back(stored, limit):
    array, chunks, _ = stored
    spec = LeafSpec(array.shape, array.dtype)
    cut = list(blocks(spec, chunks, limit))
    order = np.random.default_rng(limit).permutation(len(cut))
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda fd: None)  # fifty times slower, and tested elsewhere
        target = Path(directory, "1")
        with StepWriter(target, {"x": spec}, {"x": ("x",)}, chunks={"x": chunks}) as writer:
            for i in order:
                writer.write("x", cut[i], array[cut[i]])
            writer.finish()
        checkpoint = open_checkpoint(target)
        assert checkpoint.read_leaf("x").tobytes() == array.tobytes()


def test_one_contiguous_block_is_one_read(monkeypatch, tmp_path):
    array = random_array(0, (16, 8, 4), "float32")
    write_with_tensorstore(tmp_path, array, array.shape)
    calls = []
    real = raw_chunks.os.preadv

    def counted(fd, buffers, offset):
        calls.append((len(buffers[0]), offset))
        return real(fd, buffers, offset)

    monkeypatch.setattr(raw_chunks.os, "preadv", counted)
    checkpoint = open_checkpoint(tmp_path)
    out = np.empty((5, 8, 4), np.float32)
    checkpoint.read("x", (slice(3, 8), slice(0, 8), slice(0, 4)), out)
    assert calls == [(5 * 8 * 4 * 4, 3 * 8 * 4 * 4)]
    one_row = np.empty((1, 3, 4), np.float32)
    checkpoint.read("x", (slice(3, 4), slice(2, 5), slice(0, 4)), one_row)
    assert calls[1:] == [(3 * 4 * 4, (3 * 8 + 2) * 4 * 4)]


def test_short_reads_are_continued(monkeypatch, tmp_path):
    array = random_array(0, (1000,), "float32")
    write_with_tensorstore(tmp_path, array, array.shape)
    real = raw_chunks.os.preadv
    monkeypatch.setattr(raw_chunks.os, "preadv", lambda fd, b, o: real(fd, [b[0][:7]], o))
    assert open_checkpoint(tmp_path).read_leaf("x").tobytes() == array.tobytes()


def test_headers():
    text = """{"chunks":[2],"compressor":null,"dtype":"bfloat16","fill_value":null,
    "filters":null,"order":"C","shape":[3],"zarr_format":2}"""
    header = parse_header(text, "a.zarray")
    assert header.grid == (2,)
    assert header.chunk_nbytes == 4
    assert header.is_raw
    assert not parse_header(text.replace('"C"', '"F"'), "a.zarray").is_raw
    big_endian = parse_header(text.replace("bfloat16", ">f4"), "a.zarray")
    assert not big_endian.is_raw
    assert big_endian.dtype == np.float32
    for wrong in ("", "[]", text.replace("[2]", "[0]"), text.replace("bfloat16", "nonsense")):
        with pytest.raises(CorruptCheckpointError, match=r"a\.zarray"):
            parse_header(wrong, "a.zarray")


def test_threads_may_read_at_once(foreign, expected):
    from concurrent.futures import ThreadPoolExecutor

    for name in ("raw", "state"):
        checkpoint = open_checkpoint(foreign / name)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(checkpoint.read_leaf, list(checkpoint.leaves) * 5))
        for leaf, array in zip(list(checkpoint.leaves) * 5, found, strict=True):
            assert array.tobytes() == expected(name)[leaf].tobytes()
