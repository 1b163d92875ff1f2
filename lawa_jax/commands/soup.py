"""`lawa soup`: which checkpoints of a run to average, found by trying on held-out data."""

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from lawa_jax.checkpoints import list_steps
from lawa_jax.checkpoints.discovery import as_path
from lawa_jax.commands.average import warn_of_statistics
from lawa_jax.commands.common import Path, human, numbers, print_json, rows
from lawa_jax.commands.evaluating import Evaluating, Policy
from lawa_jax.errors import ConfigError, OutputExistsError

if TYPE_CHECKING:
    from lawa_jax.evaluators import Evaluator, Metrics
    from lawa_jax.jobs import Job, Options
    from lawa_jax.soup import Found


class Scoring(NamedTuple):
    """Whose metrics the search and the report go by."""

    selecting: "Evaluator"
    reporting: "Evaluator | None"
    metric: str | None
    policy: Policy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soup(Evaluating):
    """Find what to average by trying on held-out data: lawa soup RUN --evaluator mine.py:score
    --metric loss -o OUT. Report on other data than the search saw: by other metrics of the same
    function, by --report, or with --evaluate by other --splits."""

    run: Path
    """Run directory."""
    search: Literal["greedy", "best-k", "best-window"] = "greedy"
    """greedy: best checkpoints first, each kept if the mean does not get worse by it; best-k: the k
    that are best one by one; best-window: the best of the windows of the latest k."""
    k: Annotated[str, tyro.conf.arg(aliases=["-k"])] = "5"
    """For best-k a number; for best-window numbers to try: 2,3,5,10."""
    end: str | None = None
    """For best-window: ends to try, 30:90:10 (both included); the newest candidate by default."""
    steps: str | None = None
    """Candidates: 50:90:10 (both ends included) or 1,2,5; all checkpoints by default."""
    metric: str | None = None
    """Metric of the search; with --evaluate val/loss by default, otherwise the only one."""
    mode: Literal["min", "max"] = "min"
    """Whether a low or a high metric is good."""
    report: str | None = None
    """Function for the metrics of what was found, on data that the search did not see:
    path/to/file.py:function or package.module:function."""
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None
    """Where to write the average."""

    def __call__(self) -> None:
        """Search, report and write."""
        from lawa_jax import window

        if not self.is_evaluating():
            raise ConfigError(
                "say how to score an average: --evaluator file.py:function, or --evaluate"
            )
        if self.end is not None and self.search != "best-window":
            raise ConfigError("--end goes with --search best-window; name candidates with --steps")
        existing = list_steps(self.run)
        wanted = existing if self.steps is None else numbers(self.steps, "--steps")
        candidates = window.select(existing, wanted)
        options = self.options("average")
        if self.dry_run:
            self._plan(candidates, options)
            return
        if self.out is None:
            raise ConfigError("say where to write the average: -o OUT (or --dry-run)")
        if as_path(self.out).exists() and not self.overwrite:
            raise OutputExistsError(
                f"{self.out} already exists; choose another output, or --overwrite"
            )
        ks = numbers(self.k, "-k")
        ends = candidates[-1:] if self.end is None else numbers(self.end, "--end")
        self._check(candidates, ks, ends)
        scoring = self._scoring()
        found = self._search(candidates, ks, ends, scoring, options)
        # Recomputed statistics are of the same batches for all trees.
        span = (candidates[0], candidates[-1])
        report = _scored(scoring.reporting or scoring.selecting, found.tree, span)
        if scoring.reporting is None:
            # Without a name it is the only one.
            others = report.keys() - {scoring.metric} if scoring.metric else ()
            report = {name: value for name, value in report.items() if name in others}
        self._write(found, report, scoring, options)

    def _check(self, candidates: Sequence[int], ks: Sequence[int], ends: Sequence[int]) -> None:
        """Find mistakes before anything is evaluated."""
        from lawa_jax import window

        if self.search == "best-k" and (len(ks) != 1 or not 1 <= ks[0] <= len(candidates)):
            raise ConfigError(
                f"-k {self.k}: expected one number of at most {len(candidates)} candidates"
            )
        if self.search == "best-window":
            window.select(candidates, ends)
            if min(ks) < 1:
                raise ConfigError(f"-k {self.k}: expected numbers >= 1")

    def _scoring(self) -> Scoring:
        from lawa_jax.evaluators import load_evaluator

        splits = [split.strip() for split in self.splits.split(",") if split.strip()]
        metric, others = self.metric, []
        if self.evaluate:
            # The search evaluates the one split it needs.
            metric = metric or "val/loss"
            chosen = metric.partition("/")[0]
            if chosen not in splits:
                raise ConfigError(
                    f"--metric {metric}: expected a metric of --splits {self.splits}, such as "
                    f"{(splits or ['val'])[0]}/loss"
                )
            others = [split for split in splits if split != chosen]
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
        options: "Options",
    ) -> "Found":
        from lawa_jax import soup
        from lawa_jax.evaluators import metric_of

        evaluator, metric, tried = scoring.selecting, scoring.metric, 0
        span = (candidates[0], candidates[-1])

        def score(tree: Any) -> float:
            nonlocal tried
            tried += 1
            value = metric_of(_scored(evaluator, tree, span), metric, evaluator.name)
            print(f"{tried}: {metric or 'score'} {value:.6g}", file=sys.stderr, flush=True)
            return value

        load = functools.partial(_load, self.run, options=options)
        if self.search == "greedy":
            return soup.greedy_soup(load, candidates, score, mode=self.mode)
        if self.search == "best-k":
            return soup.best_k(load, candidates, score, ks[0], mode=self.mode)
        return soup.best_window(load, candidates, score, ks=ks, ends=ends, mode=self.mode)

    def _job(self, steps: tuple[int, ...]) -> "Job":
        from lawa_jax.jobs import Job, address

        sources = tuple(address(self.run, step) for step in steps)
        return Job(sources, (1.0,) * len(steps), f"soup:{self.search}", f"soup-{self.search}")

    def _plan(self, candidates: tuple[int, ...], options: "Options") -> None:
        from lawa_jax.trajectory import estimate

        n = len(candidates)
        ends = 1 if self.end is None else len(numbers(self.end, "--end"))
        evaluations = {
            "greedy": 2 * n,
            "best-k": n + 1,
            "best-window": ends * len(numbers(self.k, "-k")),
        }[self.search]
        size = estimate([self._job(candidates[:1])], options).bytes_to_write
        plan = {"candidates": list(candidates), "evaluations": evaluations, "bytes_each": size}
        if self.json:
            print_json(plan)
        else:
            print(
                f"{self.search} search among {n} checkpoints of {human(size)}: at most "
                f"{evaluations} evaluations"
            )

    def _write(
        self, found: "Found", report: "Metrics", scoring: Scoring, options: "Options"
    ) -> None:
        from lawa_jax.evaluators import describe
        from lawa_jax.trajectory import estimate, run_jobs

        assert self.out is not None
        job = self._job(found.steps)
        run_jobs([job], [self.out], options=options, overwrite=self.overwrite)
        if not report:
            print(
                "warning: the search and this score saw the same data, which flatters it; give "
                "other metrics, --report or further --splits",
                file=sys.stderr,
            )
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
        warn_of_statistics(estimate([job], options), "average")
        if scoring.policy == "recalibrate":
            print("the figures here are with recomputed statistics", file=sys.stderr)
        print(
            rows(
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
        print(f"\nfound {' '.join(map(str, found.steps))}: {found.score:.6g} in the search")
        if report:
            print(f"report: {describe(report)}")
        print(f"wrote {os.fspath(as_path(self.out))}")


def _load(run: str, step: int, *, options: "Options") -> dict[str, Any]:
    """One checkpoint, verified, through the engine that averages."""
    from lawa_jax.jobs import Job, address
    from lawa_jax.trajectory import run_jobs

    job = Job((address(run, step),), (1.0,), "uniform", f"step{step}")
    tree = run_jobs([job], options=options)[0].tree
    assert tree is not None
    return tree


def _scored(evaluator: "Evaluator", tree: Any, span: tuple[int, ...]) -> "Metrics":
    import jax
    import numpy as np

    from lawa_jax.evaluation import score

    # Soups are made on the device; evaluators are promised numpy.
    return score(evaluator, jax.tree.map(np.asarray, tree), span, "an average of the search")


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
