"""Where checkpoints are: run directories, steps, items, and whether they were committed.

Nothing here needs Orbax. A *root* holds steps (``RUN/epochs`` or ``RUN`` itself), a *step
directory* holds items (``model``, ``metrics``), an *item directory* holds one stored pytree; a
step directory may itself be the only item.
"""

import re
from typing import NamedTuple

from etils import epath

from lawa_jax.errors import CheckpointNotFoundError, SelectionError

TMP_MARKER = ".orbax-checkpoint-tmp"
COMMIT_MARKER = "commit_success.txt"
STEP_METADATA = "_CHECKPOINT_METADATA"
# Any of these makes a directory one stored pytree.
_ITEM_FILES = ("_METADATA", "manifest.ocdbt", "_sharding", "array_metadatas")
_PREFERRED_ITEMS = ("model", "params", "default", "state", "train_state", "pytree")
_STEP_NAME = re.compile(r"^(?:.+_)?([0-9]+)$")


class Located(NamedTuple):
    """One item of one step."""

    item: epath.Path  # the item directory
    step_dir: epath.Path  # where sibling items (metrics, checksums) are; may be the item itself
    step: int | None
    label: str  # "RUN@90"


def is_object_store(path: epath.PathLike) -> bool:
    """Whether `path` is on an object store, where a rename is not atomic (``gs://...``)."""
    return "://" in str(path)


def as_path(path: epath.PathLike) -> epath.Path:
    """A local or object-store path.

    Raises:
      SelectionError: a scheme nobody has taught epath.
    """
    try:
        return epath.Path(path)
    except KeyError:
        raise SelectionError(
            f"{path}: expected a local path or one of gs://, s3://, az://, hf://"
        ) from None


def step_of(name: str) -> int | None:
    """The step a directory name stands for: ``90``, ``000090``, ``checkpoint_90``."""
    if TMP_MARKER in name or name.startswith("."):
        return None
    match = _STEP_NAME.match(name)
    return int(match.group(1)) if match else None


def _directories(path: epath.Path) -> list[epath.Path]:
    return sorted(p for p in path.iterdir() if p.is_dir())


def is_item(path: epath.Path) -> bool:
    """Whether `path` is a directory that holds one stored pytree."""
    if any((path / name).exists() for name in _ITEM_FILES):
        return True
    return any(
        (child / ".zarray").exists() or (child / "zarr.json").exists()
        for child in _directories(path)
    )


def items_of(step_dir: epath.Path) -> list[str]:
    """Names of the pytree items in a step directory, sorted.

    Without Orbax's step metadata, a subdirectory named like a step is one, not an item.
    """
    is_step = (step_dir / STEP_METADATA).exists()
    return [
        p.name
        for p in _directories(step_dir)
        if TMP_MARKER not in p.name and (is_step or step_of(p.name) is None) and is_item(p)
    ]


def is_committed(step_dir: epath.Path) -> bool:
    """Whether a step directory holds a finished checkpoint.

    Local directories get their final name by a rename after everything is written; on object
    stores a marker written last stands for it. An empty directory is no checkpoint.
    """
    if TMP_MARKER in step_dir.name or not step_dir.is_dir():
        return False
    if is_object_store(step_dir) and not (step_dir / COMMIT_MARKER).exists():
        return False
    if (step_dir / STEP_METADATA).exists() or is_item(step_dir):
        return True
    return bool(items_of(step_dir))


def step_directories(root: epath.PathLike) -> dict[int, epath.Path]:
    """Committed steps below `root` (a run, or its ``epochs``), ascending."""
    root = as_path(root)
    for place in (root / "epochs", root):
        if not place.is_dir():
            continue
        found = {}
        for path in _directories(place):
            step = step_of(path.name)
            if step is not None and is_committed(path):
                found[step] = path
        if found:
            return dict(sorted(found.items()))
    return {}


