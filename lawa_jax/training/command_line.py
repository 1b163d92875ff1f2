"""The command line that both training scripts share: a typed configuration and a few actions."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Generic

import tyro
from etils import epath

from lawa_jax.distributed import Group, initialize
from lawa_jax.errors import ConfigError
from lawa_jax.training import run_directory
from lawa_jax.training.config import Config, RunConfig, from_file, from_json, to_json


@dataclasses.dataclass(frozen=True)
class Actions:
    """The options that do something other than plain training."""

    config: str | None = None
    """A Python file that defines `config`; flags override its values."""
    resume: bool = False
    """Continue exactly where the run in run_dir stopped."""
    evaluate: str | None = None
    """Evaluate averages of this run instead of training."""
    end: tuple[int, ...] = ()
    """With --evaluate: the epochs at which the averages end. By default all possible ones are
    used."""
    splits: tuple[str, ...] = ("val",)
    """With --evaluate: the parts of the data to evaluate on, out of train, val and test."""
    eval_train: bool = False
    """With --evaluate: also evaluate on the training data, prepared as for evaluation."""
    init_from: str | None = None
    """Start from the weights of this checkpoint: a run, a step of it (RUN@30), or an average."""
    dummy: bool = False
    """Use synthetic data of the real shapes."""
    deterministic: bool = False
    """Use bit-reproducible operations on a GPU, at some cost in speed. A CPU always uses them."""
    compile_cache: str | None = None
    """Keep compiled programs in this directory, so that the next start does not compile them
    again."""
    json: bool = False
    """With --evaluate: print JSON lines instead of a table."""
    plan: str | None = None
    """Compile the steps for this TPU slice, such as v5e:16x16, without having one, and print what
    they need."""
    coordinator: str | None = None
    """HOST:PORT of process 0, if no launcher (TPU pod, SLURM, GKE, Open MPI) provides it."""
    process_count: int | None = None
    """With --coordinator: the number of processes."""
    process_index: int | None = None
    """With --coordinator: the number of this process, counted from 0."""
    peer_timeout: float = 60.0
    """The seconds without a sign of life after which a process counts as dead and the others
    stop."""

    def join(self, config: RunConfig | None = None) -> Group:
        """Join the other processes, if there are any; before any device is used.

        Raises:
          ConfigError: the others run with another configuration or other actions.
        """
        own = {"coordinator", "process_count", "process_index", "compile_cache", "config"}
        actions = {k: v for k, v in dataclasses.asdict(self).items() if k not in own}
        return initialize(
            self.coordinator,
            self.process_count,
            self.process_index,
            peer_timeout=self.peer_timeout,
            arguments=actions | (to_json(config) if config is not None else {}),
            advice=" with --resume, on as many hosts as there are",
        )


@dataclasses.dataclass(frozen=True)
class Arguments(Generic[Config]):
    """A parsed command line: the resolved configuration and the actions."""

    run: Config
    actions: Actions


def parse(
    kind: type[Config], default_name: str, description: str, argv: Sequence[str]
) -> "Arguments[Config]":
    """Parse `argv`: defaults, then the config file or the run's config.json, then flags.

    Args:
      kind: the configuration class.
      default_name: names the run directory where no config file does.
      description: for ``--help``.
      argv: without the program's name.

    Raises:
      ConfigError: contradictory actions, or values that make no sense.
      SystemExit: with code 2 for unknown flags, as tyro does.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "evaluate", "run_dir"):
        peek.add_argument(f"--{name}", f"--{name.replace('_', '-')}", default=None)
    peek.add_argument("--resume", action="store_true")
    early, _ = peek.parse_known_args(argv)
    base = _base(kind, early.config, early.evaluate or (early.resume and early.run_dir) or None)
    line = tyro.cli(
        _line_type(kind),
        args=list(argv),
        default=_line_type(kind)(run=base, actions=Actions()),
        description=description,
        use_underscores=True,
    )
    run, actions = line.run, line.actions
    _check_actions(actions)
    if actions.evaluate is not None:
        for name in sorted(kind.no_effect_on_evaluation):
            if getattr(run, name) != getattr(base, name):
                raise ConfigError(
                    f"--{name}: evaluation does not depend on it; leave it out (--eval_{name}, if "
                    "its masks are meant)"
                )
    if actions.eval_train and "train" not in actions.splits:
        actions = dataclasses.replace(actions, splits=(*actions.splits, "train"))
    if not run.run_dir:
        name = Path(actions.config).stem if actions.config else default_name
        run = dataclasses.replace(run, run_dir=str(Path("runs") / f"{name}-seed{run.seed}"))
    run.check()
    return Arguments(run, actions)


def _line_type(kind: type[RunConfig]) -> type:
    return dataclasses.make_dataclass(
        "CommandLine",
        [
            ("run", Annotated[kind, tyro.conf.arg(name="")]),
            ("actions", Annotated[Actions, tyro.conf.arg(name="")]),
        ],
        frozen=True,
    )


def _base(kind: type[Config], config: str | None, run: str | None) -> Config:
    """Values that flags override: of the config file, of a run, or the defaults."""
    if config is not None:
        return from_file(config, kind)
    if run is not None:
        stored = run_directory.read_config(epath.Path(run))
        if "source" in stored:
            # A converted run: of all fields only its architecture is known.
            known = {field.name for field in dataclasses.fields(kind)}
            stored = {k: v for k, v in stored.get("model", {}).items() if k in known}
        base = from_json(stored, kind, str(epath.Path(run) / run_directory.CONFIG))
        return dataclasses.replace(base, run_dir=run)
    return kind()


def _check_actions(actions: Actions) -> None:
    if actions.evaluate is not None:
        for name in ("resume", "init_from", "config"):
            if getattr(actions, name):
                raise ConfigError(
                    f"--evaluate takes everything from the run itself; leave --{name} out"
                )
    elif actions.end or actions.json or actions.eval_train:
        raise ConfigError("--end, --json and --eval_train go with --evaluate RUN")
    if actions.plan is not None:
        for name in ("resume", "evaluate", "init_from", "coordinator"):
            if getattr(actions, name):
                raise ConfigError(f"--plan only compiles; leave --{name} out")
    if actions.resume and actions.init_from:
        raise ConfigError("--resume and --init_from contradict each other; choose one")
