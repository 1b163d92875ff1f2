"""Running averages of the parameters: one copy (or three), blended as training goes on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from lawa_jax.errors import SelectionError
from lawa_jax.online.transformation import check, watching, widened, zero
from lawa_jax.tree import PyTree, is_averaged, spec_of


class RunningState(NamedTuple):
    """State of `exponential_average` and `power_average`."""

    updates: Int[Array, ""]  # seen so far, int32
    stored: Int[Array, ""]  # of them averaged, int32
    mean: PyTree  # like the parameters


class CorrectedState(NamedTuple):
    """State of `bias_corrected_average`."""

    updates: Int[Array, ""]  # seen so far, int32
    stored: Int[Array, ""]  # of them averaged, int32
    mean: PyTree  # the exponential average, like the parameters
    origin: PyTree  # the first parameters seen
    corrected: PyTree  # the result


def exponential_average(
    decay: float, every: int = 1, *, start: int = 0, dtype: Any = None, enabled: bool = True
) -> optax.GradientTransformation:
    """``mean <- decay mean + (1 - decay) params``, beginning with the first parameters seen.

    Args:
      decay: weighs the OLD average.
      every: updates between looks.
      start: no looks before this many updates.
      dtype: of the average's floating-point leaves; by default the parameters', float32 at least:
        in bfloat16 an average stops moving once its steps fall below its last bit.
      enabled: false for a transformation that does and keeps nothing.

    Raises:
      SelectionError: decay outside [0, 1), every below 1, start below 0.
    """
    if not 0 <= decay < 1:
        raise SelectionError(f"decay: expected in [0, 1), found {decay}")

    def share(stored: Array) -> Array:
        return jnp.where(stored == 0, jnp.float32(1), jnp.float32(1 - decay))

    return _running(share, every, start, dtype, enabled)


def power_average(
    gamma: float, every: int = 1, *, start: int = 0, dtype: Any = None, enabled: bool = True
) -> optax.GradientTransformation:
    """Power-function EMA: ``mean <- b mean + (1 - b) params`` with ``b = (1 - 1/t)^(gamma + 1)``.

    t counts the parameters seen; after t of them those of time s weigh in proportion to
    ``s^gamma``. `lawa_jax.averaging.coefficients.gamma_of_sigma` gives gamma for a relative
    width: 6.94 is sigma_rel 0.10, 16.97 is 0.05. Source: Karras et al. 2023 (arXiv
    2312.02696), equation 127.
    All other arguments as for `exponential_average`.

    Raises:
      SelectionError: a negative gamma, every below 1, start below 0.
    """
    if not gamma >= 0:
        raise SelectionError(f"gamma: expected >= 0, found {gamma}")

    def share(stored: Array) -> Array:
        # -expm1(x log(1 - 1/t)) and not 1 - (1 - 1/t)^x, which cancels at large t.
        t = stored.astype(jnp.float32) + 1
        return -jnp.expm1(jnp.float32(gamma + 1) * jnp.log1p(-1 / t))

    return _running(share, every, start, dtype, enabled)


def bias_corrected_average(
    every: int = 1,
    *,
    start: int = 0,
    ema_power: float = 0.5,
    bias_power: float = 0.2,
    multiplier: float = 1.0,
    lag: float = 10.0,
    dtype: Any = None,
    enabled: bool = True,
) -> optax.GradientTransformation:
    """BEMA: ``(rho + gamma t)^-eta (params - params_0) + mean_t``.

    ``mean_t = (1 - b) mean_{t-1} + b params`` with ``b = (rho + gamma t)^-kappa``; t counts updates
    since params_0, the first parameters seen, with which the mean begins. Source: Block & Zhang
    2025 (arXiv 2508.00180), algorithm 1. Needs three copies of the parameters.

    Args:
      every: updates between looks.
      start: no looks before this many updates (the burn-in).
      ema_power: kappa.
      bias_power: eta.
      multiplier: gamma.
      lag: rho.
      dtype: of the copies, as for `exponential_average`.
      enabled: false for a transformation that does and keeps nothing.

    Raises:
      SelectionError: every below 1, start below 0, a negative power or multiplier, lag below 1.
    """
    check(every=(every, 1), start=(start, 0))
    if not (ema_power >= 0 and bias_power >= 0 and multiplier >= 0 and lag >= 1):
        raise SelectionError(
            "expected powers and multiplier >= 0 and lag >= 1, found "
            f"{ema_power=}, {bias_power=}, {multiplier=}, {lag=}"
        )

    if not enabled:
        return optax.identity()

    def init(params: PyTree) -> CorrectedState:
        copies = [_copy(params, dtype) for _ in range(3)]
        return CorrectedState(zero(), zero(), *copies)

    def remember(state: CorrectedState, params: PyTree) -> CorrectedState:
        first = state.stored == 0
        width = lag + multiplier * (state.stored * every).astype(jnp.float32)
        share = jnp.where(first, jnp.float32(1), width**-ema_power)
        factor = width**-bias_power
        origin = jax.tree.map(
            lambda o, p: jnp.where(first, p.astype(o.dtype), o), state.origin, params
        )
        mean = jax.tree.map(lambda m, p: _blend(m, p, share), state.mean, params)

        def correct(m: Array, p: Array, o: Array) -> Array:
            if not is_averaged(np.dtype(p.dtype)):
                return p
            wide = [widened(x) for x in (m, p, o)]
            return (wide[0] + factor * (wide[1] - wide[2])).astype(m.dtype)

        corrected = jax.tree.map(correct, mean, params, origin)
        return CorrectedState(state.updates, state.stored + 1, mean, origin, corrected)

    return watching(init, remember, every, start)


def _running(
    share: Callable[[Array], Array], every: int, start: int, dtype: Any, enabled: bool
) -> optax.GradientTransformation:
    check(every=(every, 1), start=(start, 0))
    if not enabled:
        return optax.identity()

    def init(params: PyTree) -> RunningState:
        return RunningState(zero(), zero(), _copy(params, dtype))

    def remember(state: RunningState, params: PyTree) -> RunningState:
        new = share(state.stored)
        mean = jax.tree.map(lambda m, p: _blend(m, p, new), state.mean, params)
        return state._replace(stored=state.stored + 1, mean=mean)

    return watching(init, remember, every, start)


def _copy(params: PyTree, dtype: Any) -> PyTree:
    def copy(p: Any) -> Array:
        own = spec_of(p).dtype
        kept = jnp.promote_types(own, jnp.float32) if dtype is None else jnp.dtype(dtype)
        # A copy, since a training step may donate parameters and optimizer state both.
        return jnp.array(p, kept if is_averaged(own) else own, copy=True)

    return jax.tree.map(copy, params)


def _blend(mean: Array, p: Array, share: Float[Array, ""]) -> Array:
    if not is_averaged(np.dtype(p.dtype)):
        return p
    wide, x = widened(mean), widened(p)
    # Not (1 - share) mean + share x, which would move a mean that equals the parameters. The
    # first parameters (share 1) are taken as they are, since mean + (x - mean) is not quite x.
    return jnp.where(share == 1, x, wide + share * (x - wide)).astype(mean.dtype)
