"""From recipes to averages: one plan, which says what it will take and then does it.

`prepare` opens every source once and plans one pass over all of them. What it returns knows the
estimate and carries it out: in memory, as checkpoints on disk, or into sinks of the caller's.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lawa_jax.averaging.statistics import StoredStatistics, batch_statistics
from lawa_jax.distributed import ALONE, Group
from lawa_jax.errors import SelectionError
from lawa_jax.offline import streaming
from lawa_jax.offline.guard import check_outputs
from lawa_jax.offline.plan import Plan, Target, make_plan
from lawa_jax.offline.recipe import (
    DEFAULT_MEMORY,
    AveragingOptions,
    Recipe,
    Result,
    step_of,
    window_recipe,
)
from lawa_jax.offline.sinks import MemorySink
from lawa_jax.offline.streaming import ReadProgress, Sink
from lawa_jax.offline.writing import write_averages
from lawa_jax.trajectory import Checkpoint, Run, Runs, parse_address
from lawa_jax.trajectory.storage import as_path
from lawa_jax.tree import dtype_named, is_averaged

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
      chosen: which leaves were chosen and which left out, in a sentence.
      unprotected: labels of sources without digests, in which damage cannot be noticed.
    """

    checkpoints: list[str]
    leaves: int
    bytes_to_read: int
    bytes_to_write: int
    memory_bound: int
    statistics: list[str]
    chosen: str
    unprotected: list[str]


class Prepared(NamedTuple):
    """Averages that were planned and not yet made.

    Attributes:
      recipes: what was asked for.
      options: how sources are read and averaged.
      opened: the sources by address, in the order they are read.
      plan: of the one pass over them, a target a recipe.
      statistics: batch statistics recognised by name.
      group: processes that share the work of written averages.
    """

    recipes: tuple[Recipe, ...]
    options: AveragingOptions
    opened: dict[str, Checkpoint]
    plan: Plan
    statistics: frozenset[str]
    group: Group

    @property
    def estimate(self) -> Estimate:
        """What it will read, write and need, from metadata alone."""
        return Estimate(
            [c.label for c in self.opened.values()],
            len(self.plan.specs),
            self.plan.bytes_to_read,
            self.plan.bytes_to_write,
            self.plan.memory,
            sorted(self.statistics),
            next(iter(self.opened.values())).selection.sentence(),
            [c.label for c in self.opened.values() if not c.checksums],
        )

    def into(
        self, sinks: Sequence[Sink], progress: ReadProgress | None = None
    ) -> dict[str, dict[str, str]]:
        """Make every average into a sink of the caller's; digests of leaves by source address."""
        digests = streaming.run(self.plan, sinks, progress=progress)
        return dict(zip(self.opened, digests, strict=True))

    def in_memory(self, progress: ReadProgress | None = None) -> list[Result]:
        """Make every average as a nested dict of arrays."""
        started = time.perf_counter()
        sinks = [MemorySink(self.plan.out) for _ in self.recipes]
        digests = self.into(sinks, progress)
        seconds = {"read and average": time.perf_counter() - started}
        return [
            Result(
                recipe,
                self.opened[recipe.sources[-1]].tree_of(sink.leaves),
                None,
                {},
                {source: digests[source] for source in recipe.sources},
                self.plan.bytes_to_read,
                seconds,
            )
            for recipe, sink in zip(self.recipes, sinks, strict=True)
        ]

    def check(
        self,
        outs: Sequence[epath.PathLike],
        *,
        overwrite: bool = False,
        as_step: bool = False,
    ) -> None:
        """Refuse early what `written` would refuse, see there; nothing is read or written."""
        paths = [as_path(out) for out in outs]
        check_outputs(paths, self.opened.values(), overwrite=overwrite, as_step=as_step)

    def written(
        self,
        outs: Sequence[epath.PathLike],
        *,
        overwrite: bool = False,
        as_step: bool = False,
        journal: epath.PathLike | None = None,
        progress: ReadProgress | None = None,
    ) -> list[Result]:
        """Write every average as an ordinary Orbax step with its record.

        Args:
          outs: a directory for each.
          overwrite: replace earlier averages of ours; nothing else is ever replaced.
          as_step: write into the run itself, under a name that is a step's.
          journal: where to keep book of finished blocks, so that an interrupted pass can be taken
            up again with the same arguments; None for none.
          progress: called with the bytes read.

        Raises:
          OutputExistsError: an output may not be written there; nothing was read, see `guard`.
          Those of `average_checkpoints`.
        """
        paths = [as_path(out) for out in outs]
        if len(set(paths)) != len(self.recipes):
            raise SelectionError(
                f"expected {len(self.recipes)} different outputs, found {len(set(paths))}"
            )
        if journal is not None and self.group.count > 1:
            raise SelectionError(
                "an interruptible pass (journal) is for one process; start it alone"
            )
        return write_averages(self, paths, journal, progress, overwrite=overwrite, as_step=as_step)


def prepare(
    recipes: Sequence[Recipe],
    options: AveragingOptions = DEFAULTS,
    *,
    runs: Runs | None = None,
    group: Group = ALONE,
) -> Prepared:
    """Open the sources of all recipes, check that they fit together, and plan one pass.

    Args:
      recipes: the averages.
      options: see `AveragingOptions`.
      runs: runs that are listed already, and the checkpoints of theirs that are open.
      group: processes that will all call `Prepared.written` and share its work: each reads,
        averages and writes blocks of its own, on a file system that they share.

    Raises:
      Those of `average_checkpoints`, as far as metadata tell.
    """
    runs = runs or Runs()
    addresses = _in_order(recipes)
    opened = {source: runs.open(source, **options.selection) for source in addresses}
    position = {address: number for number, address in enumerate(addresses)}
    statistics = frozenset(batch_statistics(next(iter(opened.values())).leaves))
    plan = make_plan(
        list(opened.values()),
        [Target(tuple(position[s] for s in r.sources), r.weights) for r in recipes],
        copied=statistics if options.bn == "latest" else (),
        dtype=None if options.dtype is None else _dtype(options.dtype),
        memory=options.memory,
        threads=options.threads,
        parts=group.count,
    )
    return Prepared(tuple(recipes), options, opened, plan, statistics, group)


def average_checkpoints(
    run: epath.PathLike | Run,
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
    `lawa_jax.recalibrate`; or taken from the newest with ``bn="latest"``.

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
    runs = Runs()
    recipe = window_recipe(runs.run(run), k=k, end=end, method=method, steps=steps)
    options = AveragingOptions(item, tuple(include), tuple(exclude), dtype, bn, memory, threads)
    return prepare([recipe], options, runs=runs).in_memory()[0].tree_in_memory


def _dtype(name: str) -> np.dtype:
    try:
        dtype = dtype_named(name)
    except ValueError:
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
