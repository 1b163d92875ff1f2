"""A task small enough for a unit test: a linear classifier with a BatchNorm-like statistic."""

import jax
import jax.numpy as jnp
import numpy as np

from lawa_jax.data.loader import ArraySource, eval_batches, train_batches
from lawa_jax.training.mesh import Placement
from lawa_jax.training.optim import sgd
from lawa_jax.training.steps import init_state, make_eval_step, make_train_step
from lawa_jax.training.task import Task

BATCH, SAMPLES = 8, 32


def tiny_task(seed=0, poison_at=None):
    """Linear regression in 3 variables; from update `poison_at` on, the learning rate is NaN."""
    generator = np.random.default_rng(7)
    x = generator.standard_normal((SAMPLES, 3)).astype(np.float32)
    y = (x @ np.float32([1, -2, 3]) + 0.1 * generator.standard_normal(SAMPLES)).astype(np.float32)
    source = ArraySource(x=x, y=y)

    def loss_fn(model, batch, key, train):
        errors = (batch["x"] @ model["params"]["w"] - batch["y"]) ** 2
        mask = batch.get("mask", jnp.ones(errors.shape, bool))
        total = jnp.sum(jnp.where(mask, errors, 0.0))
        count = jnp.sum(mask.astype(jnp.float32))
        stats = {"seen": model["batch_stats"]["seen"] + (1.0 if train else 0.0)}
        return total / count, (stats, {"loss": (total, count)})

    optimizer = sgd(momentum=0.9)

    def init():
        w = jax.random.normal(jax.random.key(seed), (3,))
        return init_state({"params": {"w": w}, "batch_stats": {"seen": jnp.zeros(())}}, optimizer)

    def rate(step):
        return float("nan") if poison_at is not None and step >= poison_at else 0.02

    return Task(
        unit="images",
        seed=seed,
        init=init,
        train_step=make_train_step(loss_fn, optimizer),
        eval_step=make_eval_step(loss_fn),
        learning_rate=rate,
        train_batches=lambda epoch, start: train_batches(
            source, batch_size=BATCH, seed=seed, epoch=epoch, start=start, threads=0
        ),
        eval_batches=lambda split: eval_batches(source, batch_size=BATCH, threads=0),
        recalibrate=None,
        batch_size=BATCH,
        samples_per_epoch=SAMPLES,
        place=Placement(),
    )
