"""WikiText-2 in small: what docs/roberta.md shows, with two halves to hold out.

    python benchmarks/wikitext2.py --train valid.txt --held_out test.txt --out DATA_BIN

Trains on one of WikiText-2's smaller files, so that a run takes minutes; every second article of
the other is for validation, the rest for the test. A byte-level BPE is trained on the training
text. Files of `wikitext-2` as published, raw or not.
"""

import dataclasses
import re
from pathlib import Path

import tyro

from lawa_jax import script
from lawa_jax.data.text import prepare_text, read_lines
from lawa_jax.errors import ConfigError

# A heading of the first level begins an article.
ARTICLE = re.compile(r"^ ?= [^=].* = ?$")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to make of what."""

    train: Path
    """Text to train on."""
    held_out: Path
    """Text to be halved."""
    out: Path
    """The data-bin directory to make."""
    vocab_size: int = 2000
    """Symbols of the BPE."""


def main() -> None:
    """Cut and binarise."""
    arguments = tyro.cli(Arguments, description=__doc__, use_underscores=True)
    articles: list[list[str]] = []
    for line in read_lines(arguments.held_out):
        if ARTICLE.match(line) or not articles:
            articles.append([])
        articles[-1].append(line)
    if len(articles) < 2:
        raise ConfigError(f"{arguments.held_out}: expected several articles, found one")
    halves = ([line for article in articles[i::2] for line in article] for i in (0, 1))
    texts = dict(zip(("valid", "test"), halves, strict=True))
    written = prepare_text(
        {"train": read_lines(arguments.train), **texts},
        arguments.out,
        vocab_size=arguments.vocab_size,
    )
    for split, done in written.items():
        print(f"{split}: {done.lines:,} lines, {done.tokens:,} tokens, {done.unknown:,} unknown")


if __name__ == "__main__":
    script.run(main)
