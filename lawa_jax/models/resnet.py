"""ResNet with torchvision's v1.5 semantics, layer for layer.

v1.5 means that the stride of a bottleneck sits in its 3x3 convolution. Paddings are explicit,
``((p, p), (p, p))``: XLA's ``SAME`` pads a strided convolution by (0, 1) and gives other numbers.

Arrays are NHWC, kernels HWIO. The parameter tree follows torchvision's names one to one:
``conv1``, ``bn1``, ``layer1/0/conv1``, ..., ``layer1/0/downsample/conv`` (``downsample.0`` there),
``layer1/0/downsample/bn`` (``downsample.1``), ``fc``.

Source: He et al. 2015 (arXiv 1512.03385), Goyal et al. 2017 (arXiv 1706.02677) for v1.5.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lawa_jax.models.convolution import convolution
from lawa_jax.models.normalization import BatchNorm, statistics_dtype

Stem = Literal["imagenet", "cifar"]


class Architecture(NamedTuple):
    """Block kind and number of blocks in each stage."""

    block: Literal["basic", "bottleneck"]
    stage_sizes: tuple[int, ...]


ARCHITECTURES = {
    "resnet18": Architecture("basic", (2, 2, 2, 2)),
    "resnet34": Architecture("basic", (3, 4, 6, 3)),
    "resnet50": Architecture("bottleneck", (3, 4, 6, 3)),
    "resnet101": Architecture("bottleneck", (3, 4, 23, 3)),
    "resnet152": Architecture("bottleneck", (3, 8, 36, 3)),
}

# torchvision: kaiming_normal_(mode="fan_out", nonlinearity="relu"), an untruncated normal.
_kaiming_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), but NaN stays NaN: XLA's fast CPU maximum turns it into 0 and hides it."""
    return jnp.where(x <= 0, 0.0, x)


class _Layers(NamedTuple):
    """How every layer of one network is made."""

    dtype: Any
    param_dtype: Any
    bn_groups: int
    rngs: nnx.Rngs

    def conv(self, inputs: int, outputs: int, size: int, stride: int = 1) -> nnx.Conv:
        padding = size // 2
        return nnx.Conv(
            inputs,
            outputs,
            kernel_size=(size, size),
            strides=(stride, stride),
            padding=((padding, padding), (padding, padding)),
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=_kaiming_normal,
            conv_general_dilated=convolution,
            rngs=self.rngs,
        )

    def norm(self, features: int) -> BatchNorm:
        return BatchNorm(
            features, groups=self.bn_groups, dtype=self.dtype, param_dtype=self.param_dtype
        )


class Downsample(nnx.Module):
    """1x1 convolution and BatchNorm of a shortcut whose shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, layers: _Layers):
        self.conv = layers.conv(inputs, outputs, 1, stride)
        self.bn = layers.norm(outputs)

    def __call__(self, x: jax.Array, **mode: bool) -> jax.Array:
        return self.bn(self.conv(x), **mode)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, layers: _Layers):
        self.conv1 = layers.conv(inputs, width, 3, stride)
        self.bn1 = layers.norm(width)
        self.conv2 = layers.conv(width, width, 3)
        self.bn2 = layers.norm(width)
        if stride != 1 or inputs != width:
            self.downsample = Downsample(inputs, width, stride, layers)

    def __call__(self, x: jax.Array, **mode: bool) -> jax.Array:
        y = relu(self.bn1(self.conv1(x), **mode))
        y = self.bn2(self.conv2(y), **mode)
        return relu(y + (self.downsample(x, **mode) if hasattr(self, "downsample") else x))


class Bottleneck(nnx.Module):
    """1x1, 3x3 (with the stride: v1.5), 1x1 with four times the width (ResNet-50 and deeper)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, layers: _Layers):
        outputs = width * self.expansion
        self.conv1 = layers.conv(inputs, width, 1)
        self.bn1 = layers.norm(width)
        self.conv2 = layers.conv(width, width, 3, stride)
        self.bn2 = layers.norm(width)
        self.conv3 = layers.conv(width, outputs, 1)
        self.bn3 = layers.norm(outputs)
        if stride != 1 or inputs != outputs:
            self.downsample = Downsample(inputs, outputs, stride, layers)

    def __call__(self, x: jax.Array, **mode: bool) -> jax.Array:
        y = relu(self.bn1(self.conv1(x), **mode))
        y = relu(self.bn2(self.conv2(y), **mode))
        y = self.bn3(self.conv3(y), **mode)
        return relu(y + (self.downsample(x, **mode) if hasattr(self, "downsample") else x))


