"""Averaging coefficients learned on held-out data: N numbers, by gradient.

``theta(c) = sum_j c_j theta_j`` is linear in c, so that ``dL/dc_j = <dL/dtheta, theta_j>``: a
step costs one pass forward and backward and N inner products. In the manner of trainable weight
averaging (Li et al. 2022, arXiv 2205.13104), with the checkpoints themselves as the basis.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from lawa_jax.errors import SelectionError, TrainingFailedError
from lawa_jax.tree import PyTree, check_compatible, is_averaged, named_leaves, spec_of


class Learned(NamedTuple):
    """Coefficients, oldest first.

    Attributes:
      coefficients: [N] float64, of sum 1: the weights to give to `lawa_jax.average`.
      losses: held-out loss at every step, the first with equal weights.
    """

    coefficients: Float[np.ndarray, " n"]
    losses: list[float]


def learn_coefficients(
    trees: Sequence[PyTree],
    loss: Callable[[PyTree, Any], Array],
    batches: Iterable[Any],
    *,
    passes: int = 10,
    learning_rate: float = 0.1,
    constraint: Literal["convex", "affine"] = "convex",
) -> Learned:
    """Coefficients that make the loss of the weighted average small on `batches`.

    All trees are held in memory at once. Adam, beginning with equal weights.

    Args:
      trees: checkpoints of one model, oldest first.
      loss: ``loss(tree, batch)``, a scalar that JAX can differentiate with respect to the tree.
      batches: held-out data, gone through `passes` times.
      passes: over the batches.
      learning_rate: of Adam, on the logits (convex) or the coefficients (affine).
      constraint: "convex": a softmax, all positive; "affine": of sum 1, of any sign.

    Raises:
      SelectionError: no trees, no batches, or an unknown constraint.
      TreeMismatchError: the trees differ.
      TrainingFailedError: the loss is not finite, or calls sys.exit().
    """
    batches = list(batches)
    if not trees or not batches:
        raise SelectionError(
            f"expected trees and held-out batches, found {len(trees)} and {len(batches)}"
        )
    if constraint not in ("convex", "affine"):
        raise SelectionError(f"constraint: expected 'convex' or 'affine', found {constraint!r}")
    check_compatible(
        {
            f"tree {number}": {name: spec_of(leaf) for name, leaf in named_leaves(tree).items()}
            for number, tree in enumerate(trees, 1)
        }
    )
    n = len(trees)

    def coefficients(free: Array) -> Array:
        if constraint == "convex":
            return jax.nn.softmax(free)
        return 1 / n + free - jnp.mean(free)

    optimizer = optax.adam(learning_rate)

    @jax.jit
    def step(free: Array, state: Any, trees: Sequence[PyTree], batch: Any) -> Any:
        def objective(free: Array) -> Array:
            return loss(_combined(trees, coefficients(free)), batch)

        value, gradient = jax.value_and_grad(objective)(free)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(free, updates), state, value

    free = jnp.zeros(n, jnp.float32)
    losses: list[float] = []
    # optax counts in int32 beside floats.
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(free)
        for _ in range(passes):
            for batch in batches:
                try:
                    free, state, value = step(free, state, trees, batch)
                except SystemExit as error:
                    # With 0 it would end the program as if coefficients had been found.
                    raise TrainingFailedError(
                        f"the loss called sys.exit({error.code}) at step {len(losses) + 1}; "
                        "let it return a scalar, or raise an error"
                    ) from error
                losses.append(float(value))
                if not np.isfinite(losses[-1]):
                    raise TrainingFailedError(
                        f"the held-out loss is {losses[-1]} at step {len(losses)}; choose a "
                        "smaller learning_rate, or leave damaged checkpoints out"
                    )
        found = np.asarray(coefficients(free), np.float64)
    return Learned(found / found.sum(), losses)


def _combined(trees: Sequence[PyTree], c: Float[Array, " n"]) -> PyTree:
    def combine(*leaves: Any) -> Any:
        newest = leaves[-1]
        if not is_averaged(spec_of(newest).dtype):
            return newest
        kind = jnp.complex64 if jnp.iscomplexobj(newest) else jnp.float32
        total = sum(c[j] * leaf.astype(kind) for j, leaf in enumerate(leaves))
        return jnp.asarray(total).astype(newest.dtype)

    return jax.tree.map(combine, *trees)
