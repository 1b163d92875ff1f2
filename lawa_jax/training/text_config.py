"""The configuration of masked language modelling."""

import dataclasses
from typing import ClassVar, Literal

from lawa_jax.errors import ConfigError
from lawa_jax.models.activations import ACTIVATIONS
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
    """Positions of the model, <s> included."""
    tokens_per_sample: int = 0
    """Longest block, <s> included; 0: max_tokens."""
    activation: str = "gelu"
    """Of the feed-forward blocks: gelu, gelu_tanh, quick_gelu, relu, relu_squared, silu, tanh or
    linear."""
    head_activation: str = "gelu"
    """Of the masked-language-model head."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variances of LayerNorm."""
    pre_norm: bool = False
    """LayerNorm before each block instead of after it, and once more at the end."""
    token_types: int = 0
    """Rows of an embedding of token types, as converted from Hugging Face; 0 for none."""
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
    eval_seed: int = 1
    """Of the masks and the order of evaluation; fairseq takes the run's seed, by default 1."""
    mask_prob: float = 0.15
    """Share of the tokens that are hidden and predicted."""
    eval_batch_size: int = 0
    """Blocks evaluated at once; 0: as many as one part of a training batch, at most 32 a device."""

    no_effect_on_evaluation: ClassVar[frozenset[str]] = frozenset({"seed"})

    def check(self) -> None:
        """Raises ConfigError for values that make no sense."""
        super().check()
        for name, least in (
            ("layers", 1),
            ("width", 1),
            ("ffn_width", 1),
            ("heads", 1),
            ("max_tokens", 2),
            ("accumulate", 1),
            ("lengths", 1),
            ("fsdp", 1),
            ("embedded_vocabulary", 261),
            ("dummy_blocks", 8),
            ("vocab_size", 0),
            ("eval_batch_size", 0),
            ("eval_seed", 0),
            ("token_types", 0),
            ("warmup_updates", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected >= {least}, found {getattr(self, name)}")
        for name in ("activation", "head_activation"):
            if getattr(self, name) not in ACTIVATIONS:
                raise ConfigError(
                    f"{name}: expected one of {', '.join(ACTIVATIONS)}, found "
                    f"{getattr(self, name)!r}"
                )
        if not (self.tokens_per_sample == 0 or 2 <= self.tokens_per_sample <= self.max_tokens):
            raise ConfigError(
                f"tokens_per_sample: expected 2 to max_tokens={self.max_tokens}, found "
                f"{self.tokens_per_sample}"
            )
        if not 0 < self.mask_prob < 1:
            raise ConfigError(f"mask_prob: expected in (0, 1), found {self.mask_prob}")
        if not self.layer_norm_epsilon > 0:
            raise ConfigError(f"layer_norm_epsilon: expected > 0, found {self.layer_norm_epsilon}")
        for name in ("dropout", "attention_dropout", "adam_b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected in [0, 1), found {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay", "adam_eps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}: expected a number >= 0, found {getattr(self, name)}")
        if self.width % self.heads:
            raise ConfigError(f"heads: width {self.width} does not divide by {self.heads}")
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"accumulate: batch_size {self.batch_size} does not divide by {self.accumulate}"
            )
        if self.schedule == "polynomial" and self.total_updates <= self.warmup_updates:
            raise ConfigError(
                f"total_updates: expected more than warmup_updates {self.warmup_updates}, found "
                f"{self.total_updates}"
            )
