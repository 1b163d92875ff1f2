import struct

import numpy as np
import pytest

from lawa_jax.data.token_files import (
    TokenLines,
    check_ids,
    read_token_lines,
    token_dtype,
    write_token_lines,
)
from lawa_jax.errors import CorruptCheckpointError, DataNotFoundError, OutputExistsError

LINES = [[5, 6, 2], [2], [9, 2]]


@pytest.fixture
def prefix(tmp_path):
    path = tmp_path / "train"
    assert write_token_lines(path, map(np.asarray, LINES), vocab_size=10) == (3, 6)
    return path


def test_bytes_are_those_of_fairseqs_format(prefix):
    assert prefix.with_suffix(".bin").read_bytes() == struct.pack("<6H", 5, 6, 2, 2, 9, 2)
    assert prefix.with_suffix(".idx").read_bytes() == (
        b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, 8, 3) + struct.pack("<3i3q", 3, 1, 2, 0, 6, 8)
    )
    assert sorted(path.name for path in prefix.parent.iterdir()) == ["train.bin", "train.idx"]


def test_reading_gives_what_was_written(prefix):
    lines = read_token_lines(prefix, vocab_size=10)
    assert isinstance(lines.tokens, np.memmap)
    assert lines.tokens.tolist() == [5, 6, 2, 2, 9, 2]
    assert lines.sizes.tolist() == [3, 1, 2]
    assert lines.starts.tolist() == [0, 3, 4]
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("symbols", "dtype"),
    [(65_499, "uint16"), (65_500, "uint32"), (4_294_967_294, "uint32"), (4_294_967_295, "int64")],
)
def test_dtype_is_the_smallest_that_fairseq_takes(tmp_path, symbols, dtype):
    assert token_dtype(symbols) == dtype
    write_token_lines(tmp_path / "x", [np.asarray([symbols - 1])], vocab_size=symbols)
    lines = read_token_lines(tmp_path / "x")
    assert (lines.tokens.dtype, int(lines.tokens[0])) == (dtype, symbols - 1)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 8, 9])
def test_every_integer_dtype_of_fairseq_is_read(tmp_path, code):
    letter = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H", 9: "I"}[code]
    (tmp_path / "x.bin").write_bytes(struct.pack(f"<2{letter}", 7, 2))
    (tmp_path / "x.idx").write_bytes(
        b"MMIDIDX\0\0" + struct.pack("<QBQ", 1, code, 1) + struct.pack("<iq", 2, 0)
    )
    assert read_token_lines(tmp_path / "x").tokens.tolist() == [7, 2]


def test_an_empty_file_has_no_lines(tmp_path):
    write_token_lines(tmp_path / "x", [], vocab_size=10)
    assert len(read_token_lines(tmp_path / "x", vocab_size=10)) == 0


def test_missing_files_are_named(prefix):
    prefix.with_suffix(".idx").unlink()
    with pytest.raises(DataNotFoundError, match=r"train\.idx: no such file.*fairseq-preprocess"):
        read_token_lines(prefix)
    with pytest.raises(DataNotFoundError, match=r"valid\.bin: no such file"):
        read_token_lines(prefix.with_name("valid"))


def test_truncated_bin(prefix):
    binary = prefix.with_suffix(".bin")
    binary.write_bytes(binary.read_bytes()[:-1])
    with pytest.raises(
        CorruptCheckpointError, match=r"train\.bin: truncated.*3 lines.*12 bytes; found 11 bytes"
    ):
        read_token_lines(prefix)


def test_index_of_another_bin(prefix):
    write_token_lines(prefix.with_name("other"), [np.asarray([2])], vocab_size=10)
    prefix.with_name("other.idx").replace(prefix.with_suffix(".idx"))
    with pytest.raises(CorruptCheckpointError, match=r"longer than described.*2 bytes; found 12"):
        read_token_lines(prefix)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:-1], "3 lines need 62 bytes, found 61"),
        (lambda b: b + b"\0", "3 lines need 62 bytes, found 63"),
        (lambda b: b[:20], "truncated: 20 bytes, no whole header"),
        (lambda b: b"TNTIDX\0\0\0" + b[9:], r"expected fairseq's mmap index.*TNTIDX"),
        (lambda b: b[:9] + b"\2" + b[10:], "found version 2 and code 8"),
        (lambda b: b[:17] + b"\6" + b[18:], "found version 1 and code 6"),
        (lambda b: b[:26] + struct.pack("<3i", 1, 3, 2) + b[38:], "pointers do not follow"),
        (lambda b: b[:26] + struct.pack("<3i", 5, -1, 2) + b[38:], "negative line length -1"),
    ],
)
def test_damaged_index(prefix, damage, message):
    index = prefix.with_suffix(".idx")
    index.write_bytes(damage(index.read_bytes()))
    with pytest.raises(CorruptCheckpointError, match=message) as error:
        read_token_lines(prefix)
    assert "train.idx" in str(error.value)


def test_ids_beyond_the_vocabulary_name_id_and_line(prefix):
    with pytest.raises(
        CorruptCheckpointError, match=r"train: token id 9 in line 3 is outside.*of 9 symbols"
    ):
        read_token_lines(prefix, vocab_size=9)
    negative = TokenLines(np.asarray([4, -1]), np.asarray([2]))
    with pytest.raises(CorruptCheckpointError, match="token id -1 in line 1"):
        check_ids(negative, 9)


def test_writing_refuses_ids_beyond_the_vocabulary_and_leaves_nothing(tmp_path):
    with pytest.raises(CorruptCheckpointError, match="line 2 holds id 10"):
        write_token_lines(tmp_path / "x", [np.asarray([9]), np.asarray([1, 10])], vocab_size=10)
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_kept_unless_told(prefix):
    with pytest.raises(OutputExistsError, match=r"train\.bin exists"):
        write_token_lines(prefix, [np.asarray([2])], vocab_size=10)
    assert len(read_token_lines(prefix)) == 3
    write_token_lines(prefix, [np.asarray([2])], vocab_size=10, overwrite=True)
    assert len(read_token_lines(prefix)) == 1
