"""One session of a training script: start or resume, train, report; or evaluate a run."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from lawa_jax.averaging.statistics import StatisticsPolicy
from lawa_jax.display import table
from lawa_jax.distributed import together
from lawa_jax.errors import SelectionError
from lawa_jax.report.curves import curves
from lawa_jax.training import resume as resume_
from lawa_jax.training import run_directory, session_lock
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
    resume: bool,
    init_from: str | None,
    title: str,
) -> None:
    """Train to the last epoch and print the report.

    Raises:
      OutputExistsError: a new run where there is one already.
      ConfigError: resuming with a configuration that changes the trajectory.
    """
    run, group = epath.Path(config.run_dir), task.place.group
    # Before anything is written, so that a mistake changes nothing.
    if resume:
        run_directory.check_resumable(run, to_json(config), config.changeable)
    else:
        run_directory.check_new(run)
    with session_lock.held(run, group):
        state, position = None, resume_.Position()
        if resume:
            step = group.exchange(
                "resume at", resume_.newest(run, epochs_needed=max(1, config.lawa_k))
            )[0]
            if step is not None:
                state, position = resume_.restore(run, step, task)
                say = print if group.index == 0 else lambda *args, **kw: None
                say(
                    f"resuming {run} in epoch {position.epoch} after {position.step} updates",
                    file=sys.stderr,
                )
        if state is None:
            state = (
                resume_.initial_model(init_from, task)
                if init_from
                else task.place.state(task.init())
            )
        if not resume:
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
    from lawa_jax.report.run_report import report

    log = JsonLog(run_directory.log_path(run))
    policy = bn if task.recalibrate is not None else None
    averages = {
        end: row
        for (k, used, end), row in log.by("lawa", "k", "bn", "end").items()
        if k == config.lawa_k and used == policy
    }
    print(report(curves(log.by("epoch", "epoch"), averages), title, Path(run) / "report"))


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
    chosen = ends or [e for e in existing if existing.index(e) >= k - 1]
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
