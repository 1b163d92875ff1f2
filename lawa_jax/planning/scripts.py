"""What `--plan` of the training scripts prints: every step of a configuration on a TPU slice."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from lawa_jax.data import datasets, imagenet
from lawa_jax.data.masking import max_targets
from lawa_jax.data.text import dummy_text
from lawa_jax.planning import requirements, topology
from lawa_jax.training.config import ImageConfig
from lawa_jax.training.task import Task
from lawa_jax.training.text_config import TextConfig
from lawa_jax.training.text_task import evaluated_rows
from lawa_jax.training.wiring import image_task_of, load_images, text_task_of

# Of RoBERTa's published dictionary.
FAIRSEQ_SYMBOLS = 50_265


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
    task = image_task_of(config, data, requirements.placement(slice_))
    train, evaluation = data.train[0], {**data.validation[0], "mask": np.asarray(True)}
    part = config.batch_size // config.accumulate
    turn = dataclasses.replace(config, batch_size=part, accumulate=1)
    print(f"{config.arch}, batch {config.batch_size} on {len(slice_.devices)} x {slice_.name}")
    for step in _steps(
        task,
        image_task_of(turn, data, task.place),
        slice_,
        train=requirements.batch_shapes(train, config.batch_size),
        part=requirements.batch_shapes(train, part),
        evaluate=requirements.batch_shapes(evaluation, config.batch_size),
        turns={"train": config.accumulate} if config.accumulate > 1 else {},
    ):
        print(requirements.describe_step(step, slice_, config.batch_size), flush=True)
        if step.name == "train":
            _print_largest(task, slice_, train, step, config.batch_size, config.accumulate)


def print_text_plan(config: TextConfig, name: str) -> None:
    """Print what every step of a RoBERTa's run takes, for blocks of full length.

    Raises:
      ConfigError: see `print_image_plan`.
    """
    slice_ = topology.describe(name)
    config = dataclasses.replace(config, vocab_size=config.vocab_size or FAIRSEQ_SYMBOLS)
    # The data need not be there.
    data = dummy_text(config.batch_size, max_tokens=config.max_tokens, vocab_size=config.vocab_size)
    task = text_task_of(config, data, requirements.placement(slice_, fsdp=config.fsdp))
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
    for step in _steps(
        task,
        text_task_of(turn, data, task.place),
        slice_,
        train=requirements.batch_shapes(example, config.batch_size),
        part=requirements.batch_shapes(example, part),
        evaluate=requirements.batch_shapes(example, rows),
        turns=turns,
    ):
        size = config.batch_size if step.name == "train" else rows
        print(requirements.describe_step(step, slice_, size), flush=True)
        if step.name == "train":
            _print_largest(task, slice_, example, step, config.batch_size, config.accumulate)


def _steps(
    task: Task,
    turn: Task,
    slice_: topology.Slice,
    *,
    train: dict[str, Any],
    part: dict[str, Any],
    evaluate: dict[str, Any],
    turns: dict[str, int],
) -> Iterator[requirements.StepPlan]:
    """The steps of `task`; the cost of those in `turns` is that of so many of `turn`'s.

    XLA counts the body of a loop once: layers that are scanned, parts that are accumulated.
    """
    for step in requirements.plan_steps(task, slice_, train=train, evaluate=evaluate):
        if step.name in turns:
            only = (step.name,)
            (body,) = requirements.plan_steps(
                turn, slice_, train=part, evaluate=evaluate, only=only
            )
            step = requirements.repeated(step, body, turns[step.name])
        yield step


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
