"""`lawa average` averages a window of a run, its best checkpoints, or any weighted set."""

import dataclasses
import math
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lawa_jax.averaging.statistics import StoredStatistics
from lawa_jax.cli.options import Averaging, print_json, progress
from lawa_jax.display import human, printable, table
from lawa_jax.errors import ConfigError

if TYPE_CHECKING:
    from lawa_jax.distributed import Group
    from lawa_jax.offline.prepare import Estimate
    from lawa_jax.offline.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneAverage(Averaging):
    """The options of commands that make one average."""

    bn: StoredStatistics = "average"
    """The BatchNorm statistics of the average: averaged like weights, or those of the newest
    checkpoint, which fit averaged weights worst. Best is to recompute them afterwards."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """The directory to write the average to."""

    as_step: bool = False
    """Write the average into the run it is made from, under the name of a step. It is marked as an
    average, and later windows leave it out."""
    coordinator: str | None = None
    """HOST:PORT of process 0, if several processes share the work. Start the same command in each
    of them. On TPU pods, SLURM and Open MPI, --processes alone is enough."""
    process_count: int | None = None
    """With --coordinator: the number of processes."""
    process_index: int | None = None
    """With --coordinator: the number of this process, counted from 0."""
    processes: bool = False
    """Share the work with the other processes that a launcher started with this one."""

    def recipe(self) -> "Recipe":
        """The recipe of what to average."""
        raise NotImplementedError

    def __call__(self) -> None:
        """Make the average."""
        group = self._join()
        from lawa_jax.offline.prepare import prepare

        recipe = self.recipe()
        prepared = prepare([recipe], self.options(self.bn), runs=self.listed, group=group)
        expected = prepared.estimate
        if self.dry_run:
            if group.index == 0:
                self.say(recipe, expected, dry=True)
            return
        if self.out is None:
            raise ConfigError("say where to write the average: -o OUT (or --dry-run)")
        prepared.check([self.out], overwrite=self.overwrite, as_step=self.as_step)
        if not self.json and group.index == 0:
            self.say(recipe, expected, dry=False)
        started = time.perf_counter()
        # The bar is of this process's share.
        with progress(expected.bytes_to_read // group.count, "reading") as advance:
            result = prepared.written(
                [self.out], overwrite=self.overwrite, as_step=self.as_step, progress=advance
            )[0]
        seconds = time.perf_counter() - started
        if group.index:
            return
        if self.json:
            print_json(
                {
                    "out": str(result.path),
                    "sources": sources_of(recipe),
                    "method": recipe.method,
                    "leaves": expected.leaves,
                    "bytes_read": result.bytes_read,
                    "bytes_written": expected.bytes_to_write,
                    "memory_bound": expected.memory_bound,
                    "statistics": expected.statistics,
                    "bn": self.bn if expected.statistics else None,
                    "seconds": {**result.seconds, "all": seconds},
                    "digests": result.digests,
                }
            )
        else:
            print(
                f"wrote {result.path}: {human(expected.bytes_to_write)} from "
                f"{human(result.bytes_read)} in {seconds:.2f} s; check it with: lawa verify "
                f"{result.path}"
            )

    def _join(self) -> "Group":
        from lawa_jax.distributed import ALONE, initialize

        given = (self.coordinator, self.process_count, self.process_index)
        if not self.processes and given == (None, None, None):
            return ALONE
        # Each says for itself which one it is and what it prints.
        own = {"coordinator", "process_count", "process_index", "processes", "json"}
        return initialize(
            *given,
            arguments={k: v for k, v in dataclasses.asdict(self).items() if k not in own},
        )

    def say(self, recipe: "Recipe", expected: "Estimate", *, dry: bool) -> None:
        """Print what will be done, as JSON or as text."""
        if self.json:
            print_json(
                {
                    "sources": sources_of(recipe),
                    "method": recipe.method,
                    "leaves": expected.leaves,
                    "bytes_to_read": expected.bytes_to_read,
                    "bytes_to_write": expected.bytes_to_write,
                    "memory_bound": expected.memory_bound,
                    "statistics": expected.statistics,
                    "bn": self.bn if expected.statistics else None,
                }
            )
            return
        if dry:
            body = [[s["checkpoint"], f"{s['coefficient']:.6f}"] for s in sources_of(recipe)]
            print(table(["checkpoint", "coefficient"], body))
        print(
            f"{recipe.method} average of {len(recipe.sources)} checkpoints, "
            f"{expected.leaves} leaves; reads {human(expected.bytes_to_read)}, "
            f"writes {human(expected.bytes_to_write)}, "
            f"memory at most {human(expected.memory_bound)}",
            file=sys.stdout if dry else sys.stderr,
        )
        warn_of_statistics(expected, self.bn)
        say_sources(expected)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Average(OneAverage):
    """Average checkpoints: a window of a run, its best checkpoints, or any weighted set.

    A window: lawa average RUN -k 5 --end 90 -o OUT

    The best checkpoints: lawa average RUN --best 5 --metric val/top1 --mode max -o OUT

    A weighted set: lawa average A@10:0.25 B@20:0.75 -o OUT
    """

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN[@STEP[:WEIGHT]]")
    ] = ()
    """A run to choose checkpoints from, or several checkpoints RUN@step[:weight]."""
    k: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = None
    """The number of latest checkpoints to average, 5 by default."""
    end: int | None = None
    """The newest checkpoint of the window. By default it is the newest of the run."""
    window: str | None = None
    """The length of the window as a share of the run, instead of -k: 1% is rounded up to at least 2
    checkpoints."""
    steps: str | None = None
    """Average exactly these steps: 50:90:10 (both ends included) or 1,2,5."""
    best: int | None = None
    """Average this many checkpoints that are best by --metric."""
    metric: str | None = None
    """The name of a metric that was saved with the checkpoints; lawa ls prints them."""
    mode: Literal["min", "max"] = "min"
    """Whether low or high values of the metric are good."""
    method: str = "uniform"
    """The averaging method: uniform, linear, ema[:decay], power_ema[:sigma_rel],
    decay[:linear|cosine|1-sqrt] or bema[:eta]."""

    def recipe(self) -> "Recipe":
        """The window, the best checkpoints or the weighted set."""
        from lawa_jax.offline.recipe import (
            best_recipe,
            split_weight,
            weighted_recipe,
            window_recipe,
        )
        from lawa_jax.trajectory import parse_address

        given = {
            "--best": self.best is not None,
            "--steps": self.steps is not None,
            "--window": self.window is not None,
            "-k": self.k is not None,
        }
        chosen = [name for name, is_given in given.items() if is_given]
        if not self.sources:
            raise ConfigError("name a run to average from, or checkpoints RUN@step[:weight]")
        if len(chosen) > 1:
            raise ConfigError(f"{' and '.join(chosen)} contradict each other; choose one")
        if self.steps is not None and self.end is not None:
            raise ConfigError("--steps names every checkpoint; leave --end out")
        place, weight = split_weight(self.sources[0])
        one = weight is not None or parse_address(place)[1] is not None
        if len(self.sources) > 1 or one:
            if chosen or self.end is not None or self.method != "uniform":
                raise ConfigError(
                    "checkpoints named one by one are the whole selection; "
                    "-k, --end, --steps, --window, --best and --method go with one run"
                )
            return weighted_recipe(self.sources)
        run = self.listed.run(self.sources[0])
        if self.best is not None:
            if self.metric is None:
                raise ConfigError("--best needs --metric NAME (and --mode max where high is good)")
            return best_recipe(
                run, best=self.best, metric=self.metric, mode=self.mode, method=self.method
            )
        return window_recipe(
            run,
            k=5 if self.k is None else self.k,
            end=self.end,
            method=self.method,
            steps=self.steps,
            share=self.window,
        )


def sources_of(recipe: "Recipe") -> list[dict[str, Any]]:
    """The checkpoints of an average, oldest first, with coefficients that sum to 1."""
    total = math.fsum(recipe.weights)
    return [
        {"checkpoint": source, "coefficient": weight / total}
        for source, weight in zip(recipe.sources, recipe.weights, strict=True)
    ]


def say_sources(expected: "Estimate") -> None:
    """Say which leaves are averaged, and that damage in others' checkpoints cannot be noticed."""
    print(printable(expected.chosen), file=sys.stderr)
    count, total = len(expected.unprotected), len(expected.checkpoints)
    if count:
        print(
            f"note: {count} of {total} checkpoints carry no checksums, so that damage in their "
            "data cannot be noticed",
            file=sys.stderr,
        )


def warn_of_statistics(expected: "Estimate", policy: str) -> None:
    """Print what happens to BatchNorm statistics, and what would be better."""
    if not expected.statistics:
        return
    what = "taken from the newest checkpoint" if policy == "latest" else "averaged like weights"
    print(
        f"warning: {len(expected.statistics)} leaves look like BatchNorm statistics (by name, "
        f"{expected.statistics[0]}) and are {what} (--bn {policy}). Averaged weights want "
        "statistics of their own: recompute them on training batches with "
        "lawa_jax.recalibrate(apply_fn, tree, batches), or in PyTorch, after an export, with "
        "torch.optim.swa_utils.update_bn",
        file=sys.stderr,
    )
