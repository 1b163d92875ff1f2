"""Byte-level byte-pair encoding: GPT-2's, or one trained on any text, in the same two files.

GPT-2's encoding (Radford et al. 2019) is two files: ``encoder.json``, token to BPE id, and
``vocab.bpe``, the merges in order of rank. fairseq writes the BPE ids as words and numbers those
words by its own dictionary; see `lawa_jax.data.dictionary`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lawa_jax.errors import ConfigError, DataNotFoundError

ENCODER_FILE, MERGES_FILE = "encoder.json", "vocab.bpe"


class BytePairEncoding:
    """Text to BPE ids and back; any text is representable, there is no unknown token.

    Example: GPT-2's files encode ``Hello world`` as 15496 995.
    """

    def __init__(self, model: Any) -> None:
        self._tokenizer = Tokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = decoders.ByteLevel()
        self.size = max(self._tokenizer.get_vocab().values()) + 1
        """Largest BPE id plus one."""

    @classmethod
    def load(cls, directory: str | Path) -> "BytePairEncoding":
        """Read ``encoder.json`` and ``vocab.bpe`` of a directory.

        Raises:
          DataNotFoundError: one of them is missing.
          ConfigError: they are not a BPE, or not of one another.
        """
        encoder, merges = (Path(directory) / name for name in (ENCODER_FILE, MERGES_FILE))
        for path in (encoder, merges):
            if not path.is_file():
                raise DataNotFoundError(
                    f"{path}: no such file; a byte-pair encoding is {ENCODER_FILE} and "
                    f"{MERGES_FILE} of GPT-2, or as written by BytePairEncoding.save"
                )
        try:
            return cls(models.BPE.from_file(str(encoder), str(merges)))
        except Exception as error:  # tokenizers raises nothing more specific
            raise ConfigError(
                f"{encoder} and {merges} are no byte-pair encoding: {error}"
            ) from None

    @classmethod
    def train(cls, lines: Iterable[str], vocab_size: int) -> "BytePairEncoding":
        """Learn merges from text until there are `vocab_size` tokens (or nothing to merge).

        Raises:
          ConfigError: fewer tokens than the 256 bytes.
        """
        if vocab_size < 256:
            raise ConfigError(f"a byte-level vocabulary has at least 256, not {vocab_size} tokens")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(lines, trainer)
        return cls(tokenizer.model)

    def save(self, directory: str | Path) -> None:
        """Write ``encoder.json`` and ``vocab.bpe``."""
        directory = Path(directory)
        merges = json.loads(self._tokenizer.to_str())["model"]["merges"]
        text = "".join(f"{left} {right}\n" for left, right in merges)
        ids = dict(sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1]))
        (directory / ENCODER_FILE).write_text(json.dumps(ids), encoding="utf-8")
        (directory / MERGES_FILE).write_text(
            f"#version: 0.2\n{text}", encoding="utf-8", newline="\n"
        )

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """BPE ids of each line, on all cores."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(lines))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of BPE ids."""
        return str(self._tokenizer.decode(list(ids)))
