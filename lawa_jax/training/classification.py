"""Image classification: the loss function that training and evaluation steps take."""

from collections.abc import Callable
from typing import Any

import jax

from lawa_jax.data import Batch
from lawa_jax.data.images import normalize
from lawa_jax.models.functional import Functional, Model
from lawa_jax.training.losses import classification_metrics
from lawa_jax.training.metrics import MetricSums
from lawa_jax.training.steps import LossFn


def classification_loss(network: Functional, *, label_smoothing: float = 0.0) -> LossFn:
    """Mean softmax cross-entropy of ``{"image", "label"}`` batches, optionally with a ``"mask"``.

    Images are floats as they are, or uint8, normalised here, on the device, as `images.normalize`.
    Shapes: image (batch, height, width, channels), label (batch,) integers, mask (batch,) booleans,
    false for padding. Masked samples count neither in loss nor metrics, but BatchNorm does see
    them in train mode: mask in evaluation only.

    Label smoothing is for training; in evaluation the loss is the plain cross-entropy, so that
    runs with different smoothing compare.

    Args:
      network: gives logits; called with `train`.
      label_smoothing: 0 for none.
    """

    def loss_fn(
        model: Model, batch: Batch, key: jax.Array | None, train: bool
    ) -> tuple[jax.Array, tuple[dict[str, Any], MetricSums]]:
        del key  # the networks for images draw no random numbers
        logits, batch_stats = network.apply(model, normalize(batch["image"]), train=train)
        smoothing = label_smoothing if train else 0.0
        metrics = classification_metrics(logits, batch["label"], batch.get("mask"), smoothing)
        total, count = metrics["loss"]
        return total / count.astype(total.dtype), (batch_stats, metrics)

    return loss_fn


def moments_fn(network: Functional) -> Callable[[Model, Batch], dict[str, Any]]:
    """``apply_fn`` for `lawa_jax.recalibrate`, jitted: the moments of an image batch."""

    def moments(model: Model, batch: Batch) -> dict[str, Any]:
        return network.apply(model, normalize(batch["image"]), train=True, moments=True)[1]

    return jax.jit(moments)
