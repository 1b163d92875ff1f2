"""Which file is which step: by a name that surely tells it, else by the file's content."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lawa_jax.errors import CheckpointNotFoundError, LawaError, SelectionError
from lawa_jax.trajectory.bits import same_bits
from lawa_jax.trajectory.folder_files import Candidate, candidates_in, several_series
from lawa_jax.trajectory.formats.state_dict import StateDict
from lawa_jax.trajectory.gaps import missing_between, stride

Unit = Literal["epoch", "step"]
_MOST_EPOCHS = 10_000_000
_OPEN_END = 1 << 62


class NumberedFile(NamedTuple):
    """One checkpoint of a trajectory.

    Attributes:
      epoch: its epoch or step.
      path: the file or folder.
      by: what told the number, for the report.
      named: whether its name surely told it, so that the content has to agree.
      unit: whether the number counts epochs or steps.
    """

    epoch: int
    path: Path
    by: str = "by its name"
    named: bool = True
    unit: Unit = "epoch"


@dataclass(frozen=True)
class FoundFiles:
    """What a folder holds.

    Attributes:
      checkpoints: one an epoch (or step), ascending.
      ignored: files that are no checkpoints of the trajectory, each with the reason.
      missing: epochs between the first and the last that no file has.
      notes: what was decided.
    """

    checkpoints: tuple[NumberedFile, ...]
    ignored: tuple[str, ...]
    missing: tuple[int, ...]
    notes: tuple[str, ...] = ()


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
    high = int(last) if last else (_OPEN_END if colon else low)
    if low > high:
        raise SelectionError(f"--epochs {text!r}: {low} is after {high}")
    return low, high


def discover(
    source: Path,
    *,
    opened: Callable[[Path], StateDict],
    epochs: tuple[int, int] | None = None,
    every: int = 1,
    by: Unit | None = None,
    match: str | None = None,
) -> FoundFiles:
    """Find the checkpoints of a trajectory.

    Args:
      source: a folder of checkpoints, or a single one.
      opened: opens a file; asked only where a name does not surely tell the step, or where two
        files have the same one.
      epochs: first and last to take, both included.
      every: take every so many-th of these, counted from the first.
      by: number the checkpoints by epoch or by step; by default by epoch, or by step where names
        tell only that, or where an epoch has several checkpoints.
      match: a glob of the files to take.

    Raises:
      CheckpointNotFoundError: there are none.
      SelectionError: two files have the same step, there are several series of files, or a bound
        of `epochs` lies outside.
    """
    if every < 1:
        raise SelectionError(f"--every: expected >= 1, found {every}")
    if not source.exists():
        raise CheckpointNotFoundError(f"{source}: no such file or folder")
    candidates, ignored = candidates_in(source, match)
    numbering = _Numbering(candidates, opened, by, ignored)
    by_epoch = numbering.number()
    if not by_epoch:
        why = f" ({'; '.join(ignored[:3])})" if ignored else ""
        raise CheckpointNotFoundError(
            f"{source}: no checkpoints in it{why}; expected names such as checkpoint12.pt, "
            f"epoch_3.pth, model-00012.safetensors or step1000/: rename the files, or name one file"
        )
    gaps = not any(c.reading.chosen_by_metric for c in candidates)
    return _selected(by_epoch, tuple(ignored), epochs, every, source, gaps, numbering.notes)


@dataclass
class _Numbering:
    """Gives each file its number, and says why it is that one."""

    candidates: list[Candidate]
    opened: Callable[[Path], StateDict]
    by: Unit | None
    ignored: list[str]
    notes: list[str] = field(default_factory=list)
    _facts: dict[Path, dict[str, Any]] = field(default_factory=dict)

    def number(self) -> dict[int, NumberedFile]:
        unit = self.by or self._unit()
        found = self._numbered(unit)
        clash = self._clash(found)
        if clash and self.by is None and unit == "epoch" and self._tell_steps(found):
            self.notes.append(
                f"numbered by step, since {clash[0].path.name} and {clash[1].path.name} are both "
                f"of epoch {clash[0].epoch} (--by chooses)"
            )
            found = self._numbered("step")
            clash = self._clash(found)
        if clash:
            raise _twice(self.candidates, *clash)
        by_epoch = {file.epoch: file for file in found}
        self._place_rest(by_epoch, self.by or ("step" if self.notes else unit))
        return by_epoch

    def facts(self, path: Path) -> dict[str, Any]:
        if path not in self._facts:
            self._facts[path] = dict(self.opened(path).facts)
        return self._facts[path]

    def _sure(self) -> list[Candidate]:
        return [c for c in self.candidates if c.reading.sure]

    def _unit(self) -> Unit:
        whole = [c.reading for c in self._sure() if not c.reading.mid_epoch]
        steps = [r for r in whole if r.epoch is None and r.number is None]
        if steps and len(steps) < len(whole):
            raise SelectionError(
                f"{self.candidates[0].path.parent}: {len(steps)} files are numbered by step and "
                f"{len(whole) - len(steps)} by epoch; choose with --by step or --by epoch"
            )
        mid = [c.reading for c in self._sure() if c.reading.mid_epoch and c.reading.step]
        return "step" if steps or (mid and not whole) else "epoch"

    def _numbered(self, unit: Unit) -> list[NumberedFile]:
        """Files whose names surely tell, and, for steps, those whose content does."""
        found = []
        for path, reading in self._sure():
            if reading.mid_epoch and (unit == "epoch" or reading.step is None):
                continue
            value = reading.epoch if unit == "epoch" else reading.step
            told, named = "by its name", True
            if value is None and unit == "epoch" and reading.number is not None:
                value = reading.number
            if value is None and unit == "step":
                value, told, named = self.facts(path).get("step"), "by its content", False
                if value is None and reading.epoch is None:
                    value, told, named = reading.number, "by its name", True
            if value is not None:
                found.append(NumberedFile(value, path, told, named, unit))
        return found

    def _tell_steps(self, found: list[NumberedFile]) -> bool:
        steps = [c.reading.step or self.facts(c.path).get("step") for c in self._sure()]
        return len(found) == len(steps) and None not in steps and len(set(steps)) > 1

    def _clash(self, found: list[NumberedFile]) -> tuple[NumberedFile, NumberedFile] | None:
        """The first two of one number; a copy of the other is taken out of `found`."""
        kinds = {c.path: c.reading.kind for c in self.candidates}
        there: dict[int, NumberedFile] = {}
        for file in sorted(found, key=lambda f: kinds[f.path] == "copy"):
            twin = there.setdefault(file.epoch, file)
            if twin is file:
                continue
            if not self._same_weights(file.path, twin.path):
                return twin, file
            self.ignored.append(f"{file.path.name}: a copy of {twin.path.name}")
            found.remove(file)
        return None

    def _same_weights(self, path: Path, other: Path) -> bool:
        a, b = self.opened(path), self.opened(other)
        return dict(a.specs) == dict(b.specs) and all(
            same_bits(a.read(name), b.read(name)) for name in a.specs
        )

    def _place_rest(self, by_epoch: dict[int, NumberedFile], unit: Unit) -> None:
        """Files like checkpoint_last.pt: by their content, unless their step is there already."""
        placed = {file.path for file in by_epoch.values()}
        gone = {text.partition(":")[0] for text in self.ignored}
        offset = self._stated_minus_named(by_epoch)
        rest = [c for c in self.candidates if c.path not in placed and c.path.name not in gone]
        # Copies last: what they are copies of has to be there.
        for path, reading in sorted(rest, key=lambda c: c.reading.kind == "copy"):
            alone = len(self.candidates) == 1
            if reading.mid_epoch and not alone and unit == "epoch":
                after = f", after {reading.step} updates" if reading.step is not None else ""
                self.ignored.append(
                    f"{path.name}: saved in mid-epoch {reading.epoch}{after} (--by step takes it)"
                )
                continue
            try:
                facts = self.facts(path)
            except LawaError as error:
                # A lone file is what the user wants; among others it may be anything.
                if alone:
                    raise
                self.ignored.append(f"{path.name}: {error}")
                continue
            self._place(path, reading, facts, by_epoch, unit, offset, alone)

    def _place(
        self,
        path: Path,
        reading: Any,
        facts: dict[str, Any],
        by_epoch: dict[int, NumberedFile],
        unit: Unit,
        offset: int,
        alone: bool,
    ) -> None:
        number, told = self._by_content(facts, unit, offset)
        if number is None and reading.kind != "copy" and reading.numbered:
            number = reading.number if reading.number is not None else reading.epoch
            told = "by its name; its content tells none"
        if number is None and alone:
            number, told = 0, "neither its name nor its content tells one"
        twin = by_epoch.get(number) if number is not None else self._twin(path, by_epoch)
        if twin is not None:
            if self._same_weights(path, twin.path):
                text = f"a copy of {twin.path.name}"
            else:
                text = f"its {unit} {twin.epoch} is {twin.path.name}, whose weights differ"
                if reading.kind == "checkpoint" and reading.numbered:
                    raise _twice(self.candidates, twin, NumberedFile(twin.epoch, path, unit=unit))
            self.ignored.append(f"{path.name}: {text}")
        elif number is None:
            self.ignored.append(f"{path.name}: neither its name nor its content tells an {unit}")
        elif facts.get("updates_in_epoch") and not alone and unit == "epoch":
            # An old fairseq's last checkpoint says the same of a whole epoch, but has its twin.
            updates = facts["updates_in_epoch"]
            self.ignored.append(
                f"{path.name}: saved in mid-epoch {number}, after {updates} updates"
            )
        else:
            by_epoch[number] = NumberedFile(number, path, told, False, unit)

    def _by_content(self, facts: dict[str, Any], unit: Unit, offset: int) -> tuple[int | None, str]:
        epoch = facts.get("epoch")
        if unit == "step" or epoch is None:
            step = facts.get("step")
            return step, f"its content says step {step}"
        told = f"its content says epoch {epoch}"
        if facts.get("completed") is False:
            return epoch - 1, told + ", the one to do next"
        return epoch - offset, told + (", the one to do next as in the others" if offset else "")

    def _twin(self, path: Path, by_epoch: dict[int, NumberedFile]) -> NumberedFile | None:
        """Of a bare file that tells no step: the one with the same weights, if there is any."""
        size = path.stat().st_size
        near = (f for f in by_epoch.values() if abs(f.path.stat().st_size - size) <= 4096)
        return next((f for f in near if self._same_weights(path, f.path)), None)

    def _stated_minus_named(self, by_epoch: dict[int, NumberedFile]) -> int:
        """1 where files state the epoch to do next, as PyTorch's ImageNet example does; else 0."""
        if len(by_epoch) == len(self.candidates):
            return 0
        first = min((f for f in by_epoch.values() if f.named), default=None)
        if first is None:
            return 0
        try:
            facts = self.facts(first.path)
        except LawaError:
            return 0
        stated = facts.get("epoch", first.epoch) - (0 if facts.get("completed", True) else 1)
        return stated - first.epoch if abs(stated - first.epoch) == 1 else 0


