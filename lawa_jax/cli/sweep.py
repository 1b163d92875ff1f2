"""`lawa sweep` averages every window length, end and method, and writes or evaluates them."""

import dataclasses
import functools
import os
import pathlib
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from lawa_jax.averaging.statistics import StatisticsPolicy
from lawa_jax.cli.average import say_sources, sources_of, warn_of_statistics
from lawa_jax.cli.options import Path, numbers, print_json, progress
from lawa_jax.cli.scoring_options import Evaluating, averaged_by, say_row
from lawa_jax.display import human, table
from lawa_jax.errors import ConfigError
from lawa_jax.trajectory.storage import as_path, is_object_store

if TYPE_CHECKING:
    from etils import epath

    from lawa_jax.offline.prepare import Estimate, Prepared
    from lawa_jax.offline.recipe import AveragingOptions, Recipe
    from lawa_jax.search.evaluators import Evaluator

JOURNAL = ".lawa-sweep"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(Evaluating):
    """Average many windows in one pass over a run.

    Example: lawa sweep RUN -k 2,3,5,10 --end 30:90:10 --method uniform,ema -o OUTDIR

    With --evaluator or --evaluate the averages are evaluated in memory, and a table and a figure
    are written to OUTDIR. After an interruption the same command continues where it stopped.
    """

    run: Path
    """The run directory."""
    k: Annotated[str, tyro.conf.arg(aliases=["-k"])] = "5"
    """The numbers of checkpoints to average: 2,3,5,10. 1 is the raw checkpoint."""
    end: str
    """The ends of the windows: 30:90:10 (both ends included) or 30,60,90."""
    method: str = "uniform"
    """The methods, separated by commas (see lawa average)."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """The directory for the averages, each in a subdirectory, or for the results of their
    evaluation."""
    keep: bool = False
    """With --evaluator or --evaluate: also write the averages to disk."""

    def __call__(self) -> None:
        """Make the averages."""
        from lawa_jax.offline.prepare import prepare
        from lawa_jax.offline.recipe import sweep_recipes

        evaluating = self.is_evaluating()
        if self.keep and not evaluating:
            raise ConfigError("--keep goes with --evaluator or --evaluate")
        recipes = sweep_recipes(
            self.listed.run(self.run),
            ks=numbers(self.k, "-k"),
            ends=numbers(self.end, "--end"),
            methods=[m.strip() for m in self.method.split(",") if m.strip()],
        )
        if self.out is None and not self.dry_run:
            what = "the results" if evaluating else "the averages"
            raise ConfigError(f"say where to write {what}: -o OUTDIR (or --dry-run)")
        if evaluating:
            evaluator, policy = self.load(self.run)
            self._evaluate(recipes, evaluator, policy)
            return
        options = self.options(averaged_by(self.bn or "average"))
        prepared = prepare(recipes, options, runs=self.listed)
        expected = prepared.estimate
        plan = {
            "averages": _averages(recipes),
            "checkpoints": expected.checkpoints,
            "bytes_to_read": expected.bytes_to_read,
            "bytes_to_write": expected.bytes_to_write,
            "memory_bound": expected.memory_bound,
            "statistics": expected.statistics,
            "bn": options.bn if expected.statistics else None,
        }
        how = (
            f"each read once; reads {human(expected.bytes_to_read)}, writes "
            f"{human(expected.bytes_to_write)}, memory at most {human(expected.memory_bound)}"
        )
        self._announce(recipes, expected, plan, how, options.bn)
        if self.dry_run:
            return
        started = time.perf_counter()
        outputs = self._write(prepared)
        seconds = time.perf_counter() - started
        if self.json:
            print_json({**plan, "outputs": outputs, "seconds": seconds})
        else:
            print(f"wrote {len(outputs)} averages into {self.out} in {seconds:.2f} s")

    def _write(self, prepared: "Prepared") -> list[str]:
        folder = self._folder()
        # Object stores cannot be staged beside and taken up again.
        journal = None if is_object_store(folder) else folder / JOURNAL
        with progress(prepared.plan.bytes_to_read, "reading") as advance:
            results = prepared.written(
                [folder / recipe.name for recipe in prepared.recipes],
                overwrite=self.overwrite,
                journal=journal,
                progress=advance,
            )
        return [str(result.path) for result in results]

    def _folder(self) -> "epath.Path":
        assert self.out is not None
        return as_path(self.out)

    def _evaluate(
        self, recipes: "list[Recipe]", evaluator: "Evaluator", policy: StatisticsPolicy
    ) -> None:
        from lawa_jax.offline.prepare import prepare
        from lawa_jax.search import scoring

        options = self.options(averaged_by(policy))
        expected = prepare(recipes, options, runs=self.listed).estimate
        reads = [each.plan.bytes_to_read for each in scoring.passes(recipes, options, self.listed)]
        plan: dict[str, Any] = {
            "averages": _averages(recipes),
            "evaluator": evaluator.name,
            "bn": policy if expected.statistics else None,
            "passes": 1 if self.keep else len(reads),
            "bytes_to_read": expected.bytes_to_read if self.keep else sum(reads),
            "bytes_to_write": expected.bytes_to_write if self.keep else 0,
        }
        how = (
            f"made in {plan['passes']} pass{'es' * (plan['passes'] > 1)} and evaluated by "
            f"{evaluator.name}; reads at most {human(plan['bytes_to_read'])}"
        )
        self._announce(recipes, expected, plan, how, policy)
        if not self.dry_run:
            self._fill(recipes, evaluator, options, plan)

    def _announce(
        self,
        recipes: "list[Recipe]",
        expected: "Estimate",
        plan: dict[str, Any],
        how: str,
        policy: StatisticsPolicy,
    ) -> None:
        """Say what will be done; all of it where nothing will."""
        if self.json:
            if self.dry_run:
                print_json(plan)
            return
        if self.dry_run:
            _print_recipes(recipes)
        print(
            f"{len(recipes)} averages from {len(expected.checkpoints)} checkpoints, {how}",
            file=sys.stdout if self.dry_run else sys.stderr,
        )
        if policy != "recalibrate":
            warn_of_statistics(expected, policy)
        say_sources(expected)

    def _fill(
        self,
        recipes: "list[Recipe]",
        evaluator: "Evaluator",
        options: "AveragingOptions",
        plan: dict[str, Any],
    ) -> None:
        """Write the table row by row, and then the figure."""
        from lawa_jax.report.sweeps import sweep_plot
        from lawa_jax.search import scoring
        from lawa_jax.search.results import FIGURE, IDENTITY, Results

        if is_object_store(self._folder()):
            raise ConfigError(f"-o {self.out}: results are appended to, so name a local directory")
        folder, run = self._folder(), as_path(self.run)
        setting = {
            "run": str(run) if is_object_store(run) else os.path.abspath(run),
            "evaluator": evaluator.name,
            "bn": plan["bn"],
            "item": self.item,
            "include": list(self.include),
            "exclude": list(self.exclude),
            "dtype": self.dtype,
            # Last: the others say more clearly what differs.
            IDENTITY: evaluator.identity,
        }
        results = Results(_local(folder), setting, overwrite=self.overwrite)
        try:
            if self.keep:
                self._keep(recipes, options)
                trees = functools.partial(scoring.stored, folder=folder, options=options)
            else:
                trees = functools.partial(scoring.in_memory, options=options, runs=self.listed)
            found = scoring.score_recipes(
                recipes,
                evaluator,
                results,
                trees,
                options=options,
                runs=self.listed,
                on_row=say_row,
            )
        finally:
            results.close()
        figure = _local(folder) / FIGURE
        shown = sorted(results.rows.values(), key=lambda row: (row.end, row.k))
        sweep_plot(shown, f"{run.name}, {evaluator.name}", figure)
        if self.json:
            print_json({**plan, "rows": [row.as_json() for row in found], "out": str(folder)})
            return
        names = list(found[0].metrics)
        print(
            table(
                ["average", *names],
                [
                    [r.name, *(f"{r.metrics.get(n, float('nan')):.6f}" for n in names)]
                    for r in found
                ],
            )
        )
        print(f"\ndata: {folder / 'results.csv'}\nplot: {figure}")

    def _keep(self, recipes: "list[Recipe]", options: "AveragingOptions") -> None:
        """Write the averages that do not exist yet."""
        from lawa_jax.offline.prepare import prepare
        from lawa_jax.search import scoring

        folder = self._folder()
        # A pass that was interrupted is taken up with the recipes it had.
        whole = _local(folder / JOURNAL).exists() or self.overwrite
        missing = [
            recipe
            for recipe in recipes
            if whole or not scoring.is_stored(recipe, folder, options, self.listed)
        ]
        if missing:
            self._write(prepare(missing, options, runs=self.listed))


def _averages(recipes: "list[Recipe]") -> dict[str, Any]:
    return {
        recipe.name: {"method": recipe.method, "sources": sources_of(recipe)} for recipe in recipes
    }


def _print_recipes(recipes: "list[Recipe]") -> None:
    body = [[j.name, " ".join(s.rpartition("@")[2] for s in j.sources), j.method] for j in recipes]
    print(table(["average", "checkpoints", "method"], body))


def _local(path: "epath.Path") -> pathlib.Path:
    return pathlib.Path(os.fspath(path))
