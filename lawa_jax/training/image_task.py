"""Image classification by a ResNet as a `Task` for the loop."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import jax.numpy as jnp

from lawa_jax.averaging.batch_norm import recalibrate
from lawa_jax.data import Batch, datasets, imagenet
from lawa_jax.data.datasets import ImageData
from lawa_jax.data.loader import eval_batches, train_batches
from lawa_jax.errors import ConfigError
from lawa_jax.models.functional import Functional, Model, functional
from lawa_jax.models.resnet import ResNet, resnet
from lawa_jax.training.classification import classification_loss, moments_fn
from lawa_jax.training.config import ImageConfig
from lawa_jax.training.mesh import Placement
from lawa_jax.training.optim import sgd, warmup_cosine
from lawa_jax.training.steps import TrainState, init_state, make_eval_step, make_train_step
from lawa_jax.training.task import Task


def resnet_network(
    arch: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    compute_dtype: str = "float32",
    bn_groups: int = 1,
) -> Functional:
    """A ResNet by name as pure functions.

    ``resnet_digits`` is a small one for 8x8 images: CIFAR stem, three stages of one basic block
    with 16, 32 and 64 channels.
    """
    dtype = jnp.dtype(compute_dtype)

    def build(rngs: Any) -> ResNet:
        options: dict[str, Any] = {
            "num_classes": num_classes,
            "in_channels": in_channels,
            "dtype": dtype,
            "bn_groups": bn_groups,
            "rngs": rngs,
        }
        if arch == "resnet_digits":
            return ResNet((1, 1, 1), widths=(32, 64, 128), block="basic", stem="cifar", **options)
        return resnet(arch, **options)

    return functional(build)


def load_images(config: ImageConfig) -> ImageData:
    """The images that a configuration names."""
    if config.dataset == "digits":
        return datasets.load_digits(label_noise=config.label_noise)
    if config.dataset == "dummy":
        return datasets.load_dummy(
            config.dummy_examples, num_classes=config.dummy_classes, image_size=config.image_size
        )
    return imagenet.find(
        config.data_dir,
        image_size=config.image_size,
        resize=config.resize or None,
        dtype="uint8",  # normalised on the device
        shrink=config.shrink_on_load,
        corrupt_budget=config.corrupt_budget,
    )


def image_task(config: ImageConfig, data: ImageData, place: Placement) -> Task:
    """A ResNet on images, trained as the paper does.

    Args:
      config: model, optimizer, schedule and batches; the learning rate is scaled here from
        ``base_batch_size`` to ``batch_size``.
      data: the data set, see `load_images`.
      place: devices.

    Raises:
      ConfigError: a batch that does not fit the data or the devices.
    """
    batch_size, seed = config.batch_size, config.seed
    place.check_batch(batch_size // config.accumulate)
    steps_per_epoch = len(data.train) // batch_size
    if not steps_per_epoch:
        raise ConfigError(
            f"batch_size: expected at most the {len(data.train)} training images, found "
            f"{batch_size}"
        )
    if config.warmup_epochs >= config.epochs:
        raise ConfigError(
            f"warmup_epochs: expected < epochs={config.epochs}, found {config.warmup_epochs}"
        )
    network = resnet_network(
        config.arch,
        num_classes=data.num_classes,
        in_channels=data.image_shape[-1],
        compute_dtype=config.compute_dtype,
        bn_groups=config.bn_groups,
    )
    optimizer = sgd(momentum=config.momentum, weight_decay=config.weight_decay)
    loss_fn = classification_loss(network, label_smoothing=config.label_smoothing)
    learning_rate = config.learning_rate * batch_size / config.base_batch_size

    def init() -> TrainState:
        return init_state(network.init(seed), optimizer)

    def rate(step: int) -> float:
        epoch = step // steps_per_epoch
        if config.schedule == "constant":
            return learning_rate
        # Warm-up moves every step; the cosine once an epoch, as in the paper.
        exact = step / steps_per_epoch if epoch < config.warmup_epochs else epoch
        return warmup_cosine(
            exact, base=learning_rate, epochs=config.epochs, warmup=config.warmup_epochs
        )

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        return train_batches(
            data.train,
            batch_size=batch_size,
            seed=seed,
            epoch=epoch,
            start=start,
            transform=data.augment,
            process=place.process,
            threads=config.loader_threads,
            workers=config.loader_workers,
        )

    def validation(split: str) -> Iterator[Batch]:
        return eval_batches(
            data.split(split),
            batch_size=batch_size,
            process=place.process,
            threads=config.loader_threads,
            workers=config.loader_workers,
        )

    moments = moments_fn(network)

    def recalibrated(model: Model, end: int) -> Model:
        # The batches of epoch `end`: a pure function of the seed and `end`, so that an average
        # evaluated afterwards has the statistics it had during training.
        chosen = islice(batches(end, 0), config.bn_batches or None)
        return recalibrate(moments, model, (place.batch(batch) for batch in chosen))

    return Task(
        unit="images",
        seed=seed,
        init=init,
        train_step=make_train_step(
            loss_fn, optimizer, accumulate=config.accumulate, keep=place.kept
        ),
        eval_step=make_eval_step(loss_fn),
        learning_rate=rate,
        train_batches=batches,
        eval_batches=validation,
        recalibrate=recalibrated,
        batch_size=batch_size,
        samples_per_epoch=steps_per_epoch * batch_size,
        place=place,
        moments=moments,
        # Deeper layers see inputs normalised by their batch, so the size matters.
        recalibrated_on={
            "bn_batches": min(config.bn_batches or steps_per_epoch, steps_per_epoch),
            "bn_batch_size": batch_size,
        },
    )
