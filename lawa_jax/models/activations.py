"""Activation functions of Transformers, under the names that checkpoints' configurations use."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array


def _relu_squared(x: Array) -> Array:
    return jnp.square(jax.nn.relu(x))


def _quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(x * jnp.asarray(1.702, x.dtype))


def _linear(x: Array) -> Array:
    return x


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "gelu": functools.partial(nnx.gelu, approximate=False),
        "gelu_tanh": functools.partial(nnx.gelu, approximate=True),
        "quick_gelu": _quick_gelu,
        "relu": jax.nn.relu,
        "relu_squared": _relu_squared,
        "silu": jax.nn.silu,
        "tanh": jnp.tanh,
        "linear": _linear,
    }
)
"""``gelu`` is exact (erf), ``gelu_tanh`` its approximation."""
