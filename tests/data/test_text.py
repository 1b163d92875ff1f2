import numpy as np
import pytest

from lawa_jax.data.blocks import complete_blocks
from lawa_jax.data.bpe import BytePairEncoding
from lawa_jax.data.dictionary import Dictionary
from lawa_jax.data.text import (
    binarize,
    build_dictionary,
    embedded_text,
    encode_lines,
    load_data_bin,
    missing_data_bin,
    prepare_text,
)
from lawa_jax.data.token_files import read_token_lines
from lawa_jax.errors import ConfigError, CorruptCheckpointError, DataNotFoundError

LINES = [" the cat sat on the mat \n", "\n", "  \n", "the dog sat\r\n"]


@pytest.fixture(scope="module")
def bpe():
    return BytePairEncoding.train(LINES, 270)


@pytest.fixture(scope="module")
def dictionary(bpe):
    return build_dictionary(LINES, bpe)


def text_of(ids, bpe, dictionary):
    return bpe.decode([int(dictionary.symbols[i]) for i in ids])


def test_lines_are_stripped_encoded_and_ended(bpe, dictionary):
    encoded = list(encode_lines(LINES, bpe, dictionary))
    assert all(line[-1] == 2 for line in encoded)
    assert all(line.dtype == np.int32 for line in encoded)
    texts = [text_of(line[:-1], bpe, dictionary) for line in encoded]
    assert texts == ["the cat sat on the mat", "", "", "the dog sat"]


def test_dictionary_is_by_frequency_then_bpe_id(bpe, dictionary):
    assert len(dictionary) == 270 + 5
    counts = dictionary.counts[4:-1]
    assert list(counts) == sorted(counts, reverse=True)
    zero = [int(s) for s, c in zip(dictionary.symbols[4:-1], counts, strict=True) if c == 0]
    assert zero == sorted(zero)
    assert counts[0] > 0


def test_unknown_tokens_are_counted(bpe, tmp_path):
    ids = bpe.encode(["the dog"])[0]
    small = Dictionary.from_counts({str(i): 1 for i in ids})
    written = binarize(["the dog", "the dog!"], tmp_path / "x", bpe, small)
    assert (written.lines, written.tokens, written.unknown) == (2, 2 * len(ids) + 3, 1)


def test_binarising_a_file_is_binarising_its_lines(bpe, dictionary, tmp_path):
    (tmp_path / "raw.txt").write_text("".join(LINES), newline="")
    from_file = binarize(tmp_path / "raw.txt", tmp_path / "a", bpe, dictionary)
    from_lines = binarize(LINES, tmp_path / "b", bpe, dictionary)
    assert from_file == from_lines
    for ending in ("bin", "idx"):
        files = [(tmp_path / f"{name}.{ending}").read_bytes() for name in "ab"]
        assert files[0] == files[1]


def test_the_embedded_text_is_there_without_repetition():
    texts = embedded_text()
    assert list(texts) == ["train", "valid", "test"]
    characters = {split: sum(map(len, lines)) for split, lines in texts.items()}
    assert characters["train"] > 150_000
    assert 0.03 < characters["valid"] / characters["train"] < 0.3
    assert all(line == line.strip() and line for lines in texts.values() for line in lines)
    long = {split: {x for x in lines if len(x) > 60} for split, lines in texts.items()}
    assert len(long["valid"] & long["train"]) < 0.02 * len(long["valid"])


def test_text_to_data_bin_to_blocks(tmp_path):
    texts = {split: lines[:300] for split, lines in embedded_text().items()}
    written = prepare_text(texts, tmp_path / "data", vocab_size=400)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        *("dict.txt", "encoder.json", "vocab.bpe"),
        *(f"{split}.{end}" for split in ("train", "valid", "test") for end in ("bin", "idx")),
    }
    data = load_data_bin(tmp_path / "data", splits=texts, tokens_per_sample=128)
    assert len(data.dictionary) == 400
    bpe = BytePairEncoding.load(tmp_path / "data")
    for split, lines in texts.items():
        blocks = data.splits[split]
        assert written[split].lines == len(blocks.lines) == 300
        assert written[split].unknown == 0
        # All lines come back, in order.
        ids = np.concatenate([blocks[i][1:] for i in range(len(blocks))])
        ended = np.split(ids, np.flatnonzero(ids == 2) + 1)[:-1]
        assert [text_of(line[:-1], bpe, data.dictionary) for line in ended] == lines


def test_missing_and_damaged_data(tmp_path):
    place = tmp_path / "data"
    with pytest.raises(DataNotFoundError) as error:
        load_data_bin(place)
    assert str(error.value) == missing_data_bin(place, ("train", "valid"))
    for part in ("wikitext-103-raw-v1", "train.bin, train.idx", "encoder.json", "convert/text.py"):
        assert part in str(error.value)
    assert error.value.exit_code == 2

    prepare_text({"train": ["some words", "more words"]}, place, vocab_size=261)
    with pytest.raises(DataNotFoundError, match=r"valid\.bin: no such file"):
        load_data_bin(place)
    (place / "dict.txt").write_text("1 1\n")
    with pytest.raises(CorruptCheckpointError, match="outside the vocabulary of 6 symbols"):
        load_data_bin(place, splits=["train"])
    (place / "dict.txt").unlink()
    with pytest.raises(DataNotFoundError, match="no dictionary"):
        load_data_bin(place, splits=["train"])


def test_empty_lines_only(bpe, dictionary, tmp_path):
    with pytest.raises(ConfigError, match="no text, only empty lines"):
        binarize(["\n", "  \n"], tmp_path / "x", bpe, dictionary)
    assert list(tmp_path.iterdir()) == []
    lines = list(encode_lines(["", " "], bpe, dictionary))
    assert [line.tolist() for line in lines] == [[2], [2]]


def test_raw_text_that_cannot_be_read(bpe, dictionary, tmp_path):
    with pytest.raises(DataNotFoundError, match=r"raw\.txt: no such text file"):
        binarize(tmp_path / "raw.txt", tmp_path / "x", bpe, dictionary)
    (tmp_path / "raw.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(ConfigError, match=r"raw\.txt: not UTF-8 text"):
        binarize(tmp_path / "raw.txt", tmp_path / "x", bpe, dictionary)


def test_too_long_lines_are_skipped(bpe, dictionary, tmp_path):
    binarize(["the cat", "the " * 50], tmp_path / "x", bpe, dictionary)
    lines = read_token_lines(tmp_path / "x")
    assert complete_blocks(lines, 32).usable.tolist() == [0]
