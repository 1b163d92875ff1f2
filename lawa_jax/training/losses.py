"""Losses, and metrics that add up.

A metric is a pair (sum, count). Pairs of batches, devices and processes are added, and divided
once at the end, so that a masked or shorter last batch weighs exactly what it holds.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lawa_jax.training.metrics import MetricSums


def softmax_cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    label_smoothing: float = 0.0,
) -> Float[Array, " batch"]:
    """Cross-entropy of each sample, in nats.

    ``(1 - s) * -log p[label] + s * mean_c -log p[c]`` with smoothing s (Szegedy et al. 2016,
    arXiv 1512.00567; PyTorch's ``cross_entropy(label_smoothing=s)``).

    Example: two classes with equal logits cost ``log 2`` each.

    Raises:
      ValueError: a smoothing outside [0, 1].
    """
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], found {label_smoothing}")
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1)[:, 0]
    if label_smoothing == 0.0:
        return -picked
    return -(1.0 - label_smoothing) * picked - label_smoothing * log_probabilities.mean(axis=-1)


def in_top_k(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], k: int
) -> Bool[Array, " batch"]:
    """Whether the label is among the k largest logits; of equals the lower class ranks first.

    The rank of a label is the number of classes with a larger logit, plus the lower-numbered
    classes with an equal one. For k = 1 this is ``argmax(logits) == label``. A label whose logit
    is NaN is in no top k.
    """
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    classes = jnp.arange(logits.shape[-1], dtype=labels.dtype)[None, :]
    ahead = (logits > of_label) | ((logits == of_label) & (classes < labels[:, None]))
    return (ahead.sum(axis=-1) < k) & ~jnp.isnan(of_label[:, 0])


def classification_metrics(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    mask: Bool[Array, " batch"] | None = None,
    label_smoothing: float = 0.0,
) -> MetricSums:
    """Sums and counts of ``loss``, ``top1`` and, with more than five classes, ``top5``.

    Args:
      logits: shape (batch, classes).
      labels: class of each sample.
      mask: true for samples that count; padding is false. All count by default.
      label_smoothing: of the loss.
    """
    kept = jnp.ones(labels.shape, bool) if mask is None else mask.astype(bool)
    values = {
        "loss": softmax_cross_entropy(logits, labels, label_smoothing),
        "top1": in_top_k(logits, labels, 1).astype(logits.dtype),
    }
    if logits.shape[-1] > 5:
        values["top5"] = in_top_k(logits, labels, 5).astype(logits.dtype)
    count = kept.sum(dtype=jnp.int32)
    # `where`, not a product: padding may hold NaN.
    return {name: (jnp.where(kept, value, 0.0).sum(), count) for name, value in values.items()}