def _twice(candidates: list[Candidate], one: NumberedFile, two: NumberedFile) -> SelectionError:
    by_path = {c.path: c for c in candidates}
    a, b = by_path[one.path], by_path[two.path]
    if a.reading.pattern != b.reading.pattern:
        return several_series([a, b])
    return SelectionError(
        f"{one.unit} {one.epoch} is there twice, with different weights: {one.path.name} and "
        f"{two.path.name}; choose with --match or --by"
    )


def _selected(
    by_epoch: dict[int, NumberedFile],
    ignored: tuple[str, ...],
    epochs: tuple[int, int] | None,
    every: int,
    source: Path,
    gaps: bool,
    notes: list[str],
) -> FoundFiles:
    there = sorted(by_epoch)
    low, high = epochs or (there[0], there[-1])
    chosen = [e for e in there if low <= e <= high]
    step = stride(there)
    _check_span(chosen, low, high, step, by_epoch)
    missing = [e for e in missing_between([e for e in there if e <= high]) if e >= low]
    missing = missing if gaps else []
    if epochs is not None and chosen:
        missing = [*range(chosen[0] - step, max(low, 0) - 1, -step)][::-1] * (low > 0) + missing
        if high < _OPEN_END:
            missing += range(chosen[-1] + step, high + 1, step)
    if not chosen:
        raise SelectionError(
            f"{source}: none of the epochs asked for; it has {there[0]} to {there[-1]} "
            f"({len(there)} in all)"
        )
    taken = [by_epoch[e] for e in chosen[::every]]
    told = [f"{f.path.name} is {f.unit} {f.epoch}: {f.by}" for f in taken if not f.named]
    return FoundFiles(tuple(taken), ignored, tuple(sorted(set(missing))), (*notes, *told))


def _check_span(
    chosen: list[int], low: int, high: int, step: int, by_epoch: dict[int, NumberedFile]
) -> None:
    # Nobody wants a list of all that are missing before a number that is no epoch.
    last = high if high < _OPEN_END else max(chosen, default=low)
    if (last - max(low, 0)) // step > _MOST_EPOCHS:
        among = f", of which {chosen[-1]} is {by_epoch[chosen[-1]].path.name}" if chosen else ""
        raise SelectionError(
            f"epochs {max(low, 0)} to {last}{among}: too far apart for one trajectory; say with "
            "--epochs FIRST:LAST which ones to take"
        )


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
    if stated is None or not found.named or found.unit == "step":
        return offset
    if found.epoch == facts.get("step"):
        return offset
    difference = stated - found.epoch - (0 if facts.get("completed", True) else 1)
    if abs(difference) > 1 or (offset is not None and difference != offset):
        raise SelectionError(
            f"{found.path}: its name says epoch {found.epoch}, its content says {stated}"
            + (f" (the others differ by {offset})" if offset is not None else "")
            + "; the file was renamed or is from another run. --trust_names converts it as named"
        )
    return difference
