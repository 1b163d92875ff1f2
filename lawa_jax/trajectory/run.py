"""A run: its directory listed once, each of its checkpoints opened once.

A *root* holds steps (``RUN/epochs`` or ``RUN`` itself), a *step directory* holds items (``model``,
``metrics``), an *item directory* holds one stored pytree; a step directory may itself be the only
item. A run can be given as any of the three.
"""

import functools
import os
from collections.abc import Iterable
from typing import Any, NamedTuple

from etils import epath

from lawa_jax.errors import CheckpointNotFoundError, SelectionError
from lawa_jax.trajectory import storage
from lawa_jax.trajectory.checkpoint import Checkpoint, Located, metrics_of
from lawa_jax.trajectory.checksums import STEP_METADATA
from lawa_jax.trajectory.selection import is_trainer_name
from lawa_jax.trajectory.step_names import parse_address, prefix_of, step_of
from lawa_jax.trajectory.storage import COMMIT_MARKER, TMP_MARKER

RECORD = "record"
"""The item that says of what checkpoints an average of ours was made."""
# Any of these makes a directory one stored pytree.
_ITEM_FILES = ("_METADATA", "manifest.ocdbt", "_sharding", "array_metadatas")
_PREFERRED_ITEMS = ("model", "params", "default", "state", "train_state", "pytree")


class StepDirectory(NamedTuple):
    """One committed step of a run."""

    step: int
    path: epath.Path
    is_average: bool  # written by this package from other checkpoints: no part of a trajectory


