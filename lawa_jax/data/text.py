"""Text for masked language modelling: from raw files, fairseq's data-bin, or Python itself.

Everything is trained from one form, a data-bin directory as fairseq-preprocess writes it:
``dict.txt`` and ``{train,valid,test}.{bin,idx}``; `binarize` makes it from raw text.
"""

import contextlib
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
from jaxtyping import Int

from lawa_jax.data.blocks import Blocks, complete_blocks
from lawa_jax.data.bpe import BytePairEncoding
from lawa_jax.data.dictionary import EOS, MASK_SYMBOL, SPECIAL, UNK, Dictionary
from lawa_jax.data.token_files import TokenLines, read_token_lines, write_token_lines
from lawa_jax.errors import ConfigError, DataNotFoundError, OutputExistsError

SPLITS = ("train", "valid", "test")
DICTIONARY_FILE = "dict.txt"

_LINES_AT_ONCE = 4096


class TextData(NamedTuple):
    """A data-bin directory, opened.

    Attributes:
      dictionary: what the ids mean.
      splits: blocks by name of the split.
    """

    dictionary: Dictionary
    splits: dict[str, Blocks]


class Binarized(NamedTuple):
    """What `binarize` wrote: lines, tokens (line ends included), and how many were unknown."""

    lines: int
    tokens: int
    unknown: int


def load_data_bin(
    directory: str | Path,
    *,
    splits: Iterable[str] = ("train", "valid"),
    tokens_per_sample: int = 512,
) -> TextData:
    """Open splits of a data-bin directory, memory-mapped.

    Raises:
      DataNotFoundError: the directory, its dictionary or a split is missing; says how to make it.
      CorruptCheckpointError: damaged files, or ids beyond the dictionary.
      ConfigError: a bad dictionary, empty lines only, or nothing but lines that are too long
        (see `complete_blocks`).
    """
    directory = Path(directory)
    splits = tuple(splits)
    if not directory.is_dir():
        raise DataNotFoundError(missing_data_bin(directory, splits))
    dictionary = Dictionary.load(directory / DICTIONARY_FILE)
    blocks = {}
    for split in splits:
        lines = read_token_lines(directory / split, vocab_size=len(dictionary))
        blocks[split] = complete_blocks(lines, tokens_per_sample)
    return TextData(dictionary, blocks)


def missing_data_bin(directory: str | Path, splits: Iterable[str] = SPLITS) -> str:
    """What to tell a user who has no WikiText-103 yet."""
    files = ", ".join(f"{split}.bin, {split}.idx" for split in splits)
    return (
        f"{directory}: no such directory. Expected a fairseq data-bin with {DICTIONARY_FILE}, "
        f"{files}.\nTo make it: get the raw WikiText-103 (wikitext-103-raw-v1, Merity et al. 2016: "
        "wiki.train.raw, wiki.valid.raw, wiki.test.raw) and the GPT-2 BPE of fairseq's RoBERTa "
        "pretraining guide (encoder.json, vocab.bpe, dict.txt), then\n"
        f"  python convert/text.py {directory} --bpe GPT2_BPE --train wiki.train.raw "
        "--valid wiki.valid.raw --test wiki.test.raw\n(or fairseq-preprocess); --data_dir names "
        "another place. To try without any download:\n"
        "  python train/roberta_wikitext.py --config configs/roberta_tiny.py\n"
        "which trains on the documentation inside Python; --dummy takes random tokens."
    )


def encode_lines(
    lines: Iterable[str], bpe: BytePairEncoding, dictionary: Dictionary
) -> Iterator[Int[np.ndarray, " line"]]:
    """Dictionary ids of each line and ``</s>``, int32, as fairseq's encoder and preprocessing do.

    Whitespace around a line is dropped; an empty line is ``</s>`` alone.
    """
    lookup = dictionary.lookup(bpe.size)
    remaining = iter(lines)
    while chunk := [line.strip() for line in itertools.islice(remaining, _LINES_AT_ONCE)]:
        for bpe_ids in bpe.encode(chunk):
            ids = np.empty(len(bpe_ids) + 1, np.int32)
            ids[:-1] = lookup[bpe_ids]
            ids[-1] = EOS
            yield ids


def binarize(
    source: str | Path | Iterable[str],
    prefix: str | Path,
    bpe: BytePairEncoding,
    dictionary: Dictionary,
    *,
    overwrite: bool = False,
) -> Binarized:
    """Encode raw text into ``PREFIX.bin`` and ``PREFIX.idx``.

    The files equal those of fairseq's ``multiprocessing_bpe_encoder --keep-empty`` followed by
    ``fairseq-preprocess --only-source --srcdict dict.txt``.

    Args:
      source: a UTF-8 text file, or lines.
      prefix: path without the endings, e.g. ``data-bin/train``.
      bpe, dictionary: of the whole data set.
      overwrite: whether existing files may be replaced.

    Raises:
      DataNotFoundError: no such text file.
      ConfigError: text that is not UTF-8, or holds nothing but empty lines.
      OutputExistsError: the files exist.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise DataNotFoundError(f"{path}: no such text file")
        with _utf8(path) as file:
            return _binarize(file, str(path), prefix, bpe, dictionary, overwrite)
    return _binarize(source, f"the text for {prefix}", prefix, bpe, dictionary, overwrite)


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file.

    Raises:
      ConfigError: not UTF-8.
    """
    with _utf8(Path(path)) as file:
        return list(file)


