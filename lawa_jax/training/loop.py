"""The training loop that both trainers share: train, save, evaluate, average, evaluate.

Update n is dispatched before the metrics of update n-1 are read, so that the device never waits for
the host.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath

from lawa_jax.averaging.statistics import StatisticsPolicy
from lawa_jax.data import Batch
from lawa_jax.errors import LawaError, SelectionError, TrainingFailedError
from lawa_jax.training.interrupt import Agreement, Interrupt
from lawa_jax.training.lawa import evaluate, evaluate_latest
from lawa_jax.training.log import JsonLog
from lawa_jax.training.metrics import MetricSums, Totals
from lawa_jax.training.progress import Progress
from lawa_jax.training.resume import Position, to_tree
from lawa_jax.training.run_directory import log_path
from lawa_jax.training.run_writer import RunWriter
from lawa_jax.training.snapshot import check_savable
from lawa_jax.training.steps import TrainState
from lawa_jax.training.task import Task
from lawa_jax.trajectory import Run
from lawa_jax.tree import named_leaves, spec_of


def train(
    task: Task,
    run: epath.Path,
    state: TrainState,
    position: Position,
    *,
    epochs: int,
    lawa_k: int = 5,
    bn: StatisticsPolicy = "recalibrate",
    save_every_steps: int = 0,
    keep_resume: int = 2,
) -> None:
    """Train from `position` to the end of `epochs`, with LAWA evaluated from epoch `lawa_k` on.

    Args:
      task: the problem.
      run: the run directory, which exists.
      state: train state on the devices; donated.
      position: where it stands.
      epochs: the last epoch.
      lawa_k: number of checkpoints averaged; 0 turns LAWA off.
      bn: what happens to BatchNorm statistics after averaging.
      save_every_steps: also save resume states every so many updates; 0 only at epoch ends.
      keep_resume: resume states kept.

    Raises:
      TreeMismatchError: a leaf that could not be saved.
      TrainingFailedError: a loss that is not finite; the last good checkpoints are kept.
      Terminated: SIGTERM arrived; the state was saved first.
    """
    # Now, not after the first epoch.
    check_savable({n: spec_of(x) for n, x in named_leaves(to_tree(state, position)).items()})
    group = task.place.group
    log = JsonLog(log_path(run), writes=group.index == 0)
    remaining = (epochs - position.finished_epochs) * task.samples_per_epoch - position.samples
    with (
        Interrupt() as interrupt,
        RunWriter(run, keep_resume=keep_resume, group=group) as writer,
        Progress(
            round(remaining * task.units_per_sample), epochs, task.unit, quiet=group.index > 0
        ) as progress,
    ):
        stop = Agreement(interrupt, group)
        _catch_up(task, run, log, position.finished_epochs, lawa_k, bn, progress)
        while position.finished_epochs < epochs:
            epoch, started = position.epoch, time.perf_counter()

            def pause(step: int) -> bool:
                due = save_every_steps > 0 and step % save_every_steps == 0
                return stop.agreed(step) or due

            for reached in _epoch(task, state, position, pause, progress):
                state, position = reached
                if position.samples < task.samples_per_epoch:
                    writer.save_resume(position.step, to_tree(state, position))
                    if stop.requested:
                        writer.wait()
                        stop.now()
            totals = Totals(position.totals).means()
            position = Position(epoch + 1, 0, position.step)
            trained = time.perf_counter() - started
            row: dict[str, Any] = {f"train/{name}": value for name, value in totals.items()}
            row |= {f"val/{n}": v for n, v in evaluate(task, state["model"]).items()}
            evaluated = time.perf_counter() - started - trained
            stalled = writer.stalled
            writer.save_epoch(epoch, state["model"], row)
            writer.save_resume(position.step, to_tree(state, position))
            row |= {
                "learning_rate": task.learning_rate(position.step - 1),
                "seconds": {
                    "train": round(trained, 4),
                    "evaluate": round(evaluated, 4),
                    "save_stall": round(writer.stalled - stalled, 4),
                },
                f"{task.unit}_per_second": round(
                    task.samples_per_epoch * task.units_per_sample / trained, 1
                ),
            }
            log.write("epoch", epoch=epoch, step=position.step, **row)
            progress.epoch(epoch, row)
            if lawa_k and epoch >= lawa_k:
                waited = writer.wait_for_epoch(epoch)
                more = {"waited_for_save": round(waited, 4)}
                _evaluate_lawa(task, run, log, progress, lawa_k, epoch, bn, more)
            if stop.agreed():
                writer.wait()
                stop.now()


def _epoch(
    task: Task,
    state: TrainState,
    position: Position,
    pause: Callable[[int], bool],
    progress: Progress,
) -> Iterator[tuple[TrainState, Position]]:
    """Train the rest of an epoch; yields at its end, and before where `pause(step)` says so.

    At a yield all metrics are read, so that state and position belong together.
    """
    key = jax.random.key(task.seed)
    totals = Totals(position.totals)
    pending: tuple[MetricSums, Position] | None = None
    batches = task.train_batches(position.epoch, position.samples)
    batch = _next(batches, task)
    while batch is not None:
        rate = task.learning_rate(position.step)
        step_key = jax.random.fold_in(key, position.step)
        state, metrics = task.train_step(state, batch, rate, step_key)
        position = position._replace(
            samples=position.samples + task.batch_size, step=position.step + 1
        )
        batch = _next(batches, task)
        if pending is not None:
            _read(*pending, totals, progress, task)
        pending = (metrics, position)
        if batch is None or pause(position.step):
            _read(*pending, totals, progress, task)
            pending = None
            yield state, position._replace(totals=totals.pairs())


def _next(batches: Iterator[Batch], task: Task) -> Batch | None:
    """The next batch, on its way to the devices."""
    batch = next(batches, None)
    return None if batch is None else task.place.batch(batch)


def _read(
    metrics: MetricSums, position: Position, totals: Totals, progress: Progress, task: Task
) -> None:
    """Wait for an update's metrics and count them; a loss that is not finite ends the run."""
    metrics = jax.device_get(metrics)
    loss, count = (float(x) for x in metrics["loss"])
    if not math.isfinite(loss):
        raise TrainingFailedError(
            f"the loss is {loss} at update {position.step} in epoch {position.epoch}; the "
            f"checkpoints up to epoch {position.finished_epochs} are kept. Try a lower learning "
            "rate or warm-up, and --resume goes on from the last good state"
        )
    totals.add(metrics)
    progress.update(
        round(task.batch_size * task.units_per_sample), position.epoch, loss / max(count, 1.0)
    )