class Run:
    """A directory of checkpoints.

    Everything is found out when it is first asked for, and remembered: what another process saves
    meanwhile is not seen.

    Args:
      path: a run, a directory of steps, or a step or item directory.

    Raises:
      CheckpointNotFoundError: `path` is no directory, or an unfinished save.
    """

    def __init__(self, path: epath.PathLike) -> None:
        self.path = storage.as_path(path)
        self._listing = storage.Listing()
        self._opened: dict[Any, Checkpoint] = {}
        self._items: dict[str, bool] = {}
        self._steps: dict[int, list[StepDirectory]] | None = None
        self._unreadable: dict[int, str] = {}
        self._averages: list[epath.Path] = []
        if TMP_MARKER in self.path.name:
            raise CheckpointNotFoundError(
                f"{self.path} is a save that never finished ({TMP_MARKER}); choose a committed step"
            )
        try:
            self._listing.entries(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointNotFoundError(
                f"{self.path} is not a directory; give a run, step or item"
            ) from None

    @classmethod
    def of(cls, run: "epath.PathLike | Run") -> "Run":
        """The run at a path; a `Run` itself, which is not listed again."""
        return run if isinstance(run, Run) else cls(run)

    @property
    def steps(self) -> list[int]:
        """Committed steps, ascending; temporary and empty directories and averages are none."""
        return list(self._by_number())

    def _by_number(self) -> dict[int, list[StepDirectory]]:
        if self._steps is None:
            self._steps = {}
            for place in (self.path / "epochs", self.path):
                if place != self.path and not self._listing.entries(self.path).get("epochs"):
                    continue
                self._steps = self._steps_in(place)
                if self._steps:
                    break
        return self._steps

    def _steps_in(self, place: epath.Path) -> dict[int, list[StepDirectory]]:
        found: dict[int, list[StepDirectory]] = {}
        for name in self._listing.directories(place):
            step, is_average = step_of(name), False
            if step is None:
                continue
            try:
                if not self._is_committed(place / name):
                    continue
                is_average = RECORD in self._listing.entries(place / name)
            except OSError as error:
                # It may well be a checkpoint; others do not need it.
                self._unreadable[step] = f"{place / name} cannot be read: {error.strerror or error}"
            found.setdefault(step, []).append(StepDirectory(step, place / name, is_average))
        trained = {
            step: [d for d in directories if not d.is_average]
            for step, directories in found.items()
            if not all(d.is_average for d in directories)
        }
        if not trained:
            # A directory of nothing but averages is a trajectory of them.
            return dict(sorted(found.items()))
        every = (d for directories in found.values() for d in directories)
        self._averages = [d.path for d in every if d.is_average]
        return dict(sorted(trained.items()))

    @property
    def averages(self) -> list[epath.Path]:
        """Averages of ours beside the steps: they are checkpoints, but no steps of the run."""
        self._by_number()
        return self._averages

    def directory(self, step: int) -> epath.Path:
        """The directory of a step.

        Raises:
          CheckpointNotFoundError: there is no such step; lists those there are.
          SelectionError: it is doubtful which directory is meant, see `doubts`.
        """
        steps = self._by_number()
        if step not in steps:
            raise CheckpointNotFoundError(
                f"{self.path} has no committed step {step}; it has {_shorten(list(steps))}"
            )
        if step in self.doubts:
            raise SelectionError(self.doubts[step])
        return steps[step][0].path

    @functools.cached_property
    def doubts(self) -> dict[int, str]:
        """Steps for which two directories stand, or one named unlike most: why each is in doubt.

        An average or a copy (``best_5``) beside the epochs would otherwise take the place of one.
        """
        steps = self._by_number()
        names = [d.path.name for directories in steps.values() for d in directories]
        prefixes = [prefix_of(name) for name in names]
        usual = max(prefixes, key=prefixes.count, default="")
        doubts = {}
        for step, directories in steps.items():
            named = ", ".join(d.path.name for d in directories)
            if len(directories) > 1:
                doubts[step] = f"{self.path}: step {step} is there more than once ({named})"
            elif prefix_of(directories[0].path.name) != usual:
                other = next(name for name in names if prefix_of(name) == usual)
                doubts[step] = (
                    f"{self.path}: step {step} is in {named}, while others are named like {other}"
                )
        return {
            step: f"{text}; move aside what is no step of this run, or name checkpoints by path"
            for step, text in doubts.items()
        } | self._unreadable

    def open(
        self,
        step: int | None = None,
        *,
        item: str | None = None,
        include: Iterable[str] = (),
        exclude: Iterable[str] = (),
        in_place: bool = True,
    ) -> Checkpoint:
        """The checkpoint of a step; of what the path itself is, or else of the newest step.

        Args:
          step: which step.
          item: the item of a step; by default ``model``, ``params``, ``default``, ``state`` or the
            only one.
          include: patterns of leaf names (``params/*``); by default parameters and batch statistics
            where names tell, never optimizer state (`Checkpoint.selection` says what was chosen).
          exclude: patterns of leaf names to leave out.
          in_place: read uncompressed chunks without TensorStore, which gives the same bits faster.

        Raises:
          CheckpointNotFoundError: no checkpoint there, or no such step.
          SelectionError: no such item, or a pattern matches nothing.
          CorruptCheckpointError: its metadata are missing or damaged.
        """
        key = (step, item, tuple(include), tuple(exclude), in_place)
        if key not in self._opened:
            located = self._locate(step, item)
            self._opened[key] = Checkpoint(located, key[2], key[3], in_place=in_place)
        return self._opened[key]

    def items(self, step_dir: epath.Path) -> list[str]:
        """Names of the pytree items in a step directory, sorted.

        Without Orbax's step metadata, a subdirectory named like a step is one, not an item.
        """
        is_step = STEP_METADATA in self._listing.entries(step_dir)
        return [
            name
            for name in self._listing.directories(step_dir)
            if TMP_MARKER not in name
            and (is_step or step_of(name) is None)
            and self._is_item(step_dir / name)
        ]

    def metrics(self, step: int) -> dict[str, float]:
        """Numbers saved beside a step, without opening its tree; {} if none were."""
        return metrics_of(self.directory(step))

    def _is_item(self, path: epath.Path) -> bool:
        """Whether `path` is a directory that holds one stored pytree."""
        key = os.fspath(path)
        if key not in self._items:
            self._items[key] = any((path / name).exists() for name in _ITEM_FILES) or any(
                (path / name / header).exists()
                for name in self._listing.directories(path)
                for header in (".zarray", "zarr.json")
            )
        return self._items[key]

    def _is_committed(self, path: epath.Path) -> bool:
        """Whether a step directory holds a finished checkpoint.

        Local directories get their final name by a rename after everything is written; on object
        stores a marker written last stands for it. An empty directory is no checkpoint.
        """
        names = self._listing.entries(path)
        if storage.is_object_store(path) and COMMIT_MARKER not in names:
            return False
        return STEP_METADATA in names or self._is_item(path) or bool(self.items(path))

    def _locate(self, step: int | None, item: str | None) -> Located:
        path = self.path
        if step is None and self._is_committed(path):
            in_step = (path.parent / STEP_METADATA).exists()
            parent_step = step_of(path.parent.name) if in_step else None
            own_step = step_of(path.name)
            if in_step and item is None and self._is_item(path):
                at = path.parent.parent
                label = str(path) if parent_step is None else _label(at, parent_step)
                return Located(path, path.parent, parent_step, label)
            label = str(path) if own_step is None else _label(path.parent, own_step)
            return Located(self._choose_item(path, item, label), path, own_step, label)
        steps = self.steps
        if not steps:
            empty = " (or its commit marker is missing)" if storage.is_object_store(path) else ""
            raise CheckpointNotFoundError(
                f"{path} holds no committed checkpoint{empty}{self._msgpack_hint()}"
            )
        if step is None:
            step = steps[-1]
        directory = self.directory(step)
        label = _label(path, step)
        return Located(self._choose_item(directory, item, label), directory, step, label)

    def _choose_item(self, step_dir: epath.Path, item: str | None, label: str) -> epath.Path:
        if item is None and self._is_item(step_dir):
            return step_dir
        available = self.items(step_dir)
        if item is not None:
            if item in available:
                return step_dir / item
            raise SelectionError(
                f"{label} has no item {item!r}; it holds {', '.join(available) or 'no pytree item'}"
            )
        for name in _PREFERRED_ITEMS:
            if name in available:
                return step_dir / name
        models = [name for name in available if not is_trainer_name(name)]
        if len(models) == 1 or len(available) == 1:
            return step_dir / (models or available)[0]
        if not available:
            raise CheckpointNotFoundError(f"{label}: {step_dir} holds no stored pytree")
        raise SelectionError(
            f"{label} holds several items ({', '.join(available)}); name one (--item)"
        )

    def _msgpack_hint(self) -> str:
        names = self._listing.entries(self.path)
        if not any(name.endswith(".msgpack") or name.startswith("checkpoint") for name in names):
            return ""
        return (
            "; if it holds Flax msgpack files, restore them with flax.training.checkpoints and "
            "save them with Orbax"
        )


class Runs:
    """The runs that a command reads, by path: each is listed once, whoever asks for it."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}

    def run(self, path: "epath.PathLike | Run") -> Run:
        """The run at a path."""
        if isinstance(path, Run):
            return self._runs.setdefault(os.fspath(path.path), path)
        key = os.fspath(path)
        if key not in self._runs:
            self._runs[key] = Run(path)
        return self._runs[key]

    def open(self, address: str, **selection: Any) -> Checkpoint:
        """Open ``RUN@90``, or a path that is a checkpoint (or a run, whose newest is meant).

        The keywords are those of `Run.open`.
        """
        path, step = parse_address(address)
        return self.run(path).open(step, **selection)


def list_steps(root: epath.PathLike) -> list[int]:
    """Committed steps of a run, ascending; see `Run.steps`.

    Raises:
      CheckpointNotFoundError: `root` is not a directory.
    """
    return Run(root).steps


def open_checkpoint(
    path: epath.PathLike,
    *,
    step: int | None = None,
    item: str | None = None,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    in_place: bool = True,
) -> Checkpoint:
    """Open one checkpoint from its metadata; see `Run.open`. To open several, keep the `Run`."""
    return Run(path).open(step, item=item, include=include, exclude=exclude, in_place=in_place)


def _label(root: epath.Path, step: int) -> str:
    return f"{root.parent if root.name == 'epochs' else root}@{step}"


def _shorten(steps: list[int]) -> str:
    text = ", ".join(map(str, steps[:6]))
    return text if len(steps) <= 6 else f"{text}, ..., {steps[-1]} ({len(steps)} in all)"
