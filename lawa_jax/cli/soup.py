"""`lawa soup` finds which checkpoints of a run to average by evaluating averages on held-out
data."""

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from lawa_jax.averaging.statistics import StatisticsPolicy
from lawa_jax.cli.average import say_sources, warn_of_statistics
from lawa_jax.cli.options import Path, numbers, print_json
from lawa_jax.cli.scoring_options import Evaluating
from lawa_jax.display import human, table
from lawa_jax.errors import ConfigError
from lawa_jax.trajectory.storage import as_path

if TYPE_CHECKING:
    from lawa_jax.offline.prepare import Estimate
    from lawa_jax.offline.recipe import AveragingOptions, Recipe
    from lawa_jax.search.evaluators import Evaluator, Metrics
    from lawa_jax.search.soups import SearchResult


class Scoring(NamedTuple):
    """The evaluators that the search and the report use."""

    selecting: "Evaluator"
    reporting: "Evaluator | None"
    metric: str | None
    policy: StatisticsPolicy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soup(Evaluating):
    """Find out on held-out data which checkpoints to average.

    Example: lawa soup RUN --evaluator mine.py:score --metric loss -o OUT

    Report the result on data that the search did not use: give --report or, with --evaluate,
    more --splits.
    """

    run: Path
    """The run directory."""
    search: Literal["greedy", "best-k", "best-window"] = "greedy"
    """greedy tries the best checkpoints first and keeps each one that does not make the mean worse.
    best-k takes the k checkpoints that are best on their own. best-window takes the best of the
    windows of the latest k checkpoints."""
    k: Annotated[str, tyro.conf.arg(aliases=["-k"])] = "5"
    """For best-k, the number of checkpoints. For best-window, the numbers to try: 2,3,5,10."""
    end: str | None = None
    """For best-window: the ends to try, such as 30:90:10 (both included). By default it is the
    newest candidate."""
    steps: str | None = None
    """The candidates: 50:90:10 (both ends included) or 1,2,5. By default they are all
    checkpoints."""
    metric: str | None = None
    """The metric that the search uses. The default is val/loss with --evaluate, and otherwise the
    only metric there is."""
    mode: Literal["min", "max"] = "min"
    """Whether low or high values of the metric are good."""
    report: str | None = None
    """A function that evaluates the result on data that the search did not use:
    path/to/file.py:function or package.module:function."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """The directory to write the average to."""
    as_step: bool = False
    """Write the average into the run itself, under the name of a step (see lawa average)."""

    def __call__(self) -> None:
        """Search, write the average, and report."""
        from lawa_jax.averaging import window
        from lawa_jax.offline.prepare import prepare

        if not self.is_evaluating():
            raise ConfigError(
                "say how to score an average: --evaluator file.py:function, or --evaluate"
            )
        if self.end is not None and self.search != "best-window":
            raise ConfigError("--end goes with --search best-window; name candidates with --steps")
        existing = self.listed.run(self.run).steps
        wanted = existing if self.steps is None else numbers(self.steps, "--steps")
        candidates = window.select(existing, wanted)
        options = self.options("average")
        ks = numbers(self.k, "-k")
        ends = candidates[-1:] if self.end is None else numbers(self.end, "--end")
        self._check(candidates, ks, ends)
        if self.dry_run:
            self._plan(candidates, ks, ends, options)
            return
        if self.out is None:
            raise ConfigError("say where to write the average: -o OUT (or --dry-run)")
        whole = prepare([self._recipe(candidates)], options, runs=self.listed)
        whole.check([self.out], overwrite=self.overwrite, as_step=self.as_step)
        if not self.json:
            say_sources(whole.estimate)
        scoring = self._scoring()
        if scoring.reporting is None:
            print(self._flattering(), file=sys.stderr)
        found, metrics = self._search(candidates, ks, ends, scoring, options)
        prepared = prepare([self._recipe(found.steps)], options, runs=self.listed)
        # Before the report: what was searched for is not lost where that fails.
        prepared.written([self.out], overwrite=self.overwrite, as_step=self.as_step)
        try:
            report = _report(scoring, found, metrics, (candidates[0], candidates[-1]))
        except BaseException:
            print(self._found(found), file=sys.stderr, flush=True)
            raise
        self._say(found, report, scoring, prepared.estimate)

    def _check(self, candidates: Sequence[int], ks: Sequence[int], ends: Sequence[int]) -> None:
        """Find mistakes before anything is evaluated."""
        from lawa_jax.averaging import window
        from lawa_jax.search import soups

        if self.search == "best-k" and (len(ks) != 1 or not 1 <= ks[0] <= len(candidates)):
            raise ConfigError(
                f"-k {self.k}: expected one number of at most {len(candidates)} candidates"
            )
        if self.search == "best-window":
            window.select(candidates, ends)
            if min(ks) < 1:
                raise ConfigError(f"-k {self.k}: expected numbers >= 1")
            most = sum(step <= max(ends) for step in candidates)
            if max(ks) > most:
                raise ConfigError(
                    f"-k {self.k}: expected numbers of at most {most}, the candidates up to "
                    f"{max(ends)}; choose a smaller k, or a later --end"
                )
            # Gaps are found, too.
            soups.windows(candidates, ks, ends)

    def _metric(self) -> str | None:
        return self.metric or ("val/loss" if self.evaluate else None)

    def _others(self, metric: str | None) -> list[str]:
        """With --evaluate, the splits that the search does not use."""
        if not self.evaluate:
            return []
        assert metric is not None
        splits = [split.strip() for split in self.splits.split(",") if split.strip()]
        chosen = metric.partition("/")[0]
        if chosen not in splits:
            raise ConfigError(
                f"--metric {metric}: expected a metric of --splits {self.splits}, such as "
                f"{(splits or ['val'])[0]}/loss"
            )
        return [split for split in splits if split != chosen]

    def _scoring(self) -> Scoring:
        from lawa_jax.search.evaluators import load_evaluator

        metric = self._metric()
        others = self._others(metric)
        if self.evaluate:
            assert metric is not None
            # The search evaluates the one split it needs.
            chosen = metric.partition("/")[0]
            selecting, policy = dataclasses.replace(self, splits=chosen).load(self.run)
        else:
            selecting, policy = self.load(self.run)
            policy = policy if self.bn is not None else "average"
        if policy == "latest":
            raise ConfigError(
                "a soup has no newest checkpoint to take BatchNorm statistics from: choose --bn "
                "average" + (" or --bn recalibrate" if self.evaluate else "")
            )
        if self.report is not None:
            return Scoring(selecting, load_evaluator(self.report, "--report"), metric, policy)
        if others:
            reporting, _ = dataclasses.replace(self, splits=",".join(others)).load(self.run)
            return Scoring(selecting, reporting, metric, policy)
        return Scoring(selecting, None, metric, policy)

    def _search(
        self,
        candidates: tuple[int, ...],
        ks: Sequence[int],
        ends: Sequence[int],
        scoring: Scoring,
        options: "AveragingOptions",
    ) -> "tuple[SearchResult, Metrics]":
        """The result of the search, and all metrics that the function of the search gives for
        it."""
        from lawa_jax.search import soups
        from lawa_jax.search.evaluators import metric_of

        evaluator, metric = scoring.selecting, scoring.metric
        tried: list[Metrics] = []
        span = (candidates[0], candidates[-1])

        def score(tree: Any) -> float:
            # Recomputed statistics are of the same batches for all trees.
            tried.append(_scored(evaluator, tree, span))
            value = metric_of(tried[-1], metric, evaluator.name)
            print(f"{len(tried)}: {metric or 'score'} {value:.6g}", file=sys.stderr, flush=True)
            return value

        load = functools.partial(self._load, options=options)
        # Both score what they found in the end.
        if self.search == "greedy":
            return soups.greedy_soup(load, candidates, score, mode=self.mode), tried[-1]
        if self.search == "best-k":
            return soups.best_k(load, candidates, score, ks[0], mode=self.mode), tried[-1]
        found = soups.best_window(load, candidates, score, ks=ks, ends=ends, mode=self.mode)
        best = next(n for n, trial in enumerate(found.trials) if trial.steps == found.steps)
        return found, tried[best]

    def _load(self, step: int, *, options: "AveragingOptions") -> dict[str, Any]:
        """One checkpoint, verified, through the engine that averages."""
        from lawa_jax.offline.prepare import prepare

        recipe = self._recipe((step,))
        return prepare([recipe], options, runs=self.listed).in_memory()[0].tree_in_memory

    def _recipe(self, steps: tuple[int, ...]) -> "Recipe":
        from lawa_jax.offline.recipe import Recipe, address

        sources = tuple(address(self.run, step) for step in steps)
        return Recipe(sources, (1.0,) * len(steps), f"soup:{self.search}", f"soup-{self.search}")

    def _plan(
        self,
        candidates: tuple[int, ...],
        ks: Sequence[int],
        ends: Sequence[int],
        options: "AveragingOptions",
    ) -> None:
        from lawa_jax.offline.prepare import prepare
        from lawa_jax.search import soups

        n = len(candidates)
        if self.search == "best-window":
            evaluations = len(soups.windows(candidates, ks, ends))
        else:
            evaluations = 2 * n if self.search == "greedy" else n + 1
        # The function of the search is not asked again.
        evaluations += self.report is not None or bool(self._others(self._metric()))
        one = prepare([self._recipe(candidates[:1])], options, runs=self.listed)
        size = one.estimate.bytes_to_write
        plan = {"candidates": list(candidates), "evaluations": evaluations, "bytes_each": size}
        if self.json:
            print_json(plan)
        else:
            print(
                f"{self.search} search among {n} checkpoints of {human(size)}: at most "
                f"{evaluations} evaluations"
            )

    def _flattering(self) -> str:
        if self.evaluate:
            return (
                "warning: the reported figures flatter, for they are of the split that the search "
                "sees; for figures of others give further --splits, or --report file.py:function"
            )
        return (
            "warning: the reported figures flatter where they are of data that the search sees; "
            "for figures of other data give --report file.py:function"
        )

    def _found(self, found: "SearchResult") -> str:
        assert self.out is not None
        return (
            f"found {' '.join(map(str, found.steps))}: {found.score:.6g} in the search\n"
            f"wrote {os.fspath(as_path(self.out))}"
        )

    def _say(
        self, found: "SearchResult", report: "Metrics", scoring: Scoring, expected: "Estimate"
    ) -> None:
        from lawa_jax.search.evaluators import describe

        if self.json:
            print_json(
                {
                    "out": self.out,
                    "steps": list(found.steps),
                    "metric": scoring.metric,
                    "score": _plain(found.score),
                    "report": {name: _plain(value) for name, value in report.items()},
                    "trials": [
                        {"steps": list(t.steps), "score": _plain(t.score), "kept": t.kept}
                        for t in found.trials
                    ],
                }
            )
            return
        warn_of_statistics(expected, "average")
        if scoring.policy == "recalibrate":
            print("the figures here are with recomputed statistics", file=sys.stderr)
        print(
            table(
                ["checkpoints", scoring.metric or "score", ""],
                [
                    [
                        " ".join(map(str, t.steps)),
                        f"{t.score:.6g}",
                        "kept" if t.kept and len(t.steps) > 1 else "",
                    ]
                    for t in found.trials
                ],
            )
        )
        print("")
        if report:
            print(f"report: {describe(report)}")
        print(self._found(found))


def _scored(evaluator: "Evaluator", tree: Any, span: tuple[int, ...]) -> "Metrics":
    import jax
    import numpy as np

    from lawa_jax.search.scoring import score

    # Soups are made on the device; evaluators are promised numpy.
    return score(evaluator, jax.tree.map(np.asarray, tree), span, "an average of the search")


def _report(
    scoring: Scoring, found: "SearchResult", metrics: "Metrics", span: tuple[int, ...]
) -> "Metrics":
    """The figures that the search did not use."""
    if scoring.reporting is not None:
        return _scored(scoring.reporting, found.tree, span)
    # Without a name it is the only one.
    return {n: v for n, v in metrics.items() if scoring.metric and n != scoring.metric}


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
