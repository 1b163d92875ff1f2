"""What commands that evaluate averages share: the choice of the evaluator and of its data."""

import dataclasses
import sys
from typing import TYPE_CHECKING

import tyro

from lawa_jax.averaging.statistics import StatisticsPolicy, StoredStatistics
from lawa_jax.cli.options import Averaging
from lawa_jax.errors import ConfigError

if TYPE_CHECKING:
    from lawa_jax.search.evaluators import Evaluator
    from lawa_jax.search.results import Row

IMAGE_SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluating(Averaging):
    """The options that say how averages are evaluated."""

    bn: StatisticsPolicy | None = None
    """The BatchNorm statistics of averages: those of the newest checkpoint, averaged like weights,
    or (with --evaluate) recomputed on training data. The default is average; with --evaluate it
    is the policy of the run."""
    evaluator: str | None = None
    """A function of your own that takes a tree of arrays and returns a number or a dict of numbers:
    path/to/file.py:function or package.module:function."""
    evaluate: bool = False
    """Evaluate as the trainers of this project do. This works for their ResNet and RoBERTa runs."""
    splits: str = "val"
    """With --evaluate: the parts of the data to evaluate on, out of train,val,test (images have
    train,val)."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """With --evaluate: another value for a field of the run's configuration, such as data_dir=PATH
    or eval_batch_size=16; repeatable."""

    def is_evaluating(self) -> bool:
        """Whether averages are to be evaluated.

        Raises:
          ConfigError: options that contradict each other.
        """
        if self.evaluator is not None and self.evaluate:
            raise ConfigError("--evaluator and --evaluate contradict each other; choose one")
        if not self.evaluate:
            for name, given in (
                ("--set", bool(self.set)),
                ("--splits", self.splits != "val"),
                ("--bn recalibrate", self.bn == "recalibrate"),
            ):
                if given:
                    raise ConfigError(
                        f"{name} goes with --evaluate; an evaluator of your own sees to its data "
                        "and statistics itself"
                    )
        return self.evaluator is not None or self.evaluate

    def load(self, run: str) -> "tuple[Evaluator, StatisticsPolicy]":
        """The evaluator, and the policy for the BatchNorm statistics of the averages it
        evaluates."""
        from lawa_jax.search.evaluators import load_evaluator

        if self.evaluator is not None:
            return load_evaluator(self.evaluator), self.bn or "average"
        # The trainers' machinery takes seconds to import.
        from etils import epath

        from lawa_jax.training.config import ImageConfig
        from lawa_jax.training.run_evaluator import run_config, run_evaluator

        changes = {}
        for text in self.set:
            name, equals, value = text.partition("=")
            if not (name and equals):
                raise ConfigError(f"--set: expected field=value, found {text!r}")
            changes[name] = value
        splits = [split.strip() for split in self.splits.split(",") if split.strip()]
        if not splits:
            raise ConfigError("--splits: expected some of train,val,test, found nothing")
        config = run_config(epath.Path(run), changes)
        # Text says so itself when it is opened; images would after the first evaluations.
        if isinstance(config, ImageConfig) and (unknown := sorted({*splits} - {*IMAGE_SPLITS})):
            raise ConfigError(
                f"--splits {self.splits}: there is no split {unknown[0]!r} of images; expected "
                f"some of {', '.join(IMAGE_SPLITS)}"
            )
        return run_evaluator(run, splits=splits, bn=self.bn, changes=changes)


def averaged_by(policy: StatisticsPolicy) -> StoredStatistics:
    """What averaging does with statistics that the evaluator then recomputes or leaves alone."""
    return "latest" if policy == "latest" else "average"


def say_row(row: "Row") -> None:
    """Print one finished row on stderr."""
    from lawa_jax.search.evaluators import describe

    print(f"{row.name}: {describe(row.metrics)}", file=sys.stderr, flush=True)
