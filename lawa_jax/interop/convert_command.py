"""The command line that the converters share; it converts to a run, and it exports back."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from lawa_jax.errors import OutputExistsError, SelectionError
from lawa_jax.interop import export as export_
from lawa_jax.interop.conversion import ConvertOptions, Summary, convert_trajectory
from lawa_jax.interop.export import NamesFor
from lawa_jax.interop.names import Converter
from lawa_jax.trajectory import open_checkpoint, parse_address
from lawa_jax.trajectory.file_steps import parse_epochs
from lawa_jax.trajectory.formats import inert
from lawa_jax.trajectory.formats.huggingface import open_state


@dataclass(frozen=True)
class ConvertArguments:
    """The options that every converter takes."""

    source: Annotated[str, tyro.conf.Positional]
    """A folder of checkpoints or a single one. With --export: a run, RUN@EPOCH or an average."""
    target: Annotated[str, tyro.conf.Positional]
    """The run directory to make. With --export: a .pt or .safetensors file, or a folder."""
    export: bool = False
    """Convert back, from a run to PyTorch files."""
    epochs: str = ""
    """The first and last epoch to convert, both included: 26:90. By default all are converted."""
    by: Literal["epoch", "step", "auto"] = "auto"
    """Number the checkpoints by epoch or by step. auto means by epoch, or by step where an epoch
    has several checkpoints."""
    match: str = ""
    """Convert only the files that this pattern matches: 'G_*.pth' or 'iter_*/mp_rank_00'."""
    every: int = 1
    """Convert only every n-th of these epochs, counted from the first."""
    workers: int = 2
    """The number of files that are converted at the same time."""
    verify: bool = False
    """Read the output again and compare every tensor with its file."""
    dry_run: bool = False
    """Open and check every file and print what would be written, but write nothing."""
    overwrite: bool = False
    """Replace epochs that were converted from other files. With --export: replace existing
    files."""
    allow_gaps: bool = False
    """Convert even if epochs are missing."""
    trust_names: bool = False
    """Take the epoch from the file name even where the file itself states another one."""
    wrapper: str = ""
    """The key of the model inside the files, such as ema or state_dict. By default it is found."""
    stub: tuple[str, ...] = ()
    """Classes in pickles (or packages, ending in a dot) to replace by inert stand-ins."""
    names: str = ""
    """With --export: the converted run that has the original names. By default it is looked for
    nearby."""
    donor: str = ""
    """With --export: a trainer's checkpoint file of the same model; the result is a copy of it with
    the exported weights, which the loader of that trainer can open."""


_OF_EXPORTING = {"names", "style", "donor"}
_OF_CONVERTING = {
    *("heads", "arch"),
    *("epochs", "by", "match", "every", "workers", "verify", "dry_run"),
    *("allow_gaps", "trust_names", "wrapper", "stub"),
}

Line = TypeVar("Line", bound=ConvertArguments)


def parse(kind: type[Line], description: str, argv: Sequence[str]) -> Line:
    """Parse `argv` (without the program's name)."""
    return tyro.cli(kind, args=list(argv), description=description, use_underscores=True)


def execute(line: ConvertArguments, convert: Converter, names_for: NamesFor | None) -> None:
    """Convert or export, and say on stdout what was done.

    Args:
      line: the command line.
      convert: decides names and layouts of one file.
      names_for: makes names where no converted run tells them, or in the style asked for.

    Raises:
      LawaError: see `convert_trajectory` and `export`.
    """
    _check(line)
    if line.export:
        if line.donor:
            _export_into_donor(line, convert)
        else:
            _export(line, names_for)
        return
    options = ConvertOptions(
        epochs=parse_epochs(line.epochs) if line.epochs else None,
        every=line.every,
        workers=line.workers,
        verify=line.verify,
        dry_run=line.dry_run,
        overwrite=line.overwrite,
        allow_gaps=line.allow_gaps,
        trust_names=line.trust_names,
        wrapper=line.wrapper or None,
        stubs=line.stub,
        by=None if line.by == "auto" else line.by,
        match=line.match or None,
    )
    # Every few files a full collection would walk all objects of jax and torch, 0.2 s each time:
    # what is there now stays.
    gc.freeze()
    summary = convert_trajectory(Path(line.source), Path(line.target), convert, options)
    print(_told(summary, line))


def _check(line: ConvertArguments) -> None:
    """Flags that would do nothing are mistakes: somebody expects them to."""
    given = {f.name for f in fields(line) if getattr(line, f.name) != f.default}
    wrong = given & (_OF_CONVERTING if line.export else _OF_EXPORTING)
    if wrong:
        flag = f"--{min(wrong)}"
        raise SelectionError(
            f"{flag} goes with converting, not with --export: leave it out (RUN@EPOCH exports one "
            "epoch)"
            if line.export
            else f"{flag} goes with --export"
        )
    if line.names and getattr(line, "style", "original") != "original":
        raise SelectionError("--style chooses the names, and so does --names: leave one out")
    for name in line.stub:
        if not inert.may_be_chosen(name):
            raise SelectionError(
                f"--stub {name}: nothing of Python itself, torch, numpy or jax is ever replaced by "
                "it; leave it out"
            )
    if line.workers < 1:
        raise SelectionError(f"--workers: expected >= 1, found {line.workers}")


def _told(summary: Summary, line: ConvertArguments) -> str:
    size = f"{summary.nbytes / 1e6:.1f} MB"
    if line.dry_run:
        return f"would write {size} to {line.target}"
    verified = ", every tensor verified" if line.verify and summary.converted else ""
    if verified and summary.left_out:
        verified += f" but for what was left out: {summary.left_out}"
    before = len(summary.finished_before)
    again = f"; {before} were finished before" if before else ""
    return f"{line.target}: {len(summary.converted)} epochs converted ({size}{verified}){again}"


def _export(line: ConvertArguments, names_for: NamesFor | None) -> None:
    names = None
    if line.names:
        names = export_.find_names(Path(line.names))
        if names is None:
            raise SelectionError(f"--names {line.names}: no names.json in it or above it")
    files = export_.export(
        line.source,
        Path(line.target),
        names=names,
        names_for=names_for,
        overwrite=line.overwrite,
    )
    for file in files:
        print(file)


def _export_into_donor(line: ConvertArguments, convert: Converter) -> None:
    for name in ("names", "style"):
        if getattr(line, name, "") not in ("", "original"):
            raise SelectionError(f"--{name}: the names are the donor's; leave it out with --donor")
    target = Path(line.target)
    if target.suffix not in export_.EXPORT_SUFFIXES and target.suffix != ".ckpt":
        raise SelectionError(f"{target}: with --donor, expected the name of one file")
    if target.exists() and not line.overwrite:
        raise OutputExistsError(f"{target} already exists; choose another name, or --overwrite")
    path, step = parse_address(line.source)
    checkpoint = open_checkpoint(Path(path), step=step, include=("*",))
    donor = open_state(Path(line.donor))
    export_.export_into(checkpoint, target, donor, convert(donor).names)
    print(target)
