"""Back to PyTorch: a checkpoint of a run, or an average, as a ``.pt`` or safetensors file."""

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lawa_jax.errors import (
    CheckpointNotFoundError,
    OutputExistsError,
    SelectionError,
    TreeMismatchError,
)
from lawa_jax.interop import epoch_writer
from lawa_jax.interop import names as names_record
from lawa_jax.interop.names import Names
from lawa_jax.interop.rules import laid_out_as_theirs
from lawa_jax.trajectory import Checkpoint, Run, parse_address, verify_leaf
from lawa_jax.trajectory.formats import safetensors_files, torch_donor, torch_files
from lawa_jax.trajectory.formats.state_dict import StateDict, told_left_out
from lawa_jax.tree import LeafSpec, check_compatible

NamesFor = Callable[[Mapping[str, LeafSpec]], Names]
EXPORT_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".safetensors")


def find_names(run: Path) -> Names | None:
    """The record of names of a converted run, from the run or any of its checkpoints.

    Raises:
      CorruptCheckpointError: it is damaged.
    """
    for place in (run, *run.absolute().parents[:3]):
        if (place / names_record.FILE).is_file():
            return names_record.load(place / names_record.FILE)
    return None


def find_names_of(address: str) -> Names | None:
    """`find_names` of ``RUN@90``, a run, or a checkpoint in it."""
    return find_names(Path(parse_address(address)[0]))


