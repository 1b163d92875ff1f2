"""Which file is which epoch: from names, or from the content where names do not tell."""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lawa_jax.errors import CheckpointNotFoundError, LawaError, SelectionError
from lawa_jax.trajectory.formats.huggingface import SUFFIXES, is_checkpoint_directory

_WORDS = r"checkpoint|ckpt|epoch|step|iter|iteration|global_step|model|weights|save|ep|e"
# "checkpoint_3_1000": a save in mid-epoch, after 1000 updates.
_MID_EPOCH = re.compile(r"^checkpoint_(\d+)_(\d+)$")
_EPOCH_WORD = re.compile(r"(?:^|[-_.])(?:epoch|ep)[-_=]?(\d+)(?![0-9])", re.IGNORECASE)
_TRAILING = re.compile(rf"(?:^|[-_.=])(?:{_WORDS})?s?[-_=.]?(\d+)$", re.IGNORECASE)
_MOST_EPOCHS = 10_000_000
_SHARD = re.compile(r"-\d+-of-\d+$")


class NumberedFile(NamedTuple):
    """One checkpoint of a trajectory."""

    epoch: int
    path: Path


@dataclass(frozen=True)
class FoundFiles:
    """What a folder holds.

    Attributes:
      checkpoints: one an epoch, ascending.
      ignored: files that are no checkpoints of the trajectory, each with the reason.
      missing: epochs between the first and the last that no file has.
    """

    checkpoints: tuple[NumberedFile, ...]
    ignored: tuple[str, ...]
    missing: tuple[int, ...]


def epoch_in_name(name: str) -> int | None:
    """The epoch (or step) that a file name tells; None if it tells none.

    Example: 12 for ``checkpoint12.pt``, 3 for ``epoch_3.pth`` and ``epoch=3-step=900.ckpt``, 1000
    for ``step1000``; None for ``checkpoint_best.pt``, a shard, or ``resnet20-12fca82f.th``.
    """
    stem = _stem(name)
    if _SHARD.search(stem) or _MID_EPOCH.match(stem):
        return None
    found = _EPOCH_WORD.search(stem) or _TRAILING.search(stem)
    return int(found.group(1)) if found else None


def _stem(name: str) -> str:
    """The name without suffixes, of which ``model_best.pth.tar`` has two."""
    while Path(name).suffix in SUFFIXES:
        name = Path(name).stem
    return name


def parse_epochs(text: str) -> tuple[int, int]:
    """``26:90`` is 26 to 90, both included; ``30`` that epoch alone; ``26:`` and ``:90`` are open.

    Raises:
      SelectionError: it is none of these.
    """
    found = re.fullmatch(r"(\d*)(:?)(\d*)", text.strip())
    if not found or not text.strip(" :"):
        raise SelectionError(f"--epochs {text!r}: expected FIRST:LAST, for instance 26:90")
    first, colon, last = found.groups()
    low = int(first or 0)
    high = int(last) if last else (1 << 62 if colon else low)
    if low > high:
        raise SelectionError(f"--epochs {text!r}: {low} is after {high}")
    return low, high


def discover(
    source: Path,
    *,
    epochs: tuple[int, int] | None = None,
    every: int = 1,
    facts: Callable[[Path], dict[str, Any]],
) -> FoundFiles:
    """Find the checkpoints of a trajectory.

    Args:
      source: a folder of checkpoints, or a single one.
      epochs: first and last to take, both included.
      every: take every so many-th of these, counted from the first.
      facts: opens a file and tells what it says about itself; asked only where a name tells no
        epoch.

    Raises:
      CheckpointNotFoundError: there are none.
      SelectionError: two files have the same epoch, or a bound of `epochs` lies outside.
    """
    if every < 1:
        raise SelectionError(f"--every: expected >= 1, found {every}")
    if not source.exists():
        raise CheckpointNotFoundError(f"{source}: no such file or folder")
    candidates, ignored = _candidates(source)
    by_epoch: dict[int, Path] = {}
    unnamed: list[Path] = []
    for path in candidates:
        epoch = epoch_in_name(path.name)
        if epoch is None:
            unnamed.append(path)
        elif epoch in by_epoch:
            raise SelectionError(
                f"epoch {epoch} is there twice: {by_epoch[epoch].name} and {path.name}; move one "
                "away"
            )
        else:
            by_epoch[epoch] = path
    ignored += _place_unnamed(unnamed, by_epoch, facts, alone=len(candidates) == 1)
    if not by_epoch:
        why = f" ({'; '.join(ignored[:3])})" if ignored else ""
        raise CheckpointNotFoundError(
            f"{source}: no checkpoints in it{why}; expected names such as checkpoint12.pt, "
            f"epoch_3.pth, model-00012.safetensors or step1000/"
        )
    return _selected(by_epoch, tuple(ignored), epochs, every, source)


def _candidates(source: Path) -> tuple[list[Path], list[str]]:
    if source.is_file() or (is_checkpoint_directory(source) and not _holds_several(source)):
        return [source], []
    candidates, ignored = [], []
    for path in sorted(source.iterdir()):
        if path.name.startswith("."):
            continue
        stem = _stem(path.name)
        mid = _MID_EPOCH.match(stem)
        if path.is_dir():
            if is_checkpoint_directory(path):
                candidates.append(path)
            else:
                ignored.append(f"{path.name}/: no checkpoint")
        elif path.suffix not in SUFFIXES:
            ignored.append(f"{path.name}: no checkpoint")
        elif mid:
            ignored.append(f"{path.name}: saved in mid-epoch {mid[1]}, after {mid[2]} updates")
        elif _SHARD.search(stem):
            ignored.append(f"{path.name}: a shard without its own folder")
        else:
            candidates.append(path)
    return candidates, ignored


