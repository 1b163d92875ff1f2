import pytest

from lawa_jax.data.dictionary import UNK, Dictionary
from lawa_jax.errors import ConfigError, DataNotFoundError


def write(tmp_path, text):
    path = tmp_path / "dict.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_ids_are_special_symbols_then_lines_then_mask(tmp_path):
    dictionary = Dictionary.load(write(tmp_path, "13 800\n262 70\nmadeupword0000 0\n"))
    assert dictionary.symbols == (
        *("<s>", "<pad>", "</s>", "<unk>"),
        *("13", "262", "madeupword0000", "<mask>"),
    )
    assert dictionary.mask_id == 7
    assert dictionary.encode(["262", "13", "nowhere", "</s>"]) == [5, 4, UNK, 2]
    # BPE ids are words: 13 is the word "13", with id 4.
    assert dictionary.lookup(14).tolist() == [UNK] * 13 + [4]


def test_a_symbol_may_hold_spaces_and_line_separators_and_mask_may_be_listed(tmp_path):
    dictionary = Dictionary.load(write(tmp_path, "a b 3\nx\u2028y 2\n<mask> 1\nz 1\n"))
    assert dictionary.symbols[4:] == ("a b", "x\u2028y", "<mask>", "z")
    assert dictionary.mask_id == 6


def test_save_writes_what_load_read(tmp_path):
    text = "13 800\n262 70\n"
    dictionary = Dictionary.load(write(tmp_path, text))
    dictionary.save(tmp_path / "again.txt")
    assert (tmp_path / "again.txt").read_text() == text
    assert Dictionary.from_counts({"13": 800, "262": 70}) == dictionary


def test_overwriting_symbol_takes_the_later_id(tmp_path):
    dictionary = Dictionary.load(write(tmp_path, "a 1\nb 1\na 2 #fairseq:overwrite\n"))
    assert len(dictionary) == 8
    assert dictionary.encode(["a", "b"]) == [6, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("13 800\n262\n", "line 2: expected 'symbol count', found '262'"),
        ("13 many\n", "line 1: expected 'symbol count'"),
        ("13 800\n\n", "line 2: expected 'symbol count'"),
        ("13 800\n13 2\n", "line 2: symbol '13' occurs twice"),
        ("<pad> 3\n", "line 1: symbol '<pad>' occurs twice"),
        ("<mask> 1\n<mask> 1\n", "line 2: symbol '<mask>' occurs twice"),
        ("", "line 1: expected"),
        (b"\xff\xfe1\x003\x00", "not UTF-8 text"),
    ],
)
def test_bad_dictionaries_name_file_and_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        Dictionary.load(write(tmp_path, text))
    assert "dict.txt" in str(error.value)


def test_missing_dictionary(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"dict.txt: no dictionary.*'symbol count'"):
        Dictionary.load(tmp_path / "dict.txt")


def test_special_symbols_cannot_be_ordinary():
    with pytest.raises(ConfigError, match="'<s>' is a special symbol"):
        Dictionary.from_counts({"a": 1, "<s>": 1})