@contextlib.contextmanager
def _utf8(path: Path) -> Iterator[TextIO]:
    try:
        with open(path, encoding="utf-8") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from None


def _binarize(
    lines: Iterable[str],
    label: str,
    prefix: str | Path,
    bpe: BytePairEncoding,
    dictionary: Dictionary,
    overwrite: bool,
) -> Binarized:
    unknown = words = 0

    def counted() -> Iterator[Int[np.ndarray, " line"]]:
        nonlocal unknown, words
        for ids in encode_lines(lines, bpe, dictionary):
            unknown += int((ids == UNK).sum())
            words += len(ids) - 1
            yield ids
        # Raised before the files get their names.
        if not words:
            raise ConfigError(f"{label}: no text, only empty lines")

    # fairseq chooses the dtype before <mask> is added.
    size = len(dictionary) - (dictionary.symbols[-1] == MASK_SYMBOL)
    count, tokens = write_token_lines(prefix, counted(), vocab_size=size, overwrite=overwrite)
    return Binarized(count, tokens, unknown)


def build_dictionary(lines: Iterable[str], bpe: BytePairEncoding) -> Dictionary:
    """A dictionary of all BPE ids, the most frequent in `lines` first (then by id)."""
    counts: Counter[int] = Counter()
    remaining = iter(lines)
    while chunk := [line.strip() for line in itertools.islice(remaining, _LINES_AT_ONCE)]:
        for ids in bpe.encode(chunk):
            counts.update(ids)
    order = sorted(range(bpe.size), key=lambda i: (-counts[i], i))
    return Dictionary.from_counts({str(i): counts[i] for i in order})


def prepare_text(
    texts: dict[str, list[str]],
    directory: str | Path,
    *,
    vocab_size: int = 2_000,
    overwrite: bool = False,
) -> dict[str, Binarized]:
    """Make a data-bin directory of any text: train a byte-level BPE on its ``train`` lines.

    Writes ``encoder.json``, ``vocab.bpe``, ``dict.txt`` and a .bin and .idx for each split.

    Args:
      texts: lines by split; ``train`` is needed.
      directory: made if missing.
      vocab_size: symbols, special ones and ``<mask>`` included; at least 261.
      overwrite: whether existing token files may be replaced.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    bpe = BytePairEncoding.train(texts["train"], vocab_size - len(SPECIAL) - 1)
    dictionary = build_dictionary(texts["train"], bpe)
    bpe.save(directory)
    dictionary.save(directory / DICTIONARY_FILE)
    return {
        split: binarize(lines, directory / split, bpe, dictionary, overwrite=overwrite)
        for split, lines in texts.items()
    }


def embedded_text() -> dict[str, list[str]]:
    """Lines of the language reference inside every CPython (`pydoc_data.topics`), by split.

    Several topics repeat others, so each paragraph is taken once. Of every ten groups of twenty
    consecutive paragraphs one is for validation and one for the test. The text, some 300 thousand
    characters, depends on the Python version.
    """
    from pydoc_data.topics import topics

    paragraphs: dict[str, None] = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            if paragraph.strip():
                paragraphs.setdefault(paragraph)
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    for number, paragraph in enumerate(paragraphs):
        split = {3: "valid", 8: "test"}.get(number // 20 % 10, "train")
        texts[split] += [line.strip() for line in paragraph.splitlines() if line.strip()]
    return texts


def prepare_embedded(directory: str | Path, *, vocab_size: int = 2_000) -> None:
    """Make a data-bin directory of `embedded_text`, unless there is one already.

    It appears under its name when complete. Raises OutputExistsError for a directory of other
    things.
    """
    directory = Path(directory)
    if (directory / DICTIONARY_FILE).exists():
        return
    if directory.exists() and any(directory.iterdir()):
        raise OutputExistsError(
            f"{directory} holds other things than a data-bin; choose another --data_dir"
        )
    aside = directory.with_name(f"{directory.name}.{os.getpid()}.partial")
    try:
        prepare_text(embedded_text(), aside, vocab_size=vocab_size)
        # Another process may have been faster; what it made is the same.
        with contextlib.suppress(OSError):
            os.rename(aside, directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def dummy_text(
    blocks: int, *, max_tokens: int = 512, vocab_size: int = 50_265, seed: int = 0
) -> TextData:
    """Random tokens in blocks of full length; an eighth as many for validation and test."""
    dictionary = Dictionary.from_counts({str(i): 1 for i in range(vocab_size - len(SPECIAL) - 1)})
    splits = {}
    for number, (split, count) in enumerate(
        (("train", blocks), ("valid", blocks // 8), ("test", blocks // 8))
    ):
        random = np.random.default_rng((seed, number))
        lines = random.integers(
            len(SPECIAL), vocab_size - 1, (max(1, count), max_tokens - 1), np.int32
        )
        lines[:, -1] = EOS
        sizes = np.full(len(lines), max_tokens - 1, np.int64)
        splits[split] = complete_blocks(
            TokenLines(lines.reshape(-1), sizes, f"dummy {split}"), max_tokens
        )
    return TextData(dictionary, splits)