_BLOCKS: dict[str, Callable[..., BasicBlock | Bottleneck]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
}


class ResNet(nnx.Module):
    """A residual network for image classification.

    Example (175k parameters, for 8x8 grey digits)::

        ResNet((2, 2, 2), (16, 32, 64), stem="cifar", in_channels=1, num_classes=10, rngs=rngs)

    Args:
      stage_sizes: number of blocks in each stage; every stage but the first halves the resolution.
      widths: width of each stage; a bottleneck's output has four times as many channels. The first
        is also the stem's.
      block: "basic" or "bottleneck".
      stem: "imagenet" (7x7 stride 2, 3x3 max-pool stride 2) or "cifar" (3x3 stride 1, no pool).
      in_channels: channels of the images.
      num_classes: number of logits.
      bn_groups: BatchNorm statistics of this many equal parts of the batch, see `BatchNorm`.
      dtype: compute dtype of convolutions and activations. Batch statistics, the last layer's
        output and the loss stay float32 (float64 where the parameters are).
      param_dtype: dtype of parameters.
      rngs: used at construction only.

    Raises:
      ValueError: an unknown block or stem, or stages and widths of different number.
    """

    def __init__(
        self,
        stage_sizes: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        *,
        block: Literal["basic", "bottleneck"] = "basic",
        stem: Stem = "imagenet",
        in_channels: int = 3,
        num_classes: int = 1000,
        bn_groups: int = 1,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if block not in _BLOCKS:
            raise ValueError(f"unknown block {block!r}; choose from {sorted(_BLOCKS)}")
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"unknown stem {stem!r}; choose 'imagenet' or 'cifar'")
        if not stage_sizes or len(stage_sizes) != len(widths):
            raise ValueError(
                f"stage_sizes {tuple(stage_sizes)} and widths {tuple(widths)} must have one entry "
                "for each stage"
            )
        layers = _Layers(dtype, param_dtype, bn_groups, rngs)
        self.stem = stem
        self.stages = len(stage_sizes)
        self.dtype = dtype
        self.output_dtype = statistics_dtype(param_dtype)
        channels = widths[0]
        self.conv1 = (
            layers.conv(in_channels, channels, 7, 2)
            if stem == "imagenet"
            else layers.conv(in_channels, channels, 3)
        )
        self.bn1 = layers.norm(channels)
        make = _BLOCKS[block]
        for stage, (size, width) in enumerate(zip(stage_sizes, widths, strict=True)):
            blocks = []
            for index in range(size):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(make(channels, width, stride, layers))
                channels = width * (4 if block == "bottleneck" else 1)
            setattr(self, f"layer{stage + 1}", nnx.List(blocks))
        # torch.nn.Linear: weight and bias uniform within 1/sqrt(inputs).
        bound = 1 / math.sqrt(channels)
        uniform = _symmetric_uniform(bound)
        self.fc = nnx.Linear(
            channels,
            num_classes,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=uniform,
            bias_init=uniform,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array, *, train: bool, moments: bool = False) -> jax.Array:
        """Logits (batch, num_classes) of images (batch, height, width, channels).

        `moments=True` is for recalibration, see `BatchNorm`.
        """
        mode = {"train": train, "moments": moments}
        x = relu(self.bn1(self.conv1(images.astype(self.dtype)), **mode))
        if self.stem == "imagenet":
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in range(self.stages):
            for block in getattr(self, f"layer{stage + 1}"):
                x = block(x, **mode)
        return self.fc(jnp.mean(x, axis=(1, 2))).astype(self.output_dtype)


def resnet(arch: str, *, rngs: nnx.Rngs, **options: Any) -> ResNet:
    """The network called `arch` (a key of `ARCHITECTURES`); `options` as of `ResNet`.

    Example: ``functional(lambda rngs: resnet("resnet50", num_classes=1000, rngs=rngs))``.

    Raises:
      ValueError: unknown name.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}; choose from {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[arch]
    return ResNet(architecture.stage_sizes, block=architecture.block, rngs=rngs, **options)


def _symmetric_uniform(bound: float) -> Callable[..., jax.Array]:
    def init(key: jax.Array, shape: Any, dtype: Any, out_sharding: Any = None) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

    return init
