"""fairseq's dictionary: which symbol has which id.

Ids are ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, then the lines of ``dict.txt`` in file
order, and ``<mask>`` last, added by the masked-LM task: 50,265 with the published RoBERTa file.
With the GPT-2 BPE a symbol is the decimal BPE id: "31414" is no id of this dictionary but a word.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lawa_jax.errors import ConfigError, DataNotFoundError

BOS, PAD, EOS, UNK = 0, 1, 2, 3
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
MASK_SYMBOL = "<mask>"
_OVERWRITE = "#fairseq:overwrite"


@dataclass(frozen=True)
class Dictionary:
    """Symbols in id order, special ones and ``<mask>`` included.

    Example: ``Dictionary.from_counts({"31414": 5}).symbols`` is
    ``("<s>", "<pad>", "</s>", "<unk>", "31414", "<mask>")``.
    """

    symbols: tuple[str, ...]
    counts: tuple[int, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.symbols)

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Id by symbol; of a symbol that was overwritten, the last."""
        return {symbol: index for index, symbol in enumerate(self.symbols)}

    @property
    def mask_id(self) -> int:
        """Id of ``<mask>``."""
        return self.ids[MASK_SYMBOL]

    def encode(self, words: list[str]) -> list[int]:
        """Ids of words, ``<unk>`` for unknown ones."""
        return [self.ids.get(word, UNK) for word in words]

    def lookup(self, bpe_size: int) -> Int[np.ndarray, " bpe"]:
        """Dictionary id of every BPE id 0 .. bpe_size - 1, int32; ``<unk>`` where there is none."""
        return np.asarray([self.ids.get(str(i), UNK) for i in range(bpe_size)], np.int32)

    @classmethod
    def from_counts(cls, counts: Mapping[str, int]) -> "Dictionary":
        """A dictionary of these symbols in this order."""
        taken = [symbol for symbol in counts if symbol in SPECIAL]
        if taken:
            raise ConfigError(f"{taken[0]!r} is a special symbol and cannot be an ordinary one")
        symbols, numbers = (*SPECIAL, *counts), (1, 1, 1, 1, *counts.values())
        if MASK_SYMBOL not in counts:
            symbols, numbers = (*symbols, MASK_SYMBOL), (*numbers, 1)
        return cls(symbols, numbers)

    @classmethod
    def load(cls, path: str | Path) -> "Dictionary":
        """Read ``dict.txt``: one ``symbol count`` a line.

        Raises:
          DataNotFoundError: no such file.
          ConfigError: a line that is not ``symbol count``, or a symbol that occurs twice; names
            file and line.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DataNotFoundError(
                f"{path}: no dictionary; a data-bin directory needs fairseq's dict.txt (one "
                "'symbol count' a line) beside its .bin and .idx files"
            ) from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 text ({error}); is it a dict.txt?") from None
        symbols, counts, seen = list(SPECIAL), [1] * len(SPECIAL), set(SPECIAL)
        # Only \n ends a line: words may hold characters that str.splitlines takes for line ends.
        for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
            word, _, count = line.rstrip().rpartition(" ")
            overwrite = count == _OVERWRITE
            if overwrite:
                word, _, count = word.rpartition(" ")
            if not word or not count.isdecimal():
                raise ConfigError(
                    f"{path}, line {number}: expected 'symbol count', found {line[:60]!r}"
                )
            if word in seen and not overwrite:
                raise ConfigError(
                    f"{path}, line {number}: symbol {word!r} occurs twice; ids would be ambiguous. "
                    f"Add {_OVERWRITE!r} to the line if the later one is meant to win"
                )
            seen.add(word)
            symbols.append(word)
            counts.append(int(count))
        if len(symbols) == len(SPECIAL):
            raise ConfigError(f"{path}: the dictionary has no symbols")
        if MASK_SYMBOL not in seen:
            symbols.append(MASK_SYMBOL)
            counts.append(1)
        return cls(tuple(symbols), tuple(counts))

    def save(self, path: str | Path) -> None:
        """Write ``dict.txt``, as fairseq does: without special symbols and ``<mask>``."""
        ordinary = zip(self.symbols[len(SPECIAL) :], self.counts[len(SPECIAL) :], strict=True)
        lines = [f"{symbol} {count}\n" for symbol, count in ordinary if symbol != MASK_SYMBOL]
        Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")
