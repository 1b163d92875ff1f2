"""RoBERTa: a post-LayerNorm Transformer encoder with a masked-language-model head.

Liu et al. 2019 (arXiv 1907.11692), numerically as fairseq computes it: exact GELU, LayerNorm
(eps 1e-5) on the embeddings and after each residual sum, positions counted over real tokens only,
output projection tied to the token embedding. Parameters are named as in fairseq. Its variants
(another activation or epsilon, LayerNorm before each block, token types) are options.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from lawa_jax.models.activations import ACTIVATIONS

BASE: Mapping[str, int] = MappingProxyType(
    {"layers": 12, "width": 768, "ffn_width": 3072, "heads": 12, "max_tokens": 512}
)
"""Sizes of RoBERTa-base: 124,696,665 parameters with the published 50,265 symbols."""

TINY: Mapping[str, int] = MappingProxyType(
    {"layers": 2, "width": 64, "ffn_width": 256, "heads": 2, "max_tokens": 128}
)
"""Sizes for tests and the quick start."""

_INIT_STDDEV = 0.02


class Roberta(nnx.Module):
    """Token ids to vocabulary logits; ``Roberta(vocab_size=50_265, **BASE, rngs=nnx.Rngs(0))``.

    Initialised as fairseq does: every matrix and embedding normal(0, 0.02), the embeddings of the
    padding symbol and padding position zero, biases zero, LayerNorm scale one.

    Args:
      vocab_size: number of symbols, `<mask>` included.
      layers, width, ffn_width, heads: encoder layers, model width, width inside the feed-forward
        block, attention heads (`heads` divides `width`).
      max_tokens: longest sequence, `<s>` included; the position table has
        ``max_tokens + padding_id + 1`` rows.
      padding_id: id of `<pad>`.
      dropout: rate after the embeddings, attention and feed-forward blocks.
      attention_dropout: rate on attention probabilities.
      activation: of the feed-forward blocks, a key of `ACTIVATIONS`.
      head_activation: of the masked-language-model head; Hugging Face's is always "gelu".
      layer_norm_epsilon: added to the variances of all LayerNorms.
      pre_norm: LayerNorm before each block instead of after the residual sum, and one at the end.
      token_types: rows of an embedding of token types, of which every token has the first, as in
        Hugging Face's RoBERTa; 0 for none.
      dtype: dtype of the computation (`jnp.bfloat16` for speed); LayerNorm statistics, softmax and
        logits are float32 at least.
      param_dtype: dtype of the parameters.
      remat: recompute each layer in the backward pass instead of storing its activations.
      scan: compile one layer and loop over the stacked layers. Parameters are stacked inside the
        computation, so checkpoints keep the same layout either way.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        layers: int,
        width: int,
        ffn_width: int,
        heads: int,
        max_tokens: int = 512,
        padding_id: int = 1,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation: str = "gelu",
        head_activation: str = "gelu",
        layer_norm_epsilon: float = 1e-5,
        pre_norm: bool = False,
        token_types: int = 0,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
        scan: bool = False,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        for name, rate in (("dropout", dropout), ("attention_dropout", attention_dropout)):
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"{name} must be in [0, 1), found {rate}")
        self.padding_id, self.max_tokens, self.dropout = padding_id, max_tokens, dropout
        self.attention_dropout = attention_dropout
        self.dtype, self.remat, self.scan = dtype, remat, scan
        make = _Make(dtype, param_dtype, rngs, layer_norm_epsilon)
        self.embed_tokens = make.embedding(vocab_size, width, padding_id)
        self.embed_positions = make.embedding(max_tokens + padding_id + 1, width, padding_id)
        self.embed_token_types = make.embedding(token_types, width) if token_types else None
        self.layernorm_embedding = make.norm(width)
        self.layer_norm = make.norm(width) if pre_norm else None
        sizes = (width, ffn_width, heads, dropout, attention_dropout, activation, pre_norm)
        self.layers = nnx.List([EncoderLayer(*sizes, make) for _ in range(layers)])
        self.lm_head = LMHead(vocab_size, width, head_activation, make)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        masked_positions: Int[Array, "batch masked"] | None = None,
        *,
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch positions vocab"]:
        """Logits at every position, or only at `masked_positions`.

        Args:
          tokens: token ids, right-padded with `padding_id`; a row may be padding throughout.
          masked_positions: places in the sequence to predict, in any order; unused entries may
            hold any position (0), their logits are to be ignored.
          train: whether to apply dropout; needs `key` if a rate is above zero.
          key: randomness of this call's dropout.

        Raises:
          ValueError: sequences longer than `max_tokens`, or `train` without `key`.
        """
        features = self.encode(tokens, train=train, key=key)
        if masked_positions is not None:
            features = jnp.take_along_axis(features, masked_positions[:, :, None], axis=1)
        return self.lm_head(features, self.embed_tokens.embedding[...])

    def encode(
        self,
        tokens: Int[Array, "batch length"],
        *,
        train: bool = False,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch length width"]:
        """Features of the last encoder layer; arguments and errors as in `__call__`."""
        if tokens.shape[1] > self.max_tokens:
            raise ValueError(
                f"sequences of {tokens.shape[1]} tokens, but this model was built for at most "
                f"{self.max_tokens}; cut the text into shorter blocks"
            )
        keys = None
        if train and (self.dropout or self.attention_dropout):
            if key is None:
                raise ValueError("dropout in training needs a PRNG key; pass key=")
            keys = jax.random.split(key, len(self.layers) + 1)

        real = tokens != self.padding_id
        # Positions count real tokens from padding_id + 1; padding itself is at padding_id.
        positions = jnp.cumsum(real, axis=1, dtype=tokens.dtype) * real.astype(tokens.dtype)
        positions = positions + self.padding_id
        x = self.embed_tokens(tokens) + self.embed_positions(positions)
        if self.embed_token_types is not None:
            x = x + self.embed_token_types(jnp.zeros_like(tokens))
        x = self.layernorm_embedding(x)
        if keys is not None:
            x = _dropped(x, self.dropout, keys[-1])
        # fairseq zeroes padding here, so that its embeddings receive no gradient.
        x = jnp.where(real[:, :, None], x, jnp.zeros_like(x))
        x = self._through_layers(x, real[:, None, None, :], keys)
        return x if self.layer_norm is None else self.layer_norm(x)

    def _through_layers(self, x: Array, mask: Array, keys: Array | None) -> Array:
        graphdefs, states = zip(*(nnx.split(layer) for layer in self.layers), strict=True)

        def run(state: Any, x: Array, key: Array | None) -> Array:
            return nnx.merge(graphdefs[0], state)(x, mask, key)

        if self.remat:
            run = jax.checkpoint(run)
        layer_keys = None if keys is None else keys[:-1]
        if self.scan:
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

            def body(x: Array, inputs: tuple[Any, Array | None]) -> tuple[Array, None]:
                return run(inputs[0], x, inputs[1]), None

            return jax.lax.scan(body, x, (stacked, layer_keys))[0]
        for index, state in enumerate(states):
            x = run(state, x, None if layer_keys is None else layer_keys[index])
        return x


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward block, each as LayerNorm(x + block(x)).

    With `pre_norm`, each is x + block(LayerNorm(x)).
    """

    def __init__(
        self,
        width: int,
        ffn_width: int,
        heads: int,
        dropout: float,
        attention_dropout: float,
        activation: str,
        pre_norm: bool,
        make: "_Make",
    ):
        self.dropout, self.activation, self.pre_norm = dropout, activation, pre_norm
        self.self_attn = SelfAttention(width, heads, attention_dropout, make)
        self.self_attn_layer_norm = make.norm(width)
        self.fc1 = make.linear(width, ffn_width)
        self.fc2 = make.linear(ffn_width, width)
        self.final_layer_norm = make.norm(width)

    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Array,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "batch length width"]:
        """One layer; `mask` [batch, 1, 1, length] is true at real tokens; no key, no dropout."""
        attention_key, residual_key, ffn_key = (
            (None, None, None) if key is None else jax.random.split(key, 3)
        )
        inputs = self.self_attn_layer_norm(x) if self.pre_norm else x
        block = self.self_attn(inputs, mask, attention_key)
        x = x + _dropped(block, self.dropout, residual_key)
        x = x if self.pre_norm else self.self_attn_layer_norm(x)
        inputs = self.final_layer_norm(x) if self.pre_norm else x
        block = self.fc2(ACTIVATIONS[self.activation](self.fc1(inputs)))
        x = x + _dropped(block, self.dropout, ffn_key)
        return x if self.pre_norm else self.final_layer_norm(x)


class SelfAttention(nnx.Module):
    """Multi-head scaled dot-product attention, with dropout on the probabilities."""

    def __init__(self, width: int, heads: int, dropout: float, make: "_Make"):
        self.heads, self.dropout = heads, dropout
        self.q_proj = make.linear(width, width)
        self.k_proj = make.linear(width, width)
        self.v_proj = make.linear(width, width)
        self.out_proj = make.linear(width, width)

    def __call__(self, x: Array, mask: Array, key: PRNGKeyArray | None = None) -> Array:
        """Attention of every position to the positions where `mask` is true."""
        batch, length, width = x.shape
        per_head = (batch, length, self.heads, width // self.heads)
        q, k, v = (proj(x).reshape(per_head) for proj in (self.q_proj, self.k_proj, self.v_proj))
        rate = 0.0 if key is None else self.dropout
        if rate or x.dtype == jnp.float64:
            mixed = _attention(q, k, v, mask, rate, key)
        else:
            # Its softmax promotes bfloat16 to float32 implicitly (and float64 down to it).
            with jax.numpy_dtype_promotion("standard"):
                mixed = jax.nn.dot_product_attention(q, k, v, mask=mask)
        return self.out_proj(mixed.reshape(batch, length, width))


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias over the last axis.

    Mean and variance in float32 at least. (`nnx.LayerNorm` does the same, but promotes dtypes
    implicitly, which strict dtype promotion forbids.)
    """

    def __init__(self, width: int, dtype: Any, param_dtype: Any, epsilon: float = 1e-5):
        self.dtype, self.epsilon = dtype, epsilon
        self.scale = nnx.Param(jnp.ones((width,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((width,), param_dtype))

    def __call__(self, x: Float[Array, "batch length width"]) -> Float[Array, "batch length width"]:
        """The normalised `x`, in the module's dtype."""
        wide = _at_least_float32(x.dtype)
        x = x.astype(wide)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(x * x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(variance + jnp.asarray(self.epsilon, wide))
        scale, bias = (p[...].astype(wide)[None, None, :] for p in (self.scale, self.bias))
        return (x * scale + bias).astype(self.dtype)


class LMHead(nnx.Module):
    """Dense, activation, LayerNorm, the projection tied to the token embedding, plus a bias."""

    def __init__(self, vocab_size: int, width: int, activation: str, make: "_Make"):
        self.activation = activation
        self.dense = make.linear(width, width)
        self.layer_norm = make.norm(width)
        self.bias = nnx.Param(jnp.zeros((vocab_size,), make.param_dtype))

    def __call__(
        self,
        features: Float[Array, "batch positions width"],
        embedding: Float[Array, "vocab width"],
    ) -> Float[Array, "batch positions vocab"]:
        """Logits, float32 at least."""
        x = self.layer_norm(ACTIVATIONS[self.activation](self.dense(features)))
        wide = _at_least_float32(x.dtype)
        logits = jnp.einsum(
            "bpw,vw->bpv", x, embedding.astype(x.dtype), preferred_element_type=wide
        )
        return logits + self.bias[...].astype(wide)[None, None, :]


def _attention(
    q: Array, k: Array, v: Array, mask: Array, rate: float, key: PRNGKeyArray | None
) -> Array:
    """`jax.nn.dot_product_attention` with what it lacks: dropout on the probabilities, float64."""
    wide = _at_least_float32(q.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide)
    scores = scores * jnp.asarray(q.shape[-1] ** -0.5, wide)
    # A finite minimum, so that a row of nothing but padding gives no NaN.
    scores = jnp.where(mask, scores, jnp.finfo(wide).min)
    probabilities = _dropped(jax.nn.softmax(scores, axis=-1), rate, key)
    return jnp.einsum("bhqk,bkhd->bqhd", probabilities.astype(v.dtype), v)


def _dropped(x: Array, rate: float, key: PRNGKeyArray | None) -> Array:
    """Zero elements with probability `rate` and scale the others by 1 / (1 - rate)."""
    if key is None or not rate:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))


class _Make(NamedTuple):
    """How every layer of one model is made."""

    dtype: Any
    param_dtype: Any
    rngs: nnx.Rngs
    epsilon: float

    def norm(self, width: int) -> LayerNorm:
        return LayerNorm(width, self.dtype, self.param_dtype, self.epsilon)

    def embedding(self, rows: int, width: int, padding_id: int | None = None) -> nnx.Embed:
        def init(key: Array, shape: Any, dtype: Any, out_sharding: Any = None) -> Array:
            del out_sharding
            values = nnx.initializers.normal(_INIT_STDDEV)(key, shape, dtype)
            return values if padding_id is None else values.at[padding_id].set(0)

        return nnx.Embed(rows, width, embedding_init=init, **self._dtypes())

    def linear(self, inputs: int, outputs: int) -> nnx.Linear:
        kernel_init = nnx.initializers.normal(_INIT_STDDEV)
        return nnx.Linear(inputs, outputs, kernel_init=kernel_init, **self._dtypes())

    def _dtypes(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}


def _at_least_float32(dtype: Any) -> Any:
    return jnp.float64 if dtype == jnp.float64 else jnp.float32