def _catch_up(
    task: Task,
    run: epath.Path,
    log: JsonLog,
    finished: int,
    lawa_k: int,
    bn: StatisticsPolicy,
    progress: Progress,
) -> None:
    """Log what a killed run had saved but not yet logged."""
    # One process answers for all: the others might read what it has just written.
    known = [list(log.by("epoch", "epoch")), list(log.by("lawa", "k", "bn", "end"))]
    epochs, rows = task.place.group.exchange("logged", known)[0]
    done = {tuple(row) for row in rows}
    policy = bn if task.recalibrate is not None else None
    saved = Run(run / "epochs")
    for epoch in range(1, finished + 1):
        if epoch not in epochs and epoch in saved.steps:
            log.write("epoch", epoch=epoch, **saved.open(epoch).metrics)
        if lawa_k and epoch >= lawa_k and (lawa_k, policy, epoch) not in done:
            _evaluate_lawa(task, run, log, progress, lawa_k, epoch, bn, {})


def _evaluate_lawa(
    task: Task,
    run: epath.Path,
    log: JsonLog,
    progress: Progress,
    k: int,
    end: int,
    bn: StatisticsPolicy,
    more: Mapping[str, Any],
) -> None:
    """Evaluate an average and log it; what fails here is reported, and training goes on."""
    try:
        lawa = evaluate_latest(task, run, k=k, end=end, bn=bn)
    except SelectionError:
        # Old checkpoints may have been pruned; later windows do not need them.
        return
    except (LawaError, OSError) as error:
        log.write("lawa_failed", k=k, end=end, reason=str(error))
        progress.note(f"   LAWA k={k}, end {end:3d} could not be evaluated: {error}")
        return
    log.write("lawa", **lawa, **more)
    progress.lawa(lawa)
