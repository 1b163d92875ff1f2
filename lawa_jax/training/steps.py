"""The jitted training and evaluation steps, on pure dicts.

State is ``{"model": {"params": ..., "batch_stats": ...}, "opt_state": ...}``. Steps say nothing of
devices: shard the batch over its first axis and replicate the state, and XLA inserts the
reductions; BatchNorm moments and metrics are then those of the global batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lawa_jax.data import Batch
from lawa_jax.models.functional import Model
from lawa_jax.training.metrics import MetricSums

TrainState = dict[str, Any]
# (model, batch, key, train) -> (loss, (batch_stats, metrics)); key is None in evaluation.
LossFn = Callable[
    [Model, Batch, jax.Array | None, bool], tuple[jax.Array, tuple[dict[str, Any], MetricSums]]
]


def init_state(model: Model, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh training state around `model` (whose arrays it holds, without copies)."""
    return {"model": model, "opt_state": optimizer.init(model["params"])}


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    keep: Callable[[TrainState], TrainState] = lambda state: state,
) -> Callable[[TrainState, Batch, float | jax.Array, jax.Array], tuple[TrainState, MetricSums]]:
    """One optimizer step: ``params <- params - lr * direction(gradient)``.

    Args:
      loss_fn: mean loss of a batch, with updated batch statistics and metrics. ``metrics["loss"]``
        must be a pair (sum, count) whose count is what the mean was taken over.
      optimizer: gives a direction without learning rate, see `lawa_jax.training.optim`.
      accumulate: the batch is worked through in this many parts and their gradients are summed
        with weights proportional to their loss counts, so the result is the gradient of the mean
        over the whole batch, also when parts hold unequal numbers of targets. Part i takes samples
        i, i + accumulate, ...: with a sharded batch every device keeps its own samples.
        BatchNorm sees the parts one after the other, as in PyTorch.
      keep: applied to the new state, to say where it lives.

    Returns:
      ``step(state, batch, lr, key) -> (state, metrics)``. `state` is donated: do not use it again.
      `lr` is traced, so changing it compiles nothing. `key` is a PRNG key, folded with the part's
      number when accumulating.

    Raises:
      ValueError: accumulate < 1; while tracing, a batch that does not split into that many parts.
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, found {accumulate}")

    def gradient(
        model: Model, batch: Batch, key: jax.Array
    ) -> tuple[Any, tuple[dict[str, Any], MetricSums]]:
        def of_params(params: Any) -> tuple[jax.Array, tuple[dict[str, Any], MetricSums]]:
            return loss_fn({**model, "params": params}, batch, key, True)

        return jax.grad(of_params, has_aux=True)(model["params"])

    def accumulated(
        model: Model, batch: Batch, key: jax.Array
    ) -> tuple[Any, tuple[dict[str, Any], MetricSums]]:
        parts = jax.tree.map(lambda x: _parts(x, accumulate), batch)
        first = jax.tree.map(lambda x: x[0], parts)
        _, (_, shapes) = jax.eval_shape(gradient, model, first, key)
        zeros = (
            jax.tree.map(jnp.zeros_like, model["params"]),
            model.get("batch_stats", {}),
            jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
        )

        def body(carry: Any, numbered_part: Any) -> tuple[Any, None]:
            total, stats, metrics = carry
            number, part = numbered_part
            current = {**model, "batch_stats": stats} if stats else model
            grads, (stats, more) = gradient(current, part, jax.random.fold_in(key, number))
            count = more["loss"][1]
            total = jax.tree.map(lambda t, g: t + g * count.astype(g.dtype), total, grads)
            return (total, stats, jax.tree.map(jnp.add, metrics, more)), None

        numbers = jnp.arange(accumulate, dtype=jnp.uint32)
        (total, stats, metrics), _ = jax.lax.scan(body, zeros, (numbers, parts))
        count = metrics["loss"][1]
        return jax.tree.map(lambda t: t / count.astype(t.dtype), total), (stats, metrics)

    def step(
        state: TrainState, batch: Batch, lr: jax.Array, key: jax.Array
    ) -> tuple[TrainState, MetricSums]:
        model = state["model"]
        grads, (stats, metrics) = (gradient if accumulate == 1 else accumulated)(model, batch, key)
        direction, opt_state = optimizer.update(grads, state["opt_state"], model["params"])
        rate = jnp.asarray(lr)
        params = jax.tree.map(lambda p, d: p - rate.astype(p.dtype) * d, model["params"], direction)
        new_model = {**model, "params": params}
        if stats:
            new_model["batch_stats"] = stats
        return keep({"model": new_model, "opt_state": opt_state}), metrics

    return jax.jit(step, donate_argnums=0)


def make_eval_step(loss_fn: LossFn) -> Callable[[Model, Batch], MetricSums]:
    """``step(model, batch) -> metrics``, jitted; `loss_fn` is called with train=False, no key."""

    def step(model: Model, batch: Batch) -> MetricSums:
        return loss_fn(model, batch, None, False)[1][1]

    return jax.jit(step)


def _parts(x: jax.Array, parts: int) -> jax.Array:
    """(batch, ...) to (parts, batch / parts, ...), part i holding samples i, i + parts, ..."""
    if x.shape[0] % parts:
        raise ValueError(
            f"a batch of {x.shape[0]} does not split into {parts} equal parts to accumulate over"
        )
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
