"""What all of these transformations share: when they look, and at what."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from lawa_jax.errors import SelectionError
from lawa_jax.tree import PyTree

AveragingState = TypeVar("AveragingState", bound=Any)


def check(**bounds: tuple[int, int]) -> None:
    """``check(k=(k, 1))``: k is an integer of at least 1."""
    for name, (found, least) in bounds.items():
        if not isinstance(found, int | np.integer) or isinstance(found, bool) or found < least:
            raise SelectionError(f"{name}: expected an integer >= {least}, found {found!r}")


def zero() -> Array:
    return jnp.zeros((), jnp.int32)


def widened(leaf: Array) -> Array:
    """In float32 at least, where sums are made."""
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def watching(
    init: Callable[[PyTree], AveragingState],
    remember: Callable[[AveragingState, PyTree], AveragingState],
    every: int,
    start: int,
) -> optax.GradientTransformation:
    """Updates pass unchanged; `remember` is given the new parameters whenever they are due."""

    def update(
        updates: Any, state: AveragingState, params: Any = None
    ) -> tuple[Any, AveragingState]:
        if params is None:
            raise SelectionError(
                "averaging needs the parameters: call optimizer.update(grads, state, params)"
            )
        state = state._replace(updates=state.updates + 1)
        due = (state.updates % every == 0) & (state.updates >= start)
        # Outside of the branch this is the very expression of the caller's `apply_updates`, which
        # XLA computes once: inside it would cost a pass and could be rounded differently (FMA).
        params = optax.apply_updates(params, updates)

        # A loop of one turn or none, since XLA's CPU compiler copies what a `cond` passes through;
        # tied to the loop's counter, since it would convert the parameters before every loop.
        def turn(i: Array, state: AveragingState) -> AveragingState:
            return remember(state, jax.lax.optimization_barrier((params, i))[0])

        return updates, jax.lax.fori_loop(0, due.astype(jnp.int32), turn, state)

    return optax.GradientTransformation(init, update)
