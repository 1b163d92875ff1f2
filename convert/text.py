"""Raw text into a data-bin directory, with the same ids and files as fairseq's preprocessing.

python convert/text.py DATA_BIN --train wiki.train.raw --valid wiki.valid.raw --test wiki.test.raw
--bpe GPT2_BPE

GPT2_BPE holds encoder.json, vocab.bpe and dict.txt. Without --bpe, a byte-level BPE is trained on
the training text.
"""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Annotated

from lawa_jax import script

with script.importing():
    import tyro

    from lawa_jax.data.bpe import BytePairEncoding
    from lawa_jax.data.dictionary import Dictionary
    from lawa_jax.data.text import DICTIONARY_FILE, SPLITS, binarize, prepare_text, read_lines
    from lawa_jax.errors import ConfigError, DataNotFoundError, OutputExistsError


@dataclasses.dataclass(frozen=True)
class ConvertArguments:
    """What to binarise."""

    data_bin: Annotated[Path, tyro.conf.Positional]
    """The directory to make."""
    train: Path | None = None
    """UTF-8 text, a line a sentence or paragraph."""
    valid: Path | None = None
    """The same, for validation."""
    test: Path | None = None
    """The same, for the test."""
    bpe: Path | None = None
    """A directory with encoder.json, vocab.bpe and dict.txt."""
    vocab_size: int = 8000
    """Symbols of a newly trained BPE."""


def main() -> None:
    """Check, then write one split after the other."""
    arguments = tyro.cli(ConvertArguments, description=__doc__, use_underscores=True)
    files = {s: getattr(arguments, s) for s in SPLITS if getattr(arguments, s) is not None}
    if not files:
        raise ConfigError("nothing to do: give --train, --valid or --test files of raw text")
    for file in files.values():
        if not file.is_file():
            raise DataNotFoundError(f"{file}: no such text file")
    taken = [f"{s}{end}" for s in files for end in (".bin", ".idx")]
    for name in taken:
        if (arguments.data_bin / name).exists():
            raise OutputExistsError(f"{arguments.data_bin / name} exists and is not replaced")
    if arguments.bpe is None:
        if "train" not in files:
            raise ConfigError("without --bpe, one is trained on --train: give that file")
        texts = {split: read_lines(file) for split, file in files.items()}
        written = prepare_text(texts, arguments.data_bin, vocab_size=arguments.vocab_size)
    else:
        bpe = BytePairEncoding.load(arguments.bpe)
        dictionary = Dictionary.load(arguments.bpe / DICTIONARY_FILE)
        arguments.data_bin.mkdir(parents=True, exist_ok=True)
        shutil.copy(arguments.bpe / DICTIONARY_FILE, arguments.data_bin / DICTIONARY_FILE)
        written = {}
        for split, file in files.items():
            print(f"{file} ...", file=sys.stderr, flush=True)
            written[split] = binarize(file, arguments.data_bin / split, bpe, dictionary)
    for split, done in written.items():
        print(
            f"{arguments.data_bin / split}: {done.lines:,} lines, {done.tokens:,} tokens, "
            f"{done.unknown:,} unknown"
        )


if __name__ == "__main__":
    script.run(main)