def _holds_several(source: Path) -> bool:
    numbered = [p for p in source.iterdir() if epoch_in_name(p.name) is not None]
    return any(p.is_dir() or p.suffix in SUFFIXES for p in numbered)


def _place_unnamed(
    paths: Iterable[Path],
    by_epoch: dict[int, Path],
    facts: Callable[[Path], dict[str, Any]],
    *,
    alone: bool,
) -> list[str]:
    """Files like checkpoint_last.pt: by their content, unless their epoch is there already."""
    ignored: list[str] = []
    offset = None
    for path in paths:
        if offset is None:
            offset = _stated_minus_named(by_epoch, facts)
        try:
            found = facts(path)
        except LawaError as error:
            # A lone file is what the user wants; among others it may be anything.
            if alone:
                raise
            ignored.append(f"{path.name}: {error}")
            continue
        epoch = found.get("epoch", found.get("step"))
        if epoch is not None and found.get("completed") is False:
            epoch -= 1
        if epoch is not None and "epoch" in found:
            epoch -= offset
        if epoch is None and alone:
            epoch = 0
        if epoch is None:
            ignored.append(f"{path.name}: neither its name nor its content tells an epoch")
        elif epoch in by_epoch:
            ignored.append(f"{path.name}: its epoch {epoch} is {by_epoch[epoch].name}")
        elif found.get("updates_in_epoch") and not alone:
            # An old fairseq's last checkpoint says the same of a whole epoch, but has its twin.
            updates = found["updates_in_epoch"]
            ignored.append(f"{path.name}: saved in mid-epoch {epoch}, after {updates} updates")
        else:
            by_epoch[epoch] = path
    return ignored


def _stated_minus_named(by_epoch: dict[int, Path], facts: Callable[[Path], dict[str, Any]]) -> int:
    """1 where files state the epoch to do next, as PyTorch's ImageNet example does; else 0."""
    for named, path in itertools.islice(sorted(by_epoch.items()), 1):
        try:
            found = facts(path)
        except LawaError:
            return 0
        stated = found.get("epoch", named) - (0 if found.get("completed", True) else 1)
        return stated - named if abs(stated - named) == 1 else 0
    return 0


def _selected(
    by_epoch: dict[int, Path],
    ignored: tuple[str, ...],
    epochs: tuple[int, int] | None,
    every: int,
    source: Path,
) -> FoundFiles:
    there = sorted(by_epoch)
    low, high = epochs or (there[0], there[-1])
    chosen = [e for e in there if low <= e <= high]
    step = stride(there)
    _check_span(chosen, low, high, step, by_epoch)
    missing = [e for e in missing_between([e for e in there if e <= high]) if e >= low]
    if epochs is not None and chosen:
        missing = [*range(chosen[0] - step, max(low, 0) - 1, -step)][::-1] * (low > 0) + missing
        if high < 1 << 62:
            missing += range(chosen[-1] + step, high + 1, step)
    if not chosen:
        raise SelectionError(
            f"{source}: none of the epochs asked for; it has {there[0]} to {there[-1]} "
            f"({len(there)} in all)"
        )
    found = tuple(NumberedFile(e, by_epoch[e]) for e in chosen[::every])
    return FoundFiles(found, ignored, tuple(sorted(set(missing))))


def _check_span(
    chosen: Sequence[int], low: int, high: int, step: int, by_epoch: dict[int, Path]
) -> None:
    # A date in a name is no epoch, and nobody wants a list of all that are missing before it.
    last = high if high < 1 << 62 else max(chosen, default=low)
    if (last - max(low, 0)) // step > _MOST_EPOCHS:
        among = f", of which {chosen[-1]} is {by_epoch[chosen[-1]].name}" if chosen else ""
        raise SelectionError(
            f"epochs {max(low, 0)} to {last}{among}: too far apart for one trajectory; say with "
            "--epochs FIRST:LAST which ones to take"
        )


def stride(epochs: Sequence[int]) -> int:
    """The commonest distance between neighbours, the smallest of equals; 1 for a single epoch."""
    distances = [b - a for a, b in itertools.pairwise(epochs)]
    return min(distances, key=lambda d: (-distances.count(d), d)) if distances else 1


def missing_between(epochs: Sequence[int]) -> tuple[int, ...]:
    """Epochs that a regular trajectory would have between the first and the last.

    Example: ``[10, 20, 40]`` misses 30; ``[1, 2, 4]`` misses 3.
    """
    if len(epochs) < 3:
        # Two epochs may be neighbours at any distance.
        return ()
    step = stride(epochs)
    there = set(epochs)
    return tuple(e for e in range(epochs[0], epochs[-1], step) if e not in there)


def check_epoch(found: NumberedFile, facts: dict[str, Any], offset: int | None) -> int | None:
    """Compare the epoch in a file with the one in its name.

    Training scripts store the epoch just done or the one to do next, so a difference of one is
    fine, as long as it is the same for all files.

    Args:
      found: the file and the epoch by its name.
      facts: what the file says.
      offset: the difference of the files before; None if this is the first that tells.

    Returns:
      The difference, content minus name; `offset` if the file does not tell.

    Raises:
      SelectionError: name and content contradict each other.
    """
    stated = facts.get("epoch")
    by_step = found.epoch == facts.get("step")
    if stated is None or by_step or re.search(r"step|iter", found.path.name, re.IGNORECASE):
        return offset
    difference = stated - found.epoch - (0 if facts.get("completed", True) else 1)
    if abs(difference) > 1 or (offset is not None and difference != offset):
        raise SelectionError(
            f"{found.path}: its name says epoch {found.epoch}, its content says {stated}"
            + (f" (the others differ by {offset})" if offset is not None else "")
            + "; the file was renamed or is from another run. --trust_names converts it as named"
        )
    return difference
