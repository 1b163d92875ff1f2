"""Masked language modelling: the loss function that training and evaluation steps take."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from lawa_jax.data import Batch
from lawa_jax.data.dictionary import PAD
from lawa_jax.models.functional import Functional, Model
from lawa_jax.training.metrics import MetricSums
from lawa_jax.training.steps import LossFn


def masked_lm_loss(network: Functional) -> LossFn:
    """Mean cross-entropy over the masked tokens of a batch.

    What is minimised is in nats; what is reported is in bits, as fairseq does: the sum over masked
    tokens divided by their number and by ln 2; perplexity is ``2 ** loss``. Sums and counts add
    over batches, so that every masked token weighs the same.

    A batch is a dict of int32 arrays: ``tokens`` [rows, length], ``masked_positions`` and
    ``targets`` [rows, targets], the last ``<pad>`` where unused, and optionally ``mask`` [rows]
    booleans, false for rows that count nowhere. Metrics are ``loss`` (bits) and ``accuracy``.

    Example: a model that knows nothing of 50,265 symbols has loss log2(50265) = 15.6 bits.

    Args:
      network: gives logits at ``masked_positions``; called with `train` and `key`.
    """

    def loss_fn(
        model: Model, batch: Batch, key: jax.Array | None, train: bool
    ) -> tuple[jax.Array, tuple[dict[str, Any], MetricSums]]:
        logits, batch_stats = network.apply(
            model, batch["tokens"], batch["masked_positions"], train=train, key=key
        )
        targets = batch["targets"]
        counted = targets != PAD
        if "mask" in batch:
            counted = counted & batch["mask"].astype(bool)[:, None]
        # Not log_softmax, which would write a second array as large as the logits.
        picked = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
        nats = jax.nn.logsumexp(logits, axis=-1) - picked
        total = jnp.where(counted, nats, 0.0).sum()
        count = counted.sum(dtype=jnp.int32)
        right = counted & (jnp.argmax(logits, axis=-1).astype(targets.dtype) == targets)
        metrics = {
            "loss": (total / math.log(2.0), count),
            "accuracy": (right.sum(dtype=total.dtype), count),
        }
        # A batch without any target has loss 0 and gradient 0, not NaN.
        mean = total / jnp.maximum(count, 1).astype(total.dtype)
        return mean, (batch_stats, metrics)

    return loss_fn
