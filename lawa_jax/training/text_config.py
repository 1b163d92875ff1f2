"""The configuration of masked language modelling."""

import dataclasses
from typing import ClassVar, Literal

from lawa_jax.errors import ConfigError
from lawa_jax.models.activations import ACTIVATIONS
from lawa_jax.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class TextConfig(RunConfig):
    """Masked language modelling with RoBERTa. The defaults are the paper's RoBERTa-base on
    WikiText-103."""

    epochs: int = 200
    """The last epoch to train."""
    batch_size: int = 2048
    """The number of blocks per update, over all devices and accumulated parts."""
    lawa_k: int = 10
    """Average this many of the latest epoch checkpoints; 0 turns LAWA off."""
    loader_threads: int = 4
    """The number of threads that mask blocks."""
    dataset: Literal["data_bin", "embedded", "dummy"] = "data_bin"
    """data_bin is fairseq's binarised text in data_dir; embedded is the documentation inside
    Python, binarised into data_dir; dummy is random tokens of the real shapes."""
    data_dir: str = "data/wikitext-103"
    """A data-bin directory: dict.txt and {train,valid,test}.{bin,idx} (see convert/text.py)."""
    embedded_vocabulary: int = 2000
    """The number of symbols of the byte-level BPE that is trained on the embedded text."""
    dummy_blocks: int = 2048
    """The number of training blocks of the dummy data. An eighth as many are for validation."""
    vocab_size: int = 0
    """The number of symbols, including <mask>. 0 means as many as the dictionary of the data
    has."""
    layers: int = 12
    """The number of encoder layers."""
    width: int = 768
    """The width of the model."""
    ffn_width: int = 3072
    """The width inside the feed-forward blocks."""
    heads: int = 12
    """The number of attention heads."""
    max_tokens: int = 512
    """The number of positions of the model, including <s>."""
    tokens_per_sample: int = 0
    """The length of the longest block, including <s>. 0 means max_tokens."""
    activation: str = "gelu"
    """The activation of the feed-forward blocks: gelu, gelu_tanh, quick_gelu, relu, relu_squared,
    silu, tanh or linear."""
    head_activation: str = "gelu"
    """The activation of the masked-language-model head."""
    layer_norm_epsilon: float = 1e-5
    """The number that is added to the variances of LayerNorm."""
    pre_norm: bool = False
    """Put LayerNorm before each block instead of after it, and once more at the end."""
    token_types: int = 0
    """The rows of an embedding of token types, as converted from Hugging Face. 0 means none."""
    dropout: float = 0.1
    """The dropout after embeddings, attention and feed-forward blocks."""
    attention_dropout: float = 0.1
    """The dropout of attention probabilities."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """The dtype of activations. Parameters, softmax and logits are always float32."""
    remat: bool = False
    """Recompute layers in the backward pass. This takes less memory and a third more
    computation."""
    scan: bool = False
    """Compile one layer and loop over all of them. This compiles faster, and checkpoints stay the
    same."""
    fsdp: int = 1
    """The number of devices over which parameters and optimizer state are sharded."""
    learning_rate: float = 5e-4
    """The peak learning rate."""
    schedule: Literal["polynomial", "constant"] = "polynomial"
    """The learning rate after warm-up. polynomial decays linearly to zero at total_updates."""
    warmup_updates: int = 10_000
    """The number of updates of linear warm-up."""
    total_updates: int = 125_000
    """The update at which the decay ends, regardless of how many epochs are trained."""
    adam_b2: float = 0.98
    """The decay rate of Adam's squared gradients. b1 is 0.9."""
    adam_eps: float = 1e-6
    """The eps of Adam, added before the bias correction as in fairseq."""
    weight_decay: float = 0.01
    """The decoupled weight decay of every parameter, as in fairseq's Adam."""
    accumulate: int = 1
    """The number of parts of a batch over which gradients are accumulated."""
    lengths: int = 4
    """The number of different padded lengths of batches. More lengths waste less padding, but each
    is compiled."""
    masker: Literal["fast", "fairseq"] = "fast"
    """The masking of training blocks. Both have the same distribution, and fairseq draws the same
    bits as fairseq does. Evaluation always masks as fairseq does."""
    eval_seed: int = 1
    """The seed of the masks and the order of evaluation. fairseq takes the seed of the run, by
    default 1."""
    mask_prob: float = 0.15
    """The share of the tokens that are hidden and predicted."""
    eval_batch_size: int = 0
    """The number of blocks that are evaluated at once. 0 means as many as one part of a training
    batch, at most 32 per device."""

    no_effect_on_evaluation: ClassVar[frozenset[str]] = frozenset({"seed"})

    def check(self) -> None:
        """Raises ConfigError for values that make no sense."""
        super().check()
        self.at_least(1, "layers", "width", "ffn_width", "heads", "accumulate", "lengths", "fsdp")
        self.at_least(2, "max_tokens")
        self.at_least(261, "embedded_vocabulary")
        self.at_least(8, "dummy_blocks")
        self.at_least(0, "vocab_size", "eval_batch_size", "eval_seed", "token_types")
        self.at_least(0, "warmup_updates")
        self.shares("dropout", "attention_dropout", "adam_b2")
        self.finite("learning_rate", "weight_decay", "adam_eps")
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
        if self.width % self.heads:
            raise ConfigError(f"heads: width {self.width} does not divide by {self.heads}")
        self.divides(self.accumulate)
        if self.schedule == "polynomial" and self.total_updates <= self.warmup_updates:
            raise ConfigError(
                f"total_updates: expected more than warmup_updates {self.warmup_updates}, found "
                f"{self.total_updates}"
            )
