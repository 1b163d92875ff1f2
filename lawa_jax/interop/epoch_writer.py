"""Converting one file into one step of a run, and comparing the two bit for bit."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lawa_jax.errors import CheckpointNotFoundError, CorruptCheckpointError
from lawa_jax.interop.names import Entry, Names
from lawa_jax.interop.rules import copied_as_ours, laid_out_as_theirs
from lawa_jax.output import StepWriter
from lawa_jax.trajectory import Checkpoint, open_checkpoint, verify_checkpoint
from lawa_jax.trajectory.bits import same_bits
from lawa_jax.trajectory.formats import torch_files
from lawa_jax.trajectory.formats.state_dict import StateDict

_BLOCK_BYTES = 4 << 20
SOURCE = "source"


def origin(state: StateDict) -> dict[str, Any]:
    """What identifies the file a step was made from.

    Its content too: checkpoints of a model that was trained again have the same names and sizes.
    """
    path = state.path
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    content = hashlib.blake2b(digest_size=16)
    for file in files:
        content.update(_content_of(file))
    return {
        "file": path.name,
        "bytes": sum(file.stat().st_size for file in files),
        "content": content.hexdigest(),
    }


def _content_of(file: Path) -> bytes:
    """A zip file keeps a checksum of each tensor at its end; of others all bytes are read."""
    if torch_files.zip_checksums(file):
        with zipfile.ZipFile(file) as archive:
            entries = [(e.filename, e.file_size, e.CRC) for e in archive.infolist()]
        return repr(entries).encode()
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "blake2b").digest()


def write_epoch(
    directory: Path,
    state: StateDict,
    names: Names,
    epoch: int,
    *,
    progress: Callable[[int], None],
    threads: int = 1,
    overwrite: bool = False,
) -> None:
    """Write one step, tensor by tensor; it appears whole or not at all.

    Args:
      directory: the step directory to be.
      state: the open file.
      names: its plan.
      epoch: saved among the metrics.
      progress: called with the bytes of each block written; may raise to stop.
      threads: tensors in work at once; each may hold one copy of its tensor.
      overwrite: replace what is there.

    Raises:
      CheckpointWriteError: disk full, permission denied.
      CorruptCheckpointError: a tensor cannot be read.
    """
    metrics = {"epoch": float(epoch), **state.facts.get("metrics", {})}
    about = {
        **origin(state),
        "epoch": epoch,
        "objects": dict(state.objects),
        "facts": {k: v for k, v in state.facts.items() if k != "metrics"},
    }
    with StepWriter(
        directory,
        names.specs,
        names.keys,
        metrics=metrics,
        json_items={SOURCE: about},
        overwrite=overwrite,
    ) as writer:

        def write(entry: Entry) -> None:
            array = copied_as_ours(state.read(entry.name), entry.layout)
            for index in _blocks(array):
                writer.write(entry.leaf, index, array[index])
                progress(array[index].nbytes)

        with ThreadPoolExecutor(max(1, threads)) as pool:
            futures = [pool.submit(write, entry) for entry in names.entries]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        writer.finish(verify=False)


def _blocks(array: np.ndarray) -> list[tuple[slice, ...]]:
    """Rows of some megabytes, so that what was written is still in the cache for its digest."""
    if array.ndim == 0 or array.nbytes <= _BLOCK_BYTES:
        return [tuple(slice(0, n) for n in array.shape)]
    rows = max(1, _BLOCK_BYTES * array.shape[0] // array.nbytes)
    rest = tuple(slice(0, n) for n in array.shape[1:])
    return [
        (slice(start, min(start + rows, array.shape[0])), *rest)
        for start in range(0, array.shape[0], rows)
    ]


def as_theirs(checkpoint: Checkpoint, entry: Entry) -> np.ndarray:
    """A stored leaf with the axes of the other framework; a view."""
    return laid_out_as_theirs(checkpoint.read_leaf(entry.leaf), entry.layout)


def compare(directory: Path, state: StateDict, names: Names) -> None:
    """Re-read a step and compare every tensor with its file, bit for bit.

    Raises:
      CorruptCheckpointError: a tensor differs; the step is removed.
    """
    entry = _first_difference(open_checkpoint(directory, include=("*",)), state, names)
    if entry is not None:
        shutil.rmtree(directory)
        raise CorruptCheckpointError(
            f"{directory}, leaf {entry.leaf!r}: what was stored is not {entry.name!r} of "
            f"{state.label}; the step was removed. Check disk and memory, and run again"
        )


def _first_difference(checkpoint: Checkpoint, state: StateDict, names: Names) -> Entry | None:
    for entry in names.entries:
        if not same_bits(as_theirs(checkpoint, entry), state.read(entry.name)):
            return entry
    return None


def is_finished(directory: Path, state: StateDict, names: Names, *, verify: bool = False) -> bool:
    """Whether a step was made from this very file and still has the bytes it was saved with.

    Args:
      directory: the step.
      state: the open file.
      names: its plan.
      verify: compare every tensor with the file too.

    Raises:
      CheckpointNotFoundError: it was made from another file.
      CorruptCheckpointError: its bytes changed.
    """
    if not directory.is_dir():
        return False
    checkpoint = open_checkpoint(directory, include=("*",))
    about = read_source(directory)
    wanted = origin(state)
    # Steps converted by an earlier version say nothing of the content.
    found = {key: about.get(key, wanted["content"] if key == "content" else None) for key in wanted}
    if found != wanted or checkpoint.leaves != names.specs:
        raise CheckpointNotFoundError(
            f"{directory} was not made from {state.label}: expected {wanted}, found {found}; "
            "choose another run, or --overwrite"
        )
    verify_checkpoint(checkpoint)
    entry = _first_difference(checkpoint, state, names) if verify else None
    if entry is not None:
        raise CheckpointNotFoundError(
            f"{directory}, leaf {entry.leaf!r}, was not made from {state.label}: {entry.name!r} "
            "there has other values; choose another run, or --overwrite"
        )
    return True


def read_source(directory: Path) -> dict[str, Any]:
    """The record of where a step comes from; {} if there is none."""
    path = directory / SOURCE / "metadata"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptCheckpointError(f"{path} is no JSON: {error}") from error
    return content if isinstance(content, dict) else {}
