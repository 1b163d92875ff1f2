"""What `--plan` of the training scripts prints: every step of a configuration on a TPU slice."""

import dataclasses
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from lawa_jax.data import datasets, imagenet
from lawa_jax.data.masking import max_targets
from lawa_jax.data.text import dummy_text
from lawa_jax.errors import ConfigError
from lawa_jax.planning import requirements, topology
from lawa_jax.training.config import Config, ImageConfig
from lawa_jax.training.image_task import image_task, load_images
from lawa_jax.training.task import Task
from lawa_jax.training.text_config import TextConfig
from lawa_jax.training.text_task import evaluated_rows, text_task

# Of RoBERTa's published dictionary.
FAIRSEQ_SYMBOLS = 50_265


def in_child(plan: Callable[[Config, str], None], config: Config, name: str) -> None:
    """Call `plan` in a process of its own: the compiler ends its process where it has a defect.

    Args:
      plan: `print_image_plan` or `print_text_plan`.
      config: of the run.
      name: of the slice.

    Raises:
      ConfigError: the compiler has ended the process; or see `plan`.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            pool.submit(plan, config, name).result()
        except BrokenProcessPool as error:
            raise ConfigError(
                f"--plan {name}: the TPU compiler ended without a message that this program could "
                "catch; what it printed is above. Try another slice or a newer libtpu"
            ) from error


def print_image_plan(config: ImageConfig, name: str) -> None:
    """Print what every step of a ResNet's run takes on the slice `name`.

    Raises:
      ConfigError: there is no such slice, or no compiler for it (names the extra to install).
    """
    slice_ = topology.describe(name)
    if config.dataset == "imagenet":
        # Shapes and sizes are known; the data need not be there.
        data = datasets.load_dummy(
            imagenet.TRAIN_IMAGES, num_classes=1000, image_size=config.image_size
        )
    else:
        data = load_images(config)
    task = image_task(config, data, requirements.placement(slice_))
    train, evaluation = data.train[0], {**data.validation[0], "mask": np.asarray(True)}
    part = config.batch_size // config.accumulate
    turn = dataclasses.replace(config, batch_size=part, accumulate=1)
    print(f"{config.arch}, batch {config.batch_size} on {len(slice_.devices)} x {slice_.name}")
    turns = {"train": config.accumulate} if config.accumulate > 1 else {}
    turn_task = image_task(turn, data, task.place)
    _print_steps(task, turn_task, slice_, train, evaluation, config.batch_size, turns)


def print_text_plan(config: TextConfig, name: str) -> None:
    """Print what every step of a RoBERTa's run takes, for blocks of full length.

    Raises:
      ConfigError: see `print_image_plan`.
    """
    slice_ = topology.describe(name)
    config = dataclasses.replace(config, vocab_size=config.vocab_size or FAIRSEQ_SYMBOLS)
    # The data need not be there.
    data = dummy_text(config.batch_size, max_tokens=config.max_tokens, vocab_size=config.vocab_size)
    task = text_task(config, data, requirements.placement(slice_, fsdp=config.fsdp))
    example = {
        "tokens": np.zeros(config.max_tokens, np.int32),
        "masked_positions": np.zeros(max_targets(config.max_tokens, config.mask_prob), np.int32),
        "targets": np.zeros(max_targets(config.max_tokens, config.mask_prob), np.int32),
    }
    part = config.batch_size // config.accumulate
    turn = dataclasses.replace(config, batch_size=part, accumulate=1, scan=False)
    turns = {"train": config.accumulate, "evaluate": 1} if config.scan else {}
    if config.accumulate > 1:
        turns["train"] = config.accumulate
    rows = evaluated_rows(config.eval_batch_size, part, task.place.device_count)
    print(f"batch {config.batch_size} on {len(slice_.devices)} x {slice_.name}, fsdp {config.fsdp}")
    _print_steps(task, text_task(turn, data, task.place), slice_, example, example, rows, turns)


def _print_steps(
    task: Task,
    turn: Task,
    slice_: topology.Slice,
    train: dict[str, Any],
    evaluation: dict[str, Any],
    rows: int,
    turns: dict[str, int],
) -> None:
    """Print every step; the cost of those in `turns` is that of so many of `turn`'s.

    XLA counts the body of a loop once: layers that are scanned, parts that are accumulated.

    Args:
      task, turn: the run, and one with the body of its loops alone.
      slice_: to plan for.
      train, evaluation: a sample of each kind of batch.
      rows: samples evaluated at once.
      turns: by the name of a step.
    """
    shapes = requirements.batch_shapes(train, task.batch_size)
    part = requirements.batch_shapes(train, turn.batch_size)
    evaluate = requirements.batch_shapes(evaluation, rows)
    for step in requirements.plan_steps(task, slice_, train=shapes, evaluate=evaluate):
        if step.name in turns:
            (body,) = requirements.plan_steps(
                turn, slice_, train=part, evaluate=evaluate, only=(step.name,)
            )
            step = requirements.repeated(step, body, turns[step.name])
        training = step.name == "train"
        size = task.batch_size if training else rows
        print(requirements.describe_step(step, slice_, size), flush=True)
        if training:
            accumulate = task.batch_size // turn.batch_size
            _print_largest(task, slice_, train, step, task.batch_size, accumulate)


def _print_largest(
    task: Task,
    slice_: topology.Slice,
    example: dict[str, Any],
    step: requirements.StepPlan,
    batch_size: int,
    accumulate: int,
) -> None:
    multiple = len(slice_.devices) * accumulate
    if batch_size % (2 * multiple):
        return
    shapes = requirements.batch_shapes(example, batch_size // 2)
    (half,) = requirements.plan_steps(task, slice_, train=shapes, evaluate=shapes, only=("train",))
    largest = requirements.largest_batch(step, half, slice_, batch_size, multiple)
    print(f"  batches   up to about {largest:,} should fit, by this one and half of it", flush=True)
