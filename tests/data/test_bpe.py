import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lawa_jax.data.bpe import BytePairEncoding
from lawa_jax.errors import ConfigError, DataNotFoundError

LINES = ["the cat sat on the mat", "the dog sat on the log", "cats and dogs"] * 5


@pytest.fixture(scope="module")
def bpe():
    return BytePairEncoding.train(LINES, 275)


def write_files(directory, tokens, merges):
    (directory / "encoder.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    text = "#version: 0.2\n" + "".join(f"{m}\n" for m in merges)
    (directory / "vocab.bpe").write_text(text, encoding="utf-8")


def test_merges_in_order_of_rank_by_hand(tmp_path):
    # "Ġ" is the space of byte-level BPE. Of "lower", "l o" merges first, then "lo w", "e r".
    tokens = ["l", "o", "w", "e", "r", "Ġ", "lo", "low", "er", "Ġlow"]
    write_files(tmp_path, tokens, ["l o", "lo w", "e r", "Ġ low"])
    bpe = BytePairEncoding.load(tmp_path)
    assert bpe.encode(["lower low", "wo", ""]) == [[7, 8, 9], [2, 1], []]
    assert bpe.decode([7, 8, 9]) == "lower low"
    assert bpe.size == 10


def test_words_are_split_as_gpt2_splits_them(bpe):
    # Contractions, letters, digits and punctuation never merge with one another.
    for text in ("dog's", "sat12", "the,cat", "a  b"):
        pieces = [bpe.decode([i]) for i in bpe.encode([text])[0]]
        assert "".join(pieces) == text
        assert not any(any(c.isalpha() for c in p) and not p.strip().isalpha() for p in pieces)


def test_training_is_deterministic_and_merges_the_frequent(bpe):
    assert bpe.size == 275
    assert len(bpe.encode(["the cat"])[0]) <= 3
    again = BytePairEncoding.train(LINES, 275)
    assert again.encode(LINES) == bpe.encode(LINES)


def test_saved_files_encode_alike(bpe, tmp_path):
    bpe.save(tmp_path)
    loaded = BytePairEncoding.load(tmp_path)
    lines = [*LINES, "häßlich 日本 \U0001f600", "#version: 0.2"]
    assert loaded.encode(lines) == bpe.encode(lines)
    assert (tmp_path / "vocab.bpe").read_text().startswith("#version: 0.2\n")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_comes_back(bpe, text):
    assert bpe.decode(bpe.encode([text])[0]) == text


def test_what_can_be_wrong(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"encoder\.json: no such file"):
        BytePairEncoding.load(tmp_path)
    write_files(tmp_path, ["a", "b"], ["a c"])
    with pytest.raises(ConfigError, match=r"vocab\.bpe are no byte-pair encoding"):
        BytePairEncoding.load(tmp_path)
    (tmp_path / "encoder.json").write_text("[1")
    with pytest.raises(ConfigError, match="no byte-pair encoding"):
        BytePairEncoding.load(tmp_path)
    with pytest.raises(ConfigError, match="at least 256, not 100 tokens"):
        BytePairEncoding.train(LINES, 100)
