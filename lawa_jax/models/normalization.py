"""BatchNorm as PyTorch defines it (``torch.nn.BatchNorm2d``), for channels-last arrays.

Flax's differs in three ways that show in numbers: its running variance is biased, its momentum
counts the other way, and its fast variance E[x^2] - E[x]^2 cancels when the mean is large.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def statistics_dtype(dtype: Any) -> Any:
    """float64 for float64, float32 for everything narrower."""
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


class BatchNorm(nnx.Module):
    """Normalises each channel by the batch's moments (train) or by running ones (evaluation).

    ::

        train:  y = (x - mean_B) / sqrt(var_B + eps) * scale + bias        var_B biased (1/n)
                running_mean <- (1 - momentum) running_mean + momentum mean_B
                running_var  <- (1 - momentum) running_var  + momentum var_B n / (n - 1)

    with n the number of values per channel. Statistics are computed in two passes, in float32
    whatever the compute dtype (float64 where the parameters are). Source: Ioffe and Szegedy 2015
    (arXiv 1502.03167); defaults and the unbiased running variance are PyTorch's.

    Args:
      features: number of channels (the last axis).
      momentum: weight of the new batch in the running statistics, as in torch (flax: one minus it).
      eps: added to the variance.
      groups: train mode splits the batch into this many contiguous equal parts, normalises each by
        its own moments, and updates the running statistics from the first part alone: what
        torch's DataParallel does with one part per GPU.
      dtype: dtype of the output.
      param_dtype: dtype of scale and bias.
    """

    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
        groups: int = 1,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
    ):
        if groups < 1:
            raise ValueError(f"groups must be at least 1, found {groups}")
        self.momentum = momentum
        self.eps = eps
        self.groups = groups
        self.dtype = dtype
        self.stat_dtype = statistics_dtype(param_dtype)
        self.scale = nnx.Param(jnp.ones((features,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((features,), param_dtype))
        self.mean = nnx.BatchStat(jnp.zeros((features,), self.stat_dtype))
        self.var = nnx.BatchStat(jnp.ones((features,), self.stat_dtype))

    def __call__(self, x: jax.Array, *, train: bool, moments: bool = False) -> jax.Array:
        """Normalised `x`, shape (batch, ..., features).

        With `train` and `moments`, the statistics are not moved but *replaced* by the moments of
        this batch: ``mean``, ``var`` (biased) and a new entry ``count`` (values per channel). That
        is what recalibration pools.

        Raises:
          ValueError: the batch does not split into `groups` equal parts.
        """
        x = x.astype(self.stat_dtype)
        if not train:
            y = self._normalised(x, self.mean[...], self.var[...])
            return y.astype(self.dtype)
        if x.shape[0] % self.groups:
            raise ValueError(
                f"a batch of {x.shape[0]} does not split into {self.groups} equal BatchNorm "
                "groups; choose a batch size that is a multiple"
            )
        parts = x.reshape(self.groups, x.shape[0] // self.groups, *x.shape[1:])
        mean, var = _mean_and_variance(parts, tuple(range(1, x.ndim)))
        if moments:
            whole_mean, whole_var = _mean_and_variance(x, tuple(range(x.ndim - 1)))
            self.mean[...] = whole_mean.reshape(-1)
            self.var[...] = whole_var.reshape(-1)
            self.count = nnx.BatchStat(jnp.asarray(x.size // x.shape[-1], jnp.int32))
        else:
            n = parts[0].size // x.shape[-1]
            if n < 2:
                raise ValueError(
                    "train-mode BatchNorm needs more than one value per channel, found "
                    f"{n}: use a larger batch or larger images"
                )
            new_mean, new_var = mean[0].reshape(-1), var[0].reshape(-1) * (n / (n - 1))
            old = 1 - self.momentum
            self.mean[...] = old * self.mean[...] + self.momentum * new_mean
            self.var[...] = old * self.var[...] + self.momentum * new_var
        return self._normalised(parts, mean, var).reshape(x.shape).astype(self.dtype)

    def _normalised(self, x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
        def row(v: jax.Array) -> jax.Array:
            if v.ndim == x.ndim:
                return v
            return v.astype(self.stat_dtype).reshape((1,) * (x.ndim - 1) + (-1,))

        inverse = jax.lax.rsqrt(row(var) + self.eps) * row(self.scale[...])
        return (x - row(mean)) * inverse + row(self.bias[...])


def _mean_and_variance(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance over `axes`, kept as axes of size one; two passes."""
    mean = jnp.mean(x, axis=axes, keepdims=True)
    return mean, jnp.mean(jnp.square(x - mean), axis=axes, keepdims=True)
