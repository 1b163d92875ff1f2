"""Averages of stored checkpoints: in memory, on disk, one or many in one pass."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lawa_jax.averaging.statistics import batch_statistics
from lawa_jax.distributed import ALONE, Group
from lawa_jax.errors import SelectionError
from lawa_jax.offline import streaming
from lawa_jax.offline.plan import Plan, Target, make_plan
from lawa_jax.offline.recipe import (
    DEFAULT_MEMORY,
    AveragingOptions,
    Recipe,
    Result,
    StoredStatistics,
    step_of,
    window_recipe,
)
from lawa_jax.offline.sinks import MemorySink
from lawa_jax.offline.streaming import ReadProgress
from lawa_jax.offline.writing import write_averages
from lawa_jax.trajectory import Checkpoint, open_checkpoint, parse_address
from lawa_jax.trajectory.discovery import as_path
from lawa_jax.tree import is_averaged, nested

DEFAULTS = AveragingOptions()


class Estimate(NamedTuple):
    """What making some averages will take.

    Attributes:
      checkpoints: labels of the sources, in the order they are read.
      leaves: leaves of each.
      bytes_to_read: dense bytes, each read once.
      bytes_to_write: dense bytes of all averages.
      memory_bound: bytes above what imports take.
      statistics: batch statistics recognised by name.
    """

    checkpoints: list[str]
    leaves: int
    bytes_to_read: int
    bytes_to_write: int
    memory_bound: int
    statistics: list[str]


def average_checkpoints(
    run: epath.PathLike,
    k: int = 5,
    end: int | None = None,
    *,
    method: str = "uniform",
    steps: str | Sequence[int] | None = None,
    item: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dtype: str | None = None,
    bn: StoredStatistics = "average",
    memory: int = DEFAULT_MEMORY,
    threads: int = 2,
) -> dict[str, Any]:
    """The average of the `k` latest checkpoints of a run up to `end`.

    ``average_checkpoints("runs/resnet", k=5, end=30)`` is the mean of checkpoints 26..30, from any
    Orbax directory. Batch statistics are averaged like weights, to be recomputed with
    `lawa_jax.recalibrate`; or taken from the newest with ``bn="latest"``, which is what
    ``lawa average`` does unless it is given ``--bn average``.

    Args:
      run: the run directory.
      k: number of checkpoints.
      end: the newest of them; the run's newest by default.
      method: ``uniform``, ``linear``, ``ema:0.9``, ``power_ema:0.1``, ``decay:1-sqrt``,
        ``bema:0.2``.
      steps: exactly these checkpoints instead of `k` and `end`.
      item, include, exclude, dtype, bn, memory, threads: see `AveragingOptions`.

    Returns:
      Nested dict of numpy arrays, string keys, the checkpoints' dtypes unless `dtype` says
      otherwise. The same bits as `lawa_jax.average` of the restored trees gives.

    Raises:
      SelectionError: the window does not exist; lists what does.
      TreeMismatchError: the checkpoints are not of one model.
      CorruptCheckpointError, NonFiniteError: a checkpoint is damaged; names it and the leaf.
    """
    recipe = window_recipe(run, k=k, end=end, method=method, steps=steps)
    options = AveragingOptions(item, tuple(include), tuple(exclude), dtype, bn, memory, threads)
    tree = make_averages([recipe], options=options)[0].tree
    assert tree is not None
    return tree


def estimate(recipes: Sequence[Recipe], options: AveragingOptions = DEFAULTS) -> Estimate:
    """What `make_averages` will read, write and need, from metadata alone."""
    opened, plan, statistics = _prepare(recipes, options)
    return Estimate(
        [c.label for c in opened.values()],
        len(plan.specs),
        plan.bytes_to_read,
        plan.bytes_to_write,
        plan.memory,
        sorted(statistics),
    )


def make_averages(
    recipes: Sequence[Recipe],
    outs: Sequence[epath.PathLike] | None = None,
    *,
    options: AveragingOptions = DEFAULTS,
    overwrite: bool = False,
    journal: epath.PathLike | None = None,
    progress: ReadProgress | None = None,
    group: Group = ALONE,
) -> list[Result]:
    """Make all averages in one pass that reads every needed checkpoint once.

    Args:
      recipes: the averages.
      outs: a directory for each, to be written as an ordinary Orbax step; None keeps the averages
        in memory.
      options: see `AveragingOptions`.
      overwrite: replace existing outputs.
      journal: where to keep book of finished blocks, so that an interrupted pass can be taken up
        again with the same arguments; None for none.
      progress: called with the bytes read.
      group: processes that all call this and share the work of written averages: each reads,
        averages and writes blocks of its own, on a file system that they share.

    Raises:
      OutputExistsError: an output exists; nothing was read.
      Those of `average_checkpoints`.
    """
    opened, plan, _ = _prepare(recipes, options, 1 if outs is None else group.count)
    if outs is None:
        return _in_memory(recipes, opened, plan, progress)
    if len(set(outs)) != len(recipes):
        raise SelectionError(f"expected {len(recipes)} different outputs, found {len(set(outs))}")
    paths = [as_path(out) for out in outs]
    if journal is not None and group.count > 1:
        raise SelectionError("an interruptible pass (journal) is for one process; start it alone")
    return write_averages(
        recipes, paths, opened, plan, options, overwrite, journal, progress, group
    )


def recompute(
    recipe: Recipe,
    options: AveragingOptions,
    sink: streaming.Sink,
    progress: ReadProgress | None = None,
) -> list[dict[str, str]]:
    """Make one average into a sink of the caller's; the digests of each source's leaves."""
    _, plan, _ = _prepare([recipe], options)
    return streaming.run(plan, [sink], progress=progress)


def open_address(
    source: str,
    *,
    item: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Checkpoint:
    """Open ``RUN@90``, or a path that is a checkpoint (or a run, whose newest is meant)."""
    path, step = parse_address(source)
    return open_checkpoint(path, step=step, item=item, include=include, exclude=exclude)


def _prepare(
    recipes: Sequence[Recipe], options: AveragingOptions, parts: int = 1
) -> tuple[dict[str, Checkpoint], Plan, set[str]]:
    addresses = _in_order(recipes)
    opened = {
        source: open_address(
            source, item=options.item, include=options.include, exclude=options.exclude
        )
        for source in addresses
    }
    first = next(iter(opened.values()))
    statistics = batch_statistics(first.leaves)
    plan = make_plan(
        list(opened.values()),
        [
            Target(tuple(addresses.index(s) for s in recipe.sources), recipe.weights)
            for recipe in recipes
        ],
        copied=statistics if options.bn == "latest" else (),
        dtype=None if options.dtype is None else _dtype(options.dtype),
        memory=options.memory,
        threads=options.threads,
        parts=parts,
    )
    return opened, plan, statistics


def _dtype(name: str) -> np.dtype:
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = np.dtype(bool)
    if not is_averaged(dtype):
        raise SelectionError(f"dtype: expected float32, bfloat16, ..., found {name!r}")
    return dtype


def _in_order(recipes: Sequence[Recipe]) -> list[str]:
    """All sources once, such that every recipe finds its own in order."""
    if not recipes:
        raise SelectionError("there is nothing to average")
    addresses = list(dict.fromkeys(s for recipe in recipes for s in recipe.sources))
    if len(recipes) > 1:
        # Windows of one run overlap: reading by step lets each checkpoint be read once.
        addresses.sort(key=lambda source: (parse_address(source)[0], step_of(source) or 0))
    return addresses


def _in_memory(
    recipes: Sequence[Recipe],
    opened: dict[str, Checkpoint],
    plan: Plan,
    progress: ReadProgress | None,
) -> list[Result]:
    started = time.perf_counter()
    sinks = [MemorySink(plan.out) for _ in recipes]
    inputs = streaming.run(plan, sinks, progress=progress)
    seconds = {"read and average": time.perf_counter() - started}
    by_address = dict(zip(opened, inputs, strict=True))
    keys = next(iter(opened.values())).keys
    return [
        Result(
            recipe,
            nested({keys[name]: leaf for name, leaf in sink.leaves.items()}),
            None,
            {},
            {source: by_address[source] for source in recipe.sources},
            plan.bytes_to_read,
            seconds,
        )
        for recipe, sink in zip(recipes, sinks, strict=True)
    ]
