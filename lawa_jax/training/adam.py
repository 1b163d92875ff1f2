"""Adam as fairseq computes it, and its polynomial learning-rate schedule.

Both without a learning rate inside: the training step subtracts lr times the direction.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int


class AdamState(NamedTuple):
    """State of `adam`."""

    step: Int[Array, ""]  # updates so far, int32
    mean: optax.Params  # of the gradient, like the parameters
    square: optax.Params  # mean of the squared gradient, like the parameters


def adam(
    b1: float = 0.9, b2: float = 0.98, eps: float = 1e-6, weight_decay: float = 0.01
) -> optax.GradientTransformation:
    """fairseq's Adam: decoupled weight decay of every parameter, eps before bias correction.

    ::

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) g^2
        d  = weight_decay * params + sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps)

    The decay is decoupled ("AdamW", Loshchilov and Hutter 2017, arXiv 1711.05101): fairseq's
    ``Adam.step`` shrinks the parameters by ``lr * weight_decay`` and leaves g, m and v alone;
    biases and LayerNorm parameters decay too. It differs from `optax.adamw` and
    `torch.optim.AdamW` in eps, which is added to sqrt(v) and not to the bias-corrected
    sqrt(v / (1 - b2^t)): with b2 = 0.98 it weighs 7 times more in the first update than theirs.

    Example: in the first update a gradient g gives ``m / (sqrt(v) + eps)`` scaled to
    ``g / (|g| + eps / sqrt(1 - b2))``, about sign(g).

    Raises:
      ValueError: rates outside [0, 1); on update without params when there is weight decay.
    """
    if not (0.0 <= b1 < 1.0 and 0.0 <= b2 < 1.0):
        raise ValueError(f"b1 and b2 must be in [0, 1), found {b1} and {b2}")

    def init(params: optax.Params) -> AdamState:
        # Two separate trees: a donated buffer must not occur twice.
        return AdamState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(jnp.zeros_like, params),
        )

    def update(
        updates: optax.Updates, state: AdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AdamState]:
        if params is None:
            if weight_decay:
                raise ValueError(
                    "adam with weight decay needs params: update(grads, state, params)"
                )
            params = updates
        step = state.step + 1

        def new_mean(m: Array, g: Array) -> Array:
            return b1 * m + (1 - b1) * g.astype(m.dtype)

        def new_square(v: Array, g: Array) -> Array:
            return b2 * v + (1 - b2) * jnp.square(g.astype(v.dtype))

        mean = jax.tree.map(new_mean, state.mean, updates)
        square = jax.tree.map(new_square, state.square, updates)

        def direction(p: Array, m: Array, v: Array) -> Array:
            correction = jnp.sqrt(_one_minus_power(b2, step, m)) / _one_minus_power(b1, step, m)
            d = correction * m / (jnp.sqrt(v) + eps)
            return d + weight_decay * p if weight_decay else d

        return jax.tree.map(direction, params, mean, square), AdamState(step, mean, square)

    return optax.GradientTransformation(init, update)


def polynomial_decay(
    updates: float,
    *,
    peak: float = 5e-4,
    warmup: int = 10_000,
    horizon: int = 125_000,
    end: float = 0.0,
    power: float = 1.0,
) -> float:
    """Learning rate of the update that follows `updates` updates: warm-up, then decay.

    ::

        peak * updates / warmup                                            up to `warmup`
        end + (peak - end) * ((horizon - updates) / (horizon - warmup))^power    then
        end                                                                from `horizon` on

    fairseq's ``polynomial_decay`` as its trainer steps it: the very first update has rate 0.

    Example: with the defaults, 10,000 gives 5e-4, 67,500 gives 2.5e-4. The paper's 27,200 updates
    end at 4.25e-4, 85 % of the peak.

    Raises:
      ValueError: a negative warm-up, or a horizon that is not after it.
    """
    if not 0 <= warmup < horizon:
        raise ValueError(f"need 0 <= warmup < horizon, found {warmup} and {horizon}")
    if warmup and updates <= warmup:
        return peak * updates / warmup
    if updates >= horizon:
        return end
    return (peak - end) * (1 - (updates - warmup) / (horizon - warmup)) ** power + end


def _one_minus_power(base: float, exponent: Array, like: Array) -> Array:
    """1 - base^exponent in the dtype of `like`; expm1 keeps the digits that 1 - 0.98 loses."""
    if base == 0.0:
        return jnp.ones((), like.dtype)
    log = jnp.asarray(math.log(base), like.dtype)
    return -jnp.expm1(exponent.astype(like.dtype) * log)
