"""fairseq's memory-mapped token files: ``NAME.bin`` (the ids) and ``NAME.idx`` (line lengths).

Layout of the index, little-endian: magic ``MMIDIDX\\0\\0``, version 1 (uint64), dtype code
(uint8), number of lines n (uint64), n sizes (int32, in tokens), n pointers (int64, in bytes).
"""

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lawa_jax.errors import CorruptCheckpointError, DataNotFoundError, OutputExistsError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQ")
# fairseq's codes; 6 and 7 are floating point there and make no sense for tokens.
_DTYPES = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
    9: np.uint32,
}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class TokenLines:
    """Lines of token ids behind one another, each ended by ``</s>``.

    Attributes:
      tokens: all ids; a read-only memory map when read from files.
      sizes: tokens of each line, int64.
      label: where they come from, for messages.
    """

    tokens: Int[np.ndarray, " tokens"]
    sizes: Int[np.ndarray, " lines"]
    label: str = "tokens"

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def starts(self) -> Int[np.ndarray, " lines"]:
        """Index of each line's first token."""
        return np.cumsum(self.sizes) - self.sizes


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype fairseq stores ids of a vocabulary in: uint16 below 65,500 symbols, then wider."""
    if vocab_size < 65_500:
        return np.dtype(np.uint16)
    return np.dtype(np.uint32 if vocab_size < 4_294_967_295 else np.int64)


def read_token_lines(prefix: str | Path, *, vocab_size: int | None = None) -> TokenLines:
    """Map ``PREFIX.bin``, described by ``PREFIX.idx``.

    Args:
      prefix: path without the endings, e.g. ``data-bin/train``.
      vocab_size: if given, every id must be below it (one pass over the file).

    Raises:
      DataNotFoundError: one of the files is missing.
      CorruptCheckpointError: not an index, a truncated file, an index that does not describe
        this ``.bin``, or ids beyond the vocabulary.
    """
    binary, index = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    for path in (binary, index):
        if not path.is_file():
            raise DataNotFoundError(
                f"{path}: no such file; a split is a pair of fairseq files .bin and .idx, written "
                "by fairseq-preprocess (--dataset-impl mmap) or by binarize"
            )
    sizes, pointers, dtype = _read_index(index)
    stored = binary.stat().st_size
    expected = int(sizes.sum()) * dtype.itemsize
    if stored != expected:
        how = "truncated" if stored < expected else "longer than described"
        raise CorruptCheckpointError(
            f"{binary}: {how}: {index.name} describes {len(sizes)} lines, {int(sizes.sum())} "
            f"{dtype.name} tokens, {expected} bytes; found {stored} bytes. Copy both files again "
            "or binarise the text again"
        )
    if not np.array_equal(pointers, (np.cumsum(sizes) - sizes) * dtype.itemsize):
        raise CorruptCheckpointError(
            f"{index}: pointers do not follow from the sizes; the index is damaged or was written "
            "for another .bin. Copy both files again or binarise the text again"
        )
    tokens = np.memmap(binary, dtype, mode="r") if stored else np.zeros(0, dtype)
    lines = TokenLines(tokens, sizes, str(prefix))
    if vocab_size is not None:
        check_ids(lines, vocab_size)
    return lines


def check_ids(lines: TokenLines, vocab_size: int) -> None:
    """Check that all ids are in [0, vocab_size).

    Raises:
      CorruptCheckpointError: names the first id that is not, its line and the likely cause.
    """
    # Piece by piece: the comparison of a memory map would otherwise be as large as the file.
    piece = 1 << 24
    for start in range(0, len(lines.tokens), piece):
        part = lines.tokens[start : start + piece]
        wrong = (part >= vocab_size) | (part < 0)
        if wrong.any():
            place = start + int(wrong.argmax())
            line = int(np.searchsorted(lines.starts, place, side="right"))
            raise CorruptCheckpointError(
                f"{lines.label}: token id {int(lines.tokens[place])} in line {line} is outside the "
                f"vocabulary of {vocab_size} symbols; dict.txt belongs to other data"
            )


def write_token_lines(
    prefix: str | Path,
    lines: Iterable[Int[np.ndarray, " line"]],
    *,
    vocab_size: int,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Write lines of ids (``</s>`` included) as ``PREFIX.bin`` and ``PREFIX.idx``.

    The files appear under their names once complete, the index last.

    Args:
      prefix: path without the endings.
      lines: ids of each line.
      vocab_size: number of symbols in ``dict.txt`` and special ones; decides the dtype.
      overwrite: whether existing files may be replaced.

    Returns:
      Number of lines and tokens.

    Raises:
      OutputExistsError: the files exist.
      CorruptCheckpointError: an id at or above `vocab_size`.
    """
    binary, index = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    for path in (binary, index):
        if path.exists() and not overwrite:
            raise OutputExistsError(f"{path} exists; remove it, or pass overwrite=True")
    dtype = token_dtype(vocab_size)
    sizes: list[int] = []
    aside = [path.with_name(f"{path.name}.{os.getpid()}.partial") for path in (binary, index)]
    try:
        with open(aside[0], "wb") as file:
            for number, line in enumerate(lines, 1):
                ids = np.asarray(line)
                if ids.size and (ids.max() >= vocab_size or ids.min() < 0):
                    raise CorruptCheckpointError(
                        f"{binary}: line {number} holds id {int(ids.max())}, outside the "
                        f"vocabulary of {vocab_size} symbols"
                    )
                file.write(ids.astype(dtype).tobytes())
                sizes.append(ids.size)
        counts = np.asarray(sizes, np.int64)
        with open(aside[1], "wb") as file:
            file.write(_HEADER.pack(_MAGIC, 1, _CODES[dtype], len(sizes)))
            file.write(counts.astype("<i4").tobytes())
            file.write(((np.cumsum(counts) - counts) * dtype.itemsize).astype("<i8").tobytes())
        os.replace(aside[0], binary)
        os.replace(aside[1], index)
    finally:
        for path in aside:
            path.unlink(missing_ok=True)
    return len(sizes), int(counts.sum())


def _read_index(
    path: Path,
) -> tuple[Int[np.ndarray, " lines"], Int[np.ndarray, " lines"], np.dtype]:
    """Sizes (tokens), pointers (bytes) and token dtype."""
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise CorruptCheckpointError(
            f"{path}: expected fairseq's mmap index (magic MMIDIDX), found {data[:9]!r}; binarise "
            "with --dataset-impl mmap"
        )
    if len(data) < _HEADER.size:
        raise CorruptCheckpointError(f"{path}: truncated: {len(data)} bytes, no whole header")
    _, version, code, count = _HEADER.unpack_from(data)
    if version != 1 or code not in _DTYPES:
        raise CorruptCheckpointError(
            f"{path}: expected version 1 and an integer dtype code, found version {version} and "
            f"code {code}"
        )
    expected = _HEADER.size + 12 * count
    if len(data) != expected:
        raise CorruptCheckpointError(
            f"{path}: {count} lines need {expected} bytes, found {len(data)}; the index is "
            "damaged. Copy it again or binarise the text again"
        )
    sizes = np.frombuffer(data, "<i4", count, _HEADER.size).astype(np.int64)
    pointers = np.frombuffer(data, "<i8", count, _HEADER.size + 4 * count)
    if (sizes < 0).any():
        raise CorruptCheckpointError(f"{path}: negative line length {int(sizes.min())}")
    return sizes, pointers, np.dtype(_DTYPES[code])
