"""LAWA in the training loop: a ring of the latest k copies of the parameters."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from lawa_jax.errors import SelectionError
from lawa_jax.online.transformation import check, watching, zero
from lawa_jax.tree import PyTree, is_averaged, spec_of


class RingState(NamedTuple):
    """State of `latest_weight_averaging`; saved and sharded like any optimizer state."""

    updates: Int[Array, ""]  # seen so far, int32
    stored: Int[Array, ""]  # copies ever stored, int32; the ring holds the latest k of them
    ring: PyTree  # like the parameters, with a new first axis of length k


def latest_weight_averaging(
    k: int,
    every: int = 1,
    *,
    start: int = 0,
    dtype: Any = None,
    memory: Literal["device", "host"] = "device",
    enabled: bool = True,
) -> optax.GradientTransformation:
    """Keep the parameters after every `every`-th update, the latest `k` of them (LAWA).

    Source: Kaddour 2022 (arXiv 2209.14981) with steps for epochs; Sanyal et al. 2023 (2306.03241).

    The ring is sharded like the parameters when `init` is given them outside of `jax.jit`.

    Args:
      k: copies kept; memory is `k` times that of the parameters in `dtype`.
      every: updates between copies.
      start: no copies before this many updates.
      dtype: of the copies of floating-point leaves; the parameters' by default.
      memory: where the copies live: with the parameters, or in pinned memory of the host, to which
        they are copied inside the jitted step (the training step's output shardings must then be
        left to JAX, or say ``memory_kind="pinned_host"`` for the ring).
      enabled: false for a transformation that does and keeps nothing, so that one line of code
        serves runs with and without averaging.

    Raises:
      SelectionError: k or every below 1, start below 0; update without parameters, or with a
        state that was made with another k.
    """
    check(k=(k, 1), every=(every, 1), start=(start, 0))
    if memory not in ("device", "host"):
        raise SelectionError(f"memory: expected 'device' or 'host', found {memory!r}")
    if not enabled:
        return optax.identity()
    on_host = memory == "host"

    def init(params: PyTree) -> RingState:
        # Filled with the parameters themselves, so that the ring gets their sharding; never read
        # before they have been overwritten.
        def slots(p: Any) -> Array:
            p = jnp.asarray(p, _kept(p, dtype))
            ring = jnp.broadcast_to(p[None], (k, *p.shape))
            return jax.device_put(ring, jax.memory.Space.Host) if on_host else ring

        return RingState(zero(), zero(), jax.tree.map(slots, params))

    def remember(state: RingState, params: PyTree) -> RingState:
        # Orbax restores any shape that was saved, and a slot beyond the ring's end would be clamped
        # into its last one.
        held = {leaf.shape[0] for leaf in jax.tree.leaves(state.ring)}
        if held - {k}:
            raise SelectionError(
                f"the optimizer state was made with k={', '.join(map(str, sorted(held)))}, this "
                f"optimizer with k={k}; go on with the same k, or begin a new ring with "
                "optimizer.init"
            )
        slot = state.stored % k
        copies = jax.tree.map(lambda r, p: p.astype(r.dtype), state.ring, params)
        ring = (_put_on_host if on_host else _put)(state.ring, copies, slot)
        return state._replace(stored=state.stored + 1, ring=ring)

    return watching(init, remember, every, start)


def _put(ring: PyTree, copies: PyTree, slot: Array) -> PyTree:
    # As bits, since XLA's CPU compiler would widen a whole bfloat16 ring to write one slot of it.
    def put(ring: Array, copy: Array) -> Array:
        floating = jnp.issubdtype(ring.dtype, jnp.floating)
        bits = jnp.dtype(f"uint{8 * ring.itemsize}") if floating else ring.dtype
        new = jax.lax.dynamic_update_index_in_dim(ring.view(bits), copy.view(bits), slot, 0)
        return new.view(ring.dtype)

    return jax.tree.map(put, ring, copies)


def _put_on_host(ring: PyTree, copies: PyTree, slot: Array) -> PyTree:
    from jax.experimental import compute_on

    # jax 0.11 gave the name of what had been its context manager to what 0.10 calls compute_on2.
    decorate: Any = getattr(compute_on, "compute_on2", compute_on.compute_on)
    host = jax.memory.Space.Host
    spaces = jax.tree.map(lambda _: host, ring)
    put = decorate(_put, compute_type="device_host", out_memory_spaces=spaces)
    return put(ring, *jax.device_put((copies, slot), host))


def _kept(leaf: Any, dtype: Any) -> Any:
    own = spec_of(leaf).dtype
    return own if dtype is None or not is_averaged(own) else jnp.dtype(dtype)
