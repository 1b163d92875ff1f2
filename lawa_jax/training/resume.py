"""Where a run stands, and going on from there."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lawa_jax.averaging import window
from lawa_jax.errors import CheckpointNotFoundError, ConfigError, CorruptCheckpointError
from lawa_jax.training.lawa import read_placed, read_verified
from lawa_jax.training.optim import current_name
from lawa_jax.training.steps import TrainState
from lawa_jax.training.task import Task
from lawa_jax.trajectory import Run, list_steps, open_checkpoint, parse_address
from lawa_jax.tree import PyTree, named_leaves, spec_of


class Position(NamedTuple):
    """A point of a run.

    Attributes:
      epoch: the epoch under way, from 1.
      samples: samples of that epoch already seen.
      step: updates done since the start.
      totals: training metrics of that epoch so far, as (sum, count).
    """

    epoch: int = 1
    samples: int = 0
    step: int = 0
    totals: Mapping[str, tuple[float, float]] = MappingProxyType({})

    @property
    def finished_epochs(self) -> int:
        """Epochs whose models are saved."""
        return self.epoch - 1


def to_tree(state: TrainState, position: Position) -> PyTree:
    """A train state and its position as one tree to be saved."""
    numbers = {
        "epoch": np.int64(position.epoch),
        "samples": np.int64(position.samples),
        "step": np.int64(position.step),
        "totals": {n: np.asarray(pair, np.float64) for n, pair in position.totals.items()},
    }
    return {"state": state, "position": numbers}


def restore_newest(
    run: epath.Path, task: Task, *, lawa_k: int, say: Callable[[str], None]
) -> tuple[TrainState, Position] | None:
    """The newest usable train state and its position; None before the first resume state.

    A resume state is usable if it is undamaged and the models are there that the next windows of
    `lawa_k` epochs reach back to.

    Args:
      run: the run directory.
      task: the problem.
      lawa_k: number of checkpoints averaged; 0 needs the newest model alone.
      say: told about states that are passed over.

    Raises:
      CheckpointNotFoundError: epochs or resume states were saved, but none can be gone on from;
        names what is missing and what is there.
      ConfigError: the state is another model's or optimizer's.
    """
    group = task.place.group
    # One process looks for all: another might see a directory that is being removed.
    found = _states(run, max(1, lawa_k)) if group.index == 0 else None
    epochs, states = group.exchange("resume at", found)[0]
    problems: list[str] = []
    for step, problem in states:
        try:
            restored = None if problem else _restore(run, step, task)
        except CorruptCheckpointError as error:
            problem, restored = f"resume state {step} is damaged ({error})", None
        if restored is not None:
            for each in problems:
                say(f"note: {each}")
            return restored
        problems.append(problem)
    if not states and epochs in ([], [1]):
        # A session that was killed just after its first model has not got further.
        if epochs:
            say("note: epoch 1 was saved, but no resume state after it; it is trained again")
        return None
    newest = f"{run}@{epochs[-1]}" if epochs else "ANOTHER_RUN"
    raise CheckpointNotFoundError(
        f"{run} cannot be resumed: {'; '.join(problems) or 'it holds no resume state'}. Its models "
        f"are of epochs {window.describe(epochs)}; nothing was changed. Restore what is missing "
        "from a copy, resume with a smaller --lawa_k where models are missing, or start a new run "
        f"from the weights with --init_from {newest}"
    )


def _states(run: epath.Path, needed: int) -> tuple[list[int], list[tuple[int, str]]]:
    """Epochs whose models are there; resume states, newest first, each with what speaks against it.

    Args:
      run: the run directory.
      needed: how many of the latest finished epochs later windows reach back to.
    """
    epochs = list_steps(run / "epochs") if (run / "epochs").exists() else []
    if not (run / "resume").exists():
        return epochs, []
    states = Run(run / "resume")
    return epochs, [(s, _problem(states, s, epochs, needed)) for s in reversed(states.steps)]


def _problem(states: Run, step: int, epochs: Sequence[int], needed: int) -> str:
    """Why a run cannot go on from a resume state, as far as its position tells; "" if it can."""
    try:
        finished = int(_position_of(states, step)["epoch"]) - 1
    except CorruptCheckpointError as error:
        return f"resume state {step} is damaged ({error})"
    wanted = range(max(1, finished - needed + 1), finished + 1)
    missing = [epoch for epoch in wanted if epoch not in epochs]
    if not missing:
        return ""
    return (
        f"resume state {step} goes on after epoch {finished} and needs the models of epochs "
        f"{window.describe(wanted)}, of which {window.describe(missing)} "
        f"{'is' if len(missing) == 1 else 'are'} missing"
    )


def _position_of(states: Run, step: int) -> dict[str, Any]:
    position: dict[str, Any] = read_verified(states.open(step, include=("position",)))["position"]
    return position


def _restore(run: epath.Path, step: int, task: Task) -> tuple[TrainState, Position]:
    """The train state and position saved at `step`."""
    states = Run(run / "resume")
    stored = _position_of(states, step)
    checkpoint = states.open(step, include=("state",))
    position = Position(
        int(stored["epoch"]),
        int(stored["samples"]),
        int(stored["step"]),
        {n: (float(p[0]), float(p[1])) for n, p in named_leaves(stored.get("totals", {})).items()},
    )
    placed = read_placed(checkpoint, task.place)["state"]
    return fill(task.init(), placed, checkpoint.label), position


def fill(template: PyTree, stored: PyTree, label: str) -> PyTree:
    """`stored` leaves in the containers of `template`, paired by name.

    Raises:
      ConfigError: a leaf is missing, left over, or of another shape or dtype.
    """
    leaves = {current_name(name): leaf for name, leaf in named_leaves(stored).items()}
    wanted = named_leaves(template)
    odd: Sequence[Any] = sorted(leaves.keys() ^ wanted.keys())
    if odd:
        side = "is missing" if odd[0] in wanted else "is not expected"
        raise ConfigError(
            f"{label}: leaf {odd[0]!r} {side} ({len(odd)} such leaves); it was saved by another "
            "model or optimizer"
        )
    for name, leaf in wanted.items():
        if spec_of(leaf) != spec_of(leaves[name]):
            raise ConfigError(
                f"{label}: leaf {name!r}: expected {spec_of(leaf)}, found {spec_of(leaves[name])}"
            )
    return jax.tree.unflatten(jax.tree.structure(template), [leaves[name] for name in wanted])


def initial_model(path: str, task: Task) -> TrainState:
    """A fresh train state whose model is that of a checkpoint, an average included.

    Args:
      path: run, step or item directory, or ``RUN@step``.

    Raises:
      CheckpointNotFoundError, ConfigError: no checkpoint, or one of another model.
    """
    source, step = parse_address(path)
    checkpoint = open_checkpoint(source, step=step)
    state = task.init()
    try:
        model = fill(state["model"], read_verified(checkpoint), checkpoint.label)
    except ConfigError as error:
        raise ConfigError(f"--init_from {path}: {error}") from error
    if not model:
        raise CheckpointNotFoundError(f"--init_from {path}: the checkpoint holds no parameters")
    return task.place.state({**state, "model": jax.tree.map(jnp.asarray, model)})