def export(
    address: str,
    target: Path,
    *,
    names: Names | None = None,
    names_for: NamesFor | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write one checkpoint to a file, or every checkpoint of a run into a folder.

    Args:
      address: ``RUN@90``, a step or item directory or an average (one checkpoint); ``RUN`` (all,
        if `target` has no suffix of a file, else the newest).
      target: the file (``.pt``, ``.safetensors``), or the folder for ``checkpoint{epoch}.pt``.
      names: the record of names; by default the run's own ``names.json``.
      names_for: makes one from leaf shapes, where there is no record or another style is wanted.
      overwrite: replace existing files.

    Returns:
      The files written.

    Raises:
      SelectionError: no names for this checkpoint.
      TreeMismatchError: checkpoint and names differ.
      OutputExistsError: a file exists.
      CorruptCheckpointError: stored bytes are damaged.
    """
    path_text, step = parse_address(address)
    path = Path(path_text)
    run = Run(path)
    if target.suffix in EXPORT_SUFFIXES:
        jobs = [(run.open(step, include=("*",)), target)]
    else:
        steps = run.steps if step is None else [step]
        if not steps:
            raise CheckpointNotFoundError(f"{path} holds no committed checkpoint")
        jobs = [(run.open(s, include=("*",)), target / f"checkpoint{s}.pt") for s in steps]
    record = names
    if record is None and names_for is None:
        record = find_names(path)
    for _, file in jobs:
        if file.exists() and not overwrite:
            raise OutputExistsError(f"{file} already exists; choose another name, or --overwrite")
    for checkpoint, file in jobs:
        chosen = record or (names_for(checkpoint.leaves) if names_for else None)
        if chosen is None:
            raise SelectionError(
                f"{checkpoint.label}: no {names_record.FILE} beside it tells the original names; "
                "name the converted run with --names"
            )
        export_one(checkpoint, file, chosen)
    return [file for _, file in jobs]


def export_into(checkpoint: Checkpoint, file: Path, donor: StateDict, names: Names) -> None:
    """Write one checkpoint as a copy of a trainer's file with other weights.

    Args:
      checkpoint: the weights; each is rounded to its dtype in the donor.
      file: the file to write.
      donor: a file of the same model; everything but its weights is kept.
      names: of the donor.

    Raises:
      TreeMismatchError: the donor is of another model.
      SelectionError: the donor or the target is of a format that cannot be copied.
    """
    _check_leaves(checkpoint, names)
    arrays: dict[str, np.ndarray] = {}
    for entry in names.entries:
        array = checkpoint.read_leaf(entry.leaf)
        verify_leaf(checkpoint, entry.leaf, array)
        arrays[entry.name] = laid_out_as_theirs(array, entry.layout)
    for name, twin in names.shared.items():
        arrays[name] = arrays[twin]  # stored apart, or the same bytes once more
    if not donor.path.is_file() or donor.path.suffix != file.suffix:
        raise SelectionError(
            f"--donor {donor.path}: expected a file of the target's kind ({file.suffix}); of a "
            "folder, name the model file in it"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        if file.suffix == ".safetensors":
            kept = {name: donor.read(name) for name in donor.specs}
            kept |= {n: np.asarray(a, donor.specs[n].dtype) for n, a in arrays.items()}
            safetensors_files.write(aside, kept, {"format": "pt"})
        else:
            torch_donor.rewrite(donor.path, aside, arrays, wrapper=".".join(donor.wrapper) or None)
        os.replace(aside, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
    if donor.left_out:
        told = told_left_out(donor.left_out)
        print(f"note: {file}: as in the donor, not averaged: {told}", file=sys.stderr)


def export_one(checkpoint: Checkpoint, file: Path, names: Names) -> None:
    """Write one checkpoint under its original names; verified against its digests while read.

    Raises:
      TreeMismatchError: the checkpoint's leaves are not those of `names`.
      CorruptCheckpointError: stored bytes are damaged.
    """
    _check_leaves(checkpoint, names)
    # An average may have been written in another dtype (float32 from float16) on purpose.
    arrays: dict[str, np.ndarray] = {}
    for entry in names.entries:
        array = checkpoint.read_leaf(entry.leaf)
        verify_leaf(checkpoint, entry.leaf, array)
        theirs = laid_out_as_theirs(array, entry.layout)
        arrays[entry.name] = np.ascontiguousarray(theirs).reshape(theirs.shape)
    for name, kept in names.constants.items():
        arrays[name] = kept.array()
    about = epoch_writer.read_source(Path(checkpoint.path.parent))
    objects = about.get("objects", {}) if isinstance(about.get("objects"), dict) else {}
    unknown = {
        name for name in names.order if _is_object(name, names, arrays) and name not in objects
    }
    if unknown:
        # Of an average nobody can say: they belong to one checkpoint.
        told = ", ".join(sorted(unknown))
        print(f"note: {checkpoint.label}: plain entries left out: {told}", file=sys.stderr)
    order = [name for name in names.order if name not in unknown]
    objects = {name: objects[name] for name in order if _is_object(name, names, arrays)}
    beside: dict[str, Any] = {}
    if checkpoint.step is not None and "state_dict" in names.wrapper:
        beside = {"epoch": checkpoint.step}
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        if file.suffix == ".safetensors":
            metadata = {"format": "pt"}
            if checkpoint.step is not None:
                metadata["epoch"] = str(checkpoint.step)
            # The format knows no sharing: tied tensors are written out.
            full = {
                name: arrays[names.shared.get(name, name)] for name in order if name not in objects
            }
            safetensors_files.write(aside, full, metadata)
        else:
            torch_files.write(
                aside,
                arrays,
                order=order,
                shared=names.shared,
                objects=objects,
                wrapper=names.wrapper,
                beside=beside,
                nested=names.nested,
            )
        os.replace(aside, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()


def _is_object(name: str, names: Names, arrays: Mapping[str, np.ndarray]) -> bool:
    return name not in arrays and name not in names.shared


def _check_leaves(checkpoint: Checkpoint, names: Names) -> None:
    found = {name: spec.shape for name, spec in checkpoint.leaves.items()}
    wanted = {name: spec.shape for name, spec in names.specs.items()}
    if found == wanted:
        return
    if found.keys() == wanted.keys():
        check_compatible({"the record of names": names.specs, checkpoint.label: checkpoint.leaves})
    odd = sorted(found.keys() ^ wanted.keys())[0]
    raise TreeMismatchError(
        f"{checkpoint.label}: leaf {odd!r} is only in the "
        f"{'checkpoint' if odd in found else 'record of names'}; name the run it was made from "
        "with --names"
    )
