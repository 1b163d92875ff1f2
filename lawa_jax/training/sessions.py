"""One session of a training script: start or resume, train, report; or evaluate a run."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from etils import epath

from lawa_jax.averaging.statistics import StatisticsPolicy
from lawa_jax.display import table
from lawa_jax.distributed import together
from lawa_jax.errors import SelectionError
from lawa_jax.report.curves import curves
from lawa_jax.training import resume, run_directory, session_lock
from lawa_jax.training.config import RunConfig, to_json
from lawa_jax.training.lawa import evaluate_ends
from lawa_jax.training.log import JsonLog
from lawa_jax.training.loop import train
from lawa_jax.training.task import Task
from lawa_jax.trajectory import Run


def train_run(
    task: Task,
    config: RunConfig,
    *,
    bn: StatisticsPolicy,
    resuming: bool,
    init_from: str | None,
    title: str,
) -> None:
    """Train to the last epoch and print the report.

    Raises:
      OutputExistsError: a new run where there is one already.
      ConfigError: resuming with a configuration that changes the trajectory.
    """
    run, group = epath.Path(config.run_dir), task.place.group

    def say(text: str) -> None:
        if group.index == 0:
            print(text, file=sys.stderr, flush=True)

    # Before anything is written, so that a mistake changes nothing.
    if resuming:
        run_directory.check_resumable(run, to_json(config), config.changeable)
    else:
        run_directory.check_new(run)
    with session_lock.held(run, group):
        state, position = None, resume.Position()
        if resuming:
            _say_changes(run, config, say)
            restored = resume.restore_newest(run, task, lawa_k=config.lawa_k, say=say)
            if restored is None:
                say(f"{run} has no resume state yet: starting at epoch 1")
            else:
                state, position = restored
                say(f"resuming {run} in epoch {position.epoch} after {position.step} updates")
        was_finished = position.finished_epochs >= config.epochs
        if state is None:
            state = (
                resume.initial_model(init_from, task)
                if init_from
                else task.place.state(task.init())
            )
        if not resuming:
            # Last, so that a mistake above leaves no run behind.
            together(
                group,
                "new run",
                lambda: None if group.index else run_directory.create(run, to_json(config)),
            )
        train(
            task,
            run,
            state,
            position,
            epochs=config.epochs,
            lawa_k=config.lawa_k,
            bn=bn,
            save_every_steps=config.save_every_steps,
            keep_resume=config.keep_resume,
        )
    if group.index:
        return
    # Drawing takes a second to import, which nobody should wait for before training.
    from lawa_jax.report.run_report import described, report

    log = JsonLog(run_directory.log_path(run))
    policy = bn if task.recalibrate is not None else None
    averages = {
        end: row
        for (k, used, end), row in log.by("lawa", "k", "bn", "end").items()
        if k == config.lawa_k and used == policy
    }
    found, folder = curves(log.by("epoch", "epoch"), averages), Path(run) / "report"
    if was_finished and folder.exists():
        print(described(found))
        print(f"the run was finished before, so its report in {folder} is left as it is")
        return
    print(report(found, title, folder))


def _say_changes(run: epath.Path, config: RunConfig, say: Callable[[str], None]) -> None:
    """Name the settings that differ from the run's, but leave its trajectory alone."""
    old, new = run_directory.read_config(run), to_json(config)
    for name in sorted(config.changeable & old.keys() - {"run_dir"}):
        if old[name] != new.get(name):
            say(f"{name} is {new.get(name)!r} in this session; the run began with {old[name]!r}")


def evaluate_run(
    task: Task,
    run: epath.Path,
    *,
    k: int,
    ends: Sequence[int],
    bn: StatisticsPolicy,
    splits: Sequence[str] = ("val",),
    as_json: bool = False,
) -> str:
    """Metrics of averages of an existing run, as a table or as JSON lines.

    Raises:
      SelectionError: `k` < 1, or an end without its `k` checkpoints.
    """
    if k < 1:
        raise SelectionError(f"--lawa_k: expected >= 1 checkpoints to average, found {k}")
    listed = Run(run)
    existing = listed.steps
    chosen = ends or existing[k - 1 :]
    if not chosen:
        raise SelectionError(f"{run}: {len(existing)} checkpoints, fewer than --lawa_k {k}")
    rows = list(evaluate_ends(task, listed, k=k, ends=chosen, bn=bn, splits=splits))
    if as_json:
        return "\n".join(json.dumps(row) for row in rows)
    names = [name for name in rows[0] if name.startswith(tuple(f"{split}/" for split in splits))]
    return table(
        ["end", "k", *names],
        [[str(r["end"]), str(r["k"]), *(f"{r[n]:.6f}" for n in names)] for r in rows],
    )
