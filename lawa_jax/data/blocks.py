"""Blocks of tokens, exactly as fairseq's ``--sample-break-mode complete`` makes them.

Whole lines are packed while their sum stays at or below ``tokens_per_sample - 1``, and ``<s>`` is
put in front of each block. A longer line is a block of its own; it is too long for the model and
fairseq skips it in training and (when told to) in evaluation, keeping its index: masks are seeded
by the index, so that indices count skipped blocks too.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from lawa_jax.data.dictionary import BOS
from lawa_jax.data.token_files import TokenLines
from lawa_jax.errors import ConfigError


@dataclass(frozen=True)
class Blocks:
    """Blocks by index; ``blocks[i]`` is int32 token ids with ``<s>`` in front.

    Attributes:
      lines: where the tokens are.
      bounds: first and one past the last token of each block, int64, without ``<s>``.
      max_tokens: longest block a model takes, ``<s>`` included.
    """

    lines: TokenLines
    bounds: Int[np.ndarray, "blocks 2"]
    max_tokens: int

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> Int[np.ndarray, " tokens"]:
        start, end = self.bounds[index]
        block = np.empty(end - start + 1, np.int32)
        block[0] = BOS
        block[1:] = self.lines.tokens[start:end]
        return block

    @property
    def sizes(self) -> Int[np.ndarray, " blocks"]:
        """Tokens of each block, ``<s>`` included, int64."""
        return self.bounds[:, 1] - self.bounds[:, 0] + 1

    @property
    def usable(self) -> Int[np.ndarray, " usable"]:
        """Indices of the blocks that are not too long, ascending, int64."""
        return np.flatnonzero(self.sizes <= self.max_tokens)


def complete_blocks(lines: TokenLines, tokens_per_sample: int = 512) -> Blocks:
    """Pack whole lines into blocks of at most `tokens_per_sample` tokens, ``<s>`` included.

    Example: lines of 2, 3, 9 and 1 tokens with ``tokens_per_sample=6`` (5 without ``<s>``) give
    blocks of 2 + 3, 9 (too long, so not `usable`) and 1 tokens.

    Args:
      lines: token ids by line.
      tokens_per_sample: at least 2.

    Raises:
      ConfigError: no tokens but line ends, or nothing but lines that are too long.
    """
    if tokens_per_sample < 2:
        raise ConfigError(f"tokens_per_sample must be at least 2, found {tokens_per_sample}")
    # A line of one token is an empty line: its </s>.
    if not (lines.sizes > 1).any():
        raise ConfigError(
            f"{lines.label}: {len(lines)} lines, all empty; check that the right text was binarised"
        )
    blocks = Blocks(lines, _complete(lines.sizes, tokens_per_sample - 1), tokens_per_sample)
    if not len(blocks.usable):
        number = int(np.argmax(lines.sizes > tokens_per_sample - 1))
        raise ConfigError(
            f"{lines.label}: line {number + 1} has {int(lines.sizes[number])} tokens and the model "
            f"takes {tokens_per_sample - 1} beside <s>; all {len(blocks)} blocks are too "
            "long. Cut such lines or raise tokens_per_sample"
        )
    return blocks


def _complete(sizes: Int[np.ndarray, " lines"], limit: int) -> Int[np.ndarray, "blocks 2"]:
    """Token ranges of greedily packed lines: a line is added while the sum stays <= `limit`."""
    # Lines without any token can neither fill a block nor make one.
    sizes = sizes[sizes > 0]
    ends = np.cumsum(sizes)
    bounds: list[tuple[int, int]] = []
    line, start = 0, 0
    while line < len(ends):
        # The first line always fits, however long it is.
        line = max(int(np.searchsorted(ends, start + limit, side="right")), line + 1)
        end = int(ends[line - 1])
        bounds.append((start, end))
        start = end
    return np.asarray(bounds, np.int64).reshape(-1, 2)
