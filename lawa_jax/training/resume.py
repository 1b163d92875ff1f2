"""Where a run stands, and going on from there."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lawa_jax.errors import CheckpointNotFoundError, ConfigError
from lawa_jax.training.lawa import read_placed, read_verified
from lawa_jax.training.optim import current_name
from lawa_jax.training.steps import TrainState
from lawa_jax.training.task import Task
from lawa_jax.trajectory import list_steps, open_checkpoint, parse_address
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


def newest(run: epath.Path, *, epochs_needed: int = 1) -> int | None:
    """The newest committed resume state whose epochs exist; None where there is none.

    Args:
      run: the run directory.
      epochs_needed: how many of the latest finished epochs later windows reach back to.
    """
    if not (run / "resume").exists() or not (run / "epochs").exists():
        return None
    epochs = set(list_steps(run / "epochs"))
    for step in reversed(list_steps(run / "resume")):
        checkpoint = open_checkpoint(run / "resume", step=step, include=("position/epoch",))
        finished = int(checkpoint.read_leaf("position/epoch")) - 1
        needed = range(max(1, finished - epochs_needed + 1), finished + 1)
        if epochs.issuperset(needed):
            return step
    return None


def restore(run: epath.Path, step: int, task: Task) -> tuple[TrainState, Position]:
    """The train state and position saved at `step`.

    Raises:
      ConfigError: the state is another model's or optimizer's.
    """
    where = run / "resume"
    stored = read_verified(open_checkpoint(where, step=step, include=("position",)))["position"]
    checkpoint = open_checkpoint(where, step=step, include=("state",))
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
