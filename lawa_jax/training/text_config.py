"""The configuration of masked language modelling."""

import dataclasses
from typing import Literal

from lawa_jax.errors import ConfigError
from lawa_jax.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class TextConfig(RunConfig):
    """RoBERTa; the defaults are the paper's RoBERTa-base on WikiText-103."""

    epochs: int = 200
    """Train up to this epoch."""
    batch_size: int = 2048
    """Blocks an update sees, over all devices and accumulated parts."""
    lawa_k: int = 10
    """Average this many of the latest epoch checkpoints; 0 turns LAWA off."""
    loader_threads: int = 4
    """Threads that mask blocks."""
    dataset: Literal["data_bin", "embedded", "dummy"] = "data_bin"
    """data_bin: fairseq's binarised text in data_dir; embedded: the documentation inside Python,
    binarised into data_dir; dummy: random tokens of the real shapes."""
    data_dir: str = "data/wikitext-103"
    """A data-bin directory: dict.txt and {train,valid,test}.{bin,idx} (see convert/text.py)."""
    embedded_vocabulary: int = 2000
    """Symbols of the byte-level BPE trained on the embedded text."""
    dummy_blocks: int = 2048
    """Training blocks of the dummy data; an eighth as many are for validation."""
    vocab_size: int = 0
    """Symbols, <mask> included; 0: as many as the data's dictionary has."""
    layers: int = 12
    """Encoder layers."""
    width: int = 768
    """Of the model."""
    ffn_width: int = 3072
    """Inside the feed-forward blocks."""
    heads: int = 12
    """Attention heads."""
    max_tokens: int = 512
    """Longest block, <s> included."""
    dropout: float = 0.1
    """After embeddings, attention and feed-forward blocks."""
    attention_dropout: float = 0.1
    """Of attention probabilities."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters, softmax and logits are always float32."""
    remat: bool = False
    """Recompute layers in the backward pass: less memory, a third more computing."""
    scan: bool = False
    """Compile one layer and loop over all: faster compilation, the same checkpoints."""
    fsdp: int = 1
    """Devices that parameters and optimizer state are sharded over."""
    learning_rate: float = 5e-4
    """Peak learning rate."""
    schedule: Literal["polynomial", "constant"] = "polynomial"
    """After warm-up; polynomial decays linearly to zero at total_updates."""
    warmup_updates: int = 10_000
    """Updates of linear warm-up."""
    total_updates: int = 125_000
    """Horizon of the decay, however many epochs are trained."""
    adam_b2: float = 0.98
    """Of Adam's squared gradients; b1 is 0.9."""
    adam_eps: float = 1e-6
    """Of Adam, before bias correction as in fairseq."""
    weight_decay: float = 0.01
    """Decoupled, of every parameter, as fairseq's Adam."""
    accumulate: int = 1
    """Gradients are accumulated over this many parts of a batch."""
    lengths: int = 4
    """Padded lengths of batches: more waste less padding, but each is compiled."""
    masker: Literal["fast", "fairseq"] = "fast"
    """Of training blocks; both have the same distribution, fairseq's the same bits as fairseq.
    Evaluation always masks as fairseq."""
    eval_batch_size: int = 0
    """Blocks evaluated at once; 0: as many as one part of a training batch, at most 32 a device."""

    def check(self) -> None:
        """Raises ConfigError for values that make no sense."""
        super().check()
        self.at_least(1, "layers", "width", "ffn_width", "heads", "accumulate", "lengths", "fsdp")
        self.at_least(2, "max_tokens")
        self.at_least(261, "embedded_vocabulary")
        self.at_least(8, "dummy_blocks")
        self.at_least(0, "vocab_size", "eval_batch_size", "warmup_updates")
        self.shares("dropout", "attention_dropout", "adam_b2")
        self.finite("learning_rate", "weight_decay", "adam_eps")
        if self.width % self.heads:
            raise ConfigError(f"heads: width {self.width} does not divide by {self.heads}")
        self.divides(self.accumulate)
        if self.schedule == "polynomial" and self.total_updates <= self.warmup_updates:
            raise ConfigError(
                f"total_updates: expected more than warmup_updates {self.warmup_updates}, found "
                f"{self.total_updates}"
            )
