"""Train a ResNet, save every epoch, average the latest k checkpoints, show what LAWA saves.

ResNet-50 on ImageNet: python train/resnet_imagenet.py --lawa_k 5

Half a minute on a CPU: python train/resnet_imagenet.py --config configs/resnet_digits.py

Go on after a stop: python train/resnet_imagenet.py --config ... --resume

What it takes on a TPU slice: python train/resnet_imagenet.py --plan v5e:16x16 --batch_size 16384

Averages of a past run: python train/resnet_imagenet.py --evaluate RUN --lawa_k 5 --end 10 20 30
"""

import dataclasses
import os
import sys

import numpy as np
from etils import epath

from lawa_jax import script
from lawa_jax.data import datasets, imagenet
from lawa_jax.distributed import ALONE
from lawa_jax.planning import plan, topology
from lawa_jax.training import sessions
from lawa_jax.training.command_line import parse
from lawa_jax.training.config import ImageConfig
from lawa_jax.training.image_task import image_task
from lawa_jax.training.mesh import Placement
from lawa_jax.training.task import Task


def load(config: ImageConfig) -> datasets.ImageData:
    """The data set that a configuration names."""
    if config.dataset == "digits":
        return datasets.load_digits(label_noise=config.label_noise)
    if config.dataset == "dummy":
        return datasets.load_dummy(
            config.dummy_examples, num_classes=config.dummy_classes, image_size=config.image_size
        )
    return imagenet.find(config.data_dir, image_size=config.image_size)


def shapes_only(config: ImageConfig) -> datasets.ImageData:
    """Data of the configuration's shapes and sizes, to plan with; ImageNet need not be there."""
    if config.dataset != "imagenet":
        return load(config)
    return datasets.load_dummy(
        imagenet.TRAIN_IMAGES, num_classes=1000, image_size=config.image_size
    )


def show_plan(
    task: Task, slice_: topology.Slice, data: datasets.ImageData, config: ImageConfig
) -> None:
    """Print what every step takes."""
    train, evaluation = (
        plan.batch_shapes(example, config.batch_size)
        for example in (data.train[0], {**data.validation[0], "mask": np.asarray(True)})
    )
    print(f"{config.arch}, batch {config.batch_size} on {len(slice_.devices)} x {slice_.name}")
    for step in plan.plan_steps(task, slice_, train=train, evaluate=evaluation):
        print(plan.describe_step(step, slice_, config.batch_size), flush=True)


def main() -> None:
    """Wire the command line to data, task and session."""
    arguments = parse(ImageConfig, "resnet_imagenet", __doc__ or "", sys.argv[1:])
    config, actions = arguments.run, arguments.actions
    if actions.dummy:
        config = dataclasses.replace(config, dataset="dummy")
    if actions.deterministic:
        # Read when the first device is used, which is below.
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
        )
    group = ALONE if actions.plan is not None else actions.join()
    slice_ = None if actions.plan is None else topology.describe(actions.plan)
    data = load(config) if slice_ is None else shapes_only(config)
    task = image_task(
        data,
        place=Placement() if slice_ is None else plan.placement(slice_),
        seed=config.seed,
        epochs=config.epochs,
        batch_size=config.batch_size,
        arch=config.arch,
        compute_dtype=config.compute_dtype,
        learning_rate=config.learning_rate * config.batch_size / config.base_batch_size,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        warmup_epochs=config.warmup_epochs,
        schedule=config.schedule,
        label_smoothing=config.label_smoothing,
        accumulate=config.accumulate,
        bn_batches=config.bn_batches,
        threads=config.loader_threads,
    )
    if slice_ is not None:
        show_plan(task, slice_, data, config)
        return
    if actions.evaluate is not None:
        run = epath.Path(actions.evaluate)
        rows = sessions.evaluate_run(
            task,
            run,
            k=config.lawa_k,
            ends=actions.end,
            bn=config.bn,
            splits=actions.splits,
            as_json=actions.json,
        )
        if group.index == 0:
            print(rows)
        return
    sessions.train_run(
        task,
        config,
        bn=config.bn,
        resume=actions.resume,
        init_from=actions.init_from,
        title=f"{config.arch} on {config.dataset}, seed {config.seed}",
    )


if __name__ == "__main__":
    script.run(main)
