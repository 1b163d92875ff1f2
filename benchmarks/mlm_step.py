"""Tokens per second of the masked-LM training step against PyTorch on the same device.

    python benchmarks/mlm_step.py --size tiny --rows 32 --length 128

Both sides train the same encoder (post-LayerNorm, exact GELU, dropout 0.1) on the same batches and
compute logits at the masked positions alone: PyTorch with `scaled_dot_product_attention`, ours as
the trainer runs it. Steps alternate; medians and ratio of speeds. Also how fast blocks are masked
and text is tokenised.
"""

import dataclasses
import statistics
import time
from typing import Any, Literal

import jax
import tyro
from torch_mlm import torch_mlm

from lawa_jax import script
from lawa_jax.data.bpe import BytePairEncoding
from lawa_jax.data.masking import FairseqMasker, FastMasker
from lawa_jax.data.text import dummy_text, embedded_text
from lawa_jax.models.roberta import BASE, TINY
from lawa_jax.training.mesh import Placement
from lawa_jax.training.text_config import TextConfig
from lawa_jax.training.text_task import text_task


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    size: Literal["tiny", "base"] = "tiny"
    """Of the encoder."""
    rows: int = 32
    """Blocks in a batch."""
    length: int = 128
    """Tokens in a block."""
    vocab_size: int = 2000
    """Symbols."""
    steps: int = 20
    """Measured steps of each side, after three that are not."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations (autocast in PyTorch)."""


def pipelines(arguments: Arguments) -> None:
    """Masking and tokenisation, in tokens per second of one thread."""
    data = dummy_text(256, max_tokens=arguments.length, vocab_size=arguments.vocab_size)
    blocks = [data.splits["train"][i] for i in range(256)]
    for masker in (FastMasker(data.dictionary), FairseqMasker(data.dictionary)):
        started = time.perf_counter()
        for number, block in enumerate(blocks):
            masker(block, 1, 1, number)
        rate = 256 * arguments.length / (time.perf_counter() - started)
        print(f"{type(masker).__name__}: {rate / 1e6:.2f}M tokens/s")
    lines = embedded_text()["train"]
    bpe = BytePairEncoding.train(lines, 1000)
    started = time.perf_counter()
    count = sum(len(ids) for ids in bpe.encode(lines))
    print(f"tokenisation: {count / (time.perf_counter() - started) / 1e6:.2f}M tokens/s")


def main() -> None:
    """Alternate steps of both sides."""
    arguments = tyro.cli(Arguments, description=__doc__)
    sizes = dict(TINY if arguments.size == "tiny" else BASE, max_tokens=arguments.length)
    count = arguments.rows * (arguments.steps + 3)
    data = dummy_text(count, max_tokens=arguments.length, vocab_size=arguments.vocab_size)
    options: dict[str, Any] = {**sizes, "vocab_size": arguments.vocab_size}
    config = TextConfig(
        batch_size=arguments.rows,
        warmup_updates=1,
        compute_dtype=arguments.compute_dtype,
        **options,
    )
    task = text_task(config, data, Placement(jax.devices()[:1]))
    state = task.place.state(task.init())
    _, theirs = torch_mlm(
        sizes, vocab_size=arguments.vocab_size, half=arguments.compute_dtype == "bfloat16"
    )
    seconds: dict[str, list[float]] = {"PyTorch": [], "lawa-jax": []}
    for number, batch in enumerate(task.train_batches(1, 0)):
        started = time.perf_counter()
        theirs(batch)
        middle = time.perf_counter()
        key = jax.random.key(number)
        state, metrics = task.train_step(state, task.place.batch(batch), 5e-4, key)
        jax.block_until_ready((state, metrics))
        if number == 0:
            print(f"first step, compilation included: {time.perf_counter() - middle:.1f} s")
        if number >= 3:
            seconds["PyTorch"].append(middle - started)
            seconds["lawa-jax"].append(time.perf_counter() - middle)
    tokens = arguments.rows * arguments.length
    for name, each in seconds.items():
        print(f"{name:10} {tokens / statistics.median(each):10.0f} tokens/s")
    each = [a / b for a, b in zip(seconds["PyTorch"], seconds["lawa-jax"], strict=True)]
    print(
        f"ratio of speeds, ours to PyTorch's: {statistics.median(each):.2f} "
        f"({min(each):.2f} to {max(each):.2f})"
    )
    pipelines(arguments)


if __name__ == "__main__":
    script.run(main)
