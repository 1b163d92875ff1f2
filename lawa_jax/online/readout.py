"""Reading the average out of an optimizer state, and going on from it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from lawa_jax.averaging import coefficients
from lawa_jax.averaging.device import average
from lawa_jax.errors import SelectionError
from lawa_jax.online.ring import RingState
from lawa_jax.online.running import CorrectedState, RunningState
from lawa_jax.online.transformation import widened
from lawa_jax.tree import PyTree, is_averaged

STATES = (RingState, RunningState, CorrectedState)


def averaged_params(
    opt_state: Any, *, kind: str = "uniform", k: int | None = None, dtype: Any = None
) -> PyTree:
    """The average that a transformation of this package holds; nothing is changed.

    Outside of `jax.jit` the mean of a ring is `lawa_jax.average` of its copies, with the same bits
    as averaging checkpoints of those steps; before the ring is full, of those there are. Under
    `jax.jit` the sums are float32, taken around the newest copy (the last bits may differ), and
    with nothing stored the result is the parameters that the state was made from.

    Args:
      opt_state: of an optimizer that holds exactly one such transformation, however deep; of one
        with several, the state of the wanted one: ``averaged_params(opt_state[-2])``.
      kind: "uniform", "linear", "ema:0.9" or "decay:1-sqrt": how a ring's copies are weighed.
      k: number of copies that the ring is expected to have, checked if given.
      dtype: of the result's floating-point leaves; the copies' by default.

    Raises:
      SelectionError: none or several such states, one that is not last in its chain, one with
        another k, a kind or k for what is no ring, or (outside of jit) nothing stored yet.
    """
    state = _find(opt_state)
    traced = isinstance(state.stored, jax.core.Tracer)
    if not traced and int(state.stored) == 0:
        raise SelectionError(
            f"no parameters are stored yet, after {int(state.updates)} updates; wait for the "
            "first multiple of `every` from `start` on"
        )
    if not isinstance(state, RingState):
        if kind != "uniform" or k is not None:
            raise SelectionError(
                f"kind={kind!r} and k={k} are for latest_weight_averaging; the optimizer holds one "
                "running average, which was weighed in training"
            )
        mean = state.mean if isinstance(state, RunningState) else state.corrected
        # Copies: the next training step may donate the state.
        return jax.tree.map(lambda m: jnp.array(_as(m, dtype), copy=True), mean)
    copies = jax.tree.leaves(state.ring)
    if not copies:
        raise SelectionError("the averaging transformation was given no parameters (all masked?)")
    held = copies[0].shape[0]
    if k is not None and k != held:
        raise SelectionError(
            f"the optimizer state was made with k={held}, expected k={k}; begin a new ring with "
            "optimizer.init, or read it with its own k"
        )
    return _traced_mean(state, held, kind, dtype) if traced else _mean(state, held, kind, dtype)


def restart_from_average(
    optimizer: optax.GradientTransformation,
    opt_state: Any,
    *,
    params: PyTree | None = None,
    reset: bool = True,
) -> tuple[PyTree, Any]:
    """Parameters set to the average, and the optimizer state to go on with.

    Args:
      optimizer: the whole optimizer.
      opt_state: its state.
      params: the present parameters. The average is given their dtypes, and what an `optax.masked`
        keeps from being averaged is taken from them. Needed where copies are kept in another dtype.
      reset: begin with fresh optimizer state (momentum belongs to the weights that were left);
        otherwise it is returned as it is, the ring included.

    Returns:
      ``(params, opt_state)``.

    Raises:
      SelectionError: see `averaged_params`; parameters that are masked, and `params` not given.
    """
    mean = averaged_params(opt_state)
    if params is not None:
        mean = jax.tree.map(_filled, mean, params, is_leaf=_is_masked)
    elif any(map(_is_masked, jax.tree.leaves(mean, is_leaf=_is_masked))):
        raise SelectionError(
            "some parameters are masked and have no average; give the present ones as params="
        )
    return mean, optimizer.init(mean) if reset else opt_state


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _filled(mean: Any, present: PyTree) -> PyTree:
    # Copies, as all of an average is: the next training step may donate what it is given.
    if _is_masked(mean):
        return jax.tree.map(lambda p: jnp.array(p, copy=True), present)
    return mean.astype(present.dtype)


def _mean(state: RingState, k: int, kind: str, dtype: Any) -> PyTree:
    stored = int(state.stored)
    slots = [i % k for i in range(max(stored - k, 0), stored)]  # oldest first
    copies = [jax.tree.map(lambda r, s=slot: _to_device(r)[s], state.ring) for slot in slots]
    return average(copies, _weights(kind, len(slots)), dtype=dtype)


def _traced_mean(state: RingState, k: int, kind: str, dtype: Any) -> PyTree:
    """Under jit, where the number of copies is not known: rows of weights for each number."""
    rows = np.zeros((k + 1, k), np.float32)
    rows[0, -1] = 1
    for count in range(1, k + 1):
        row = np.asarray(_weights(kind, count), np.float64)
        rows[count, k - count :] = row / row.sum()
    weights = jnp.asarray(rows)[jnp.minimum(state.stored, k)]
    # Position i of the window lies in slot (stored - k + i) mod k; unfilled ones weigh nothing.
    slots = (state.stored - k + jnp.arange(k, dtype=jnp.int32)) % k

    def mean(ring: Array) -> Array:
        ring = _to_device(ring)
        newest = ring[slots[-1]]
        if not is_averaged(np.dtype(ring.dtype)):
            return newest
        # Around the newest copy, so that the mean of equal copies is that copy.
        wide = widened(newest)
        total = wide
        for i in range(k - 1):
            total = total + weights[i] * (widened(ring[slots[i]]) - wide)
        return _as(total.astype(ring.dtype) if dtype is None else total, dtype)

    return jax.tree.map(mean, state.ring)


def _to_device(ring: Array) -> Array:
    return jax.device_put(ring, jax.memory.Space.Device)


def _as(leaf: Array, dtype: Any) -> Array:
    return leaf if dtype is None or not is_averaged(np.dtype(leaf.dtype)) else leaf.astype(dtype)


def _weights(kind: str, count: int) -> list[float]:
    if kind == "uniform":
        return [1.0] * count
    if kind.startswith("power_ema"):
        raise SelectionError("power_ema: use power_average; a ring does not hold all of training")
    if kind.startswith("bema"):
        raise SelectionError("bema: use bias_corrected_average; a ring does not hold its origin")
    return [float(c) for c in coefficients.of_method(kind, range(1, count + 1))]


def _find(opt_state: Any) -> RingState | RunningState | CorrectedState:
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, STATES))
    found = [leaf for leaf in leaves if isinstance(leaf, STATES)]
    if len(found) != 1:
        raise SelectionError(
            "expected one averaging transformation in the optimizer state, found "
            f"{len(found)}: {[type(f).__name__ for f in found]}"
            + ("; give the state of one of them, such as opt_state[-1]" if found else "")
        )
    if type(opt_state) is tuple and any(s is found[0] for s in opt_state[:-1]):
        raise SelectionError(
            "the averaging transformation is not last in its chain, and stores parameters that "
            "never were; put it last"
        )
    # Flax NNX wraps every array of an optimizer's state in a Variable.
    return jax.tree.map(
        lambda v: v.get_value() if hasattr(v, "get_value") else v,
        found[0],
        is_leaf=lambda v: hasattr(v, "get_value"),
    )