def list_steps(root: epath.PathLike) -> list[int]:
    """Committed steps of a run, ascending.

    Args:
      root: the run directory, or the directory that holds the steps.

    Returns:
      Step numbers; empty if there are none. Temporary and empty directories are not steps.

    Raises:
      CheckpointNotFoundError: `root` is not a directory.
    """
    root = as_path(root)
    if not root.is_dir():
        raise CheckpointNotFoundError(f"{root} is not a directory; give a run directory")
    return list(step_directories(root))


def _run_label(root: epath.Path, step: int | None) -> str:
    name = str(root.parent if root.name == "epochs" else root)
    return name if step is None else f"{name}@{step}"


def _choose_item(step_dir: epath.Path, item: str | None, label: str) -> epath.Path:
    available = items_of(step_dir)
    if item is not None:
        if item in available:
            return step_dir / item
        raise SelectionError(
            f"{label} has no item {item!r}; it holds {', '.join(available) or 'no pytree item'}"
        )
    if is_item(step_dir):
        return step_dir
    for name in _PREFERRED_ITEMS:
        if name in available:
            return step_dir / name
    if len(available) == 1:
        return step_dir / available[0]
    if not available:
        raise CheckpointNotFoundError(f"{label}: {step_dir} holds no stored pytree")
    raise SelectionError(f"{label} holds several items ({', '.join(available)}); name one (--item)")


def _shorten(steps: list[int]) -> str:
    text = ", ".join(map(str, steps[:6]))
    return text if len(steps) <= 6 else f"{text}, ..., {steps[-1]} ({len(steps)} in all)"


def _msgpack_hint(path: epath.Path) -> str:
    names = [p.name for p in path.iterdir()]
    if not any(name.endswith(".msgpack") or name.startswith("checkpoint") for name in names):
        return ""
    return (
        "; if it holds Flax msgpack files, restore them with flax.training.checkpoints and save "
        "them with Orbax"
    )


def locate(path: epath.PathLike, step: int | None = None, item: str | None = None) -> Located:
    """Find one item of one step from a root, step or item directory.

    Args:
      path: the directory.
      step: which step of a root; the newest committed one if not given.
      item: which item of the step; see `_choose_item` for the default.

    Raises:
      CheckpointNotFoundError: nothing there, or not that step; lists those that are.
      SelectionError: no such item, or several and none named.
    """
    path = as_path(path)
    if not path.is_dir():
        raise CheckpointNotFoundError(f"{path} is not a directory; give a run, step or item")
    if TMP_MARKER in str(path.name):
        raise CheckpointNotFoundError(
            f"{path} is a save that never finished ({TMP_MARKER}); choose a committed step"
        )
    if step is None and is_committed(path):
        in_step = (path.parent / STEP_METADATA).exists()
        parent_step = step_of(path.parent.name) if in_step else None
        own_step = step_of(path.name)
        if own_step is None and parent_step is not None and item is None and is_item(path):
            label = _run_label(path.parent.parent, parent_step)
            return Located(path, path.parent, parent_step, label)
        label = str(path) if own_step is None else _run_label(path.parent, own_step)
        return Located(_choose_item(path, item, label), path, own_step, label)
    steps = step_directories(path)
    if not steps:
        empty = " (or its commit marker is missing)" if is_object_store(path) else ""
        raise CheckpointNotFoundError(
            f"{path} holds no committed checkpoint{empty}{_msgpack_hint(path)}"
        )
    if step is None:
        step = max(steps)
    if step not in steps:
        raise CheckpointNotFoundError(
            f"{path} has no committed step {step}; it has {_shorten(list(steps))}"
        )
    label = _run_label(path, step)
    return Located(_choose_item(steps[step], item, label), steps[step], step, label)


def parse_address(text: str) -> tuple[str, int | None]:
    """``RUN@90`` is step 90 of RUN, ``RUN`` all of it.

    Raises:
      SelectionError: what follows the last ``@`` is no step number, and no such path exists.
    """
    path, at, step = text.rpartition("@")
    if not at:
        return text, None
    if path and step.isascii() and step.isdigit():
        return path, int(step)
    if "@" in step or "/" in step or epath.Path(text).exists():
        return text, None
    raise SelectionError(f"{text!r}: expected RUN@STEP with a whole number, found step {step!r}")
