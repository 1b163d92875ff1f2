"""LAWA in a run: average the latest k checkpoints on the device, settle BatchNorm, evaluate.

The window is the checkpoint directory. Training and post-hoc evaluation call the same function on
the same files, so their figures are the same, bit for bit.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lawa_jax.averaging import window
from lawa_jax.averaging.batch_norm import select_statistics
from lawa_jax.averaging.device import Accumulator
from lawa_jax.averaging.statistics import StatisticsPolicy
from lawa_jax.models.functional import Model
from lawa_jax.training.mesh import Placement
from lawa_jax.training.metrics import total_of
from lawa_jax.training.sharded_reading import read_sharded
from lawa_jax.training.task import Task
from lawa_jax.trajectory import Checkpoint, Run, verify_leaf
from lawa_jax.tree import is_averaged, named_leaves


class WindowAverage(NamedTuple):
    """An average over a window of a run, and the newest checkpoint in it, on the device."""

    model: Model
    newest: Model
    steps: tuple[int, ...]


def average_on_device(
    run: epath.Path | Run, *, k: int, end: int | None, task: Task
) -> WindowAverage:
    """The uniform average of the `k` latest models of a run, by the jitted averager.

    One checkpoint is read at a time, verified against the digests saved with it, and added.

    Raises:
      SelectionError: the window does not exist; the message lists what does.
      CorruptCheckpointError: a checkpoint is not what was saved.
    """
    run = Run.of(run)
    steps = window.latest(run.steps, k, end)
    accumulator = Accumulator()
    model: Model = {}
    for step in steps:
        checkpoint = run.open(step, include=("*",))
        if step == steps[0] and any(_is_half(spec.dtype) for spec in checkpoint.leaves.values()):
            # Evaluated as it is, and not after rounding it to the checkpoints' half precision.
            accumulator = Accumulator(dtype="float32")
        model = read_placed(checkpoint, task.place)
        accumulator.add(model, label=checkpoint.label)
    return WindowAverage(accumulator.result(), model, steps)


def _is_half(dtype: np.dtype) -> bool:
    return is_averaged(dtype) and dtype.itemsize < 4


def read_verified(checkpoint: Checkpoint) -> Model:
    """The whole tree of a checkpoint, each leaf compared with the digest saved beside it."""
    tree = checkpoint.read_tree()
    for name, leaf in named_leaves(tree).items():
        verify_leaf(checkpoint, name, leaf)
    return tree


def read_placed(checkpoint: Checkpoint, place: Placement) -> Model:
    """A checkpoint on the devices, verified; with several processes each reads what it holds."""
    if place.group.count == 1:
        return place.state(read_verified(checkpoint))
    return read_sharded(checkpoint, place.sharding, place.group)


def settle_statistics(average: WindowAverage, policy: StatisticsPolicy, task: Task) -> Model:
    """The averaged model with BatchNorm statistics by `policy` (models without are left alone)."""
    if task.recalibrate is None or "batch_stats" not in average.model:
        return average.model
    model = select_statistics(average.model, average.newest, policy)
    return task.recalibrate(model, average.steps[-1]) if policy == "recalibrate" else model


def evaluate(task: Task, model: Model, split: str = "val") -> dict[str, float]:
    """Means over a whole split of the data; every sample counts once."""
    means = total_of(
        task.eval_step(model, task.place.batch(batch)) for batch in task.eval_batches(split)
    ).means()
    return {**means, **task.derived(means)}


def evaluate_latest(
    task: Task,
    run: epath.Path | Run,
    *,
    k: int,
    end: int,
    bn: StatisticsPolicy,
    splits: Sequence[str] = ("val",),
) -> dict[str, Any]:
    """Metrics of the average of the `k` latest models ending at `end`.

    Returns:
      A row for the log: ``k``, ``end``, ``bn``, ``<split>/<metric>`` and ``seconds``; with
      recalibration also what it averaged over.
    """
    started = time.perf_counter()
    average = average_on_device(run, k=k, end=end, task=task)
    model = settle_statistics(average, bn, task)
    metrics = {
        f"{split}/{name}": value
        for split in splits
        for name, value in evaluate(task, model, split).items()
    }
    return {
        "end": end,
        "k": k,
        "bn": bn if task.recalibrate is not None else None,
        **(task.recalibrated_on if bn == "recalibrate" else {}),
        **metrics,
        "seconds": round(time.perf_counter() - started, 4),
    }


def evaluate_ends(
    task: Task,
    run: epath.Path | Run,
    *,
    k: int,
    ends: Sequence[int],
    bn: StatisticsPolicy,
    splits: Sequence[str] = ("val",),
) -> Iterable[dict[str, Any]]:
    """`evaluate_latest` for several ends, after checking that all windows exist."""
    listed = Run.of(run)
    for end in ends:
        window.latest(listed.steps, k, end)
    return (evaluate_latest(task, listed, k=k, end=end, bn=bn, splits=splits) for end in ends)
