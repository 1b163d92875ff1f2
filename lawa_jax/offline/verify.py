"""Checking an average against its record, and one checkpoint against another."""

import os
from typing import NamedTuple

import numpy as np
from etils import epath

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.offline.prepare import prepare
from lawa_jax.offline.recipe import AveragingOptions, Recipe
from lawa_jax.offline.record import SourceRecord, read_record
from lawa_jax.offline.streaming import ReadProgress
from lawa_jax.trajectory import Checkpoint, Runs, verify_checkpoint
from lawa_jax.trajectory.digest import strong_digest
from lawa_jax.trajectory.storage import is_object_store

_BLOCK_BYTES = 4 << 20


class Verified(NamedTuple):
    """What `verify` found; damage is raised instead.

    Attributes:
      leaves: how many leaves of the output were compared with the recomputed average.
      sources: addresses that were read again.
      missing: addresses that are no longer there; with any, nothing was recomputed.
      sha256: of every leaf of the output, where asked for.
    """

    leaves: int
    sources: list[str]
    missing: list[str]
    sha256: dict[str, str]


def verify(
    out: str,
    *,
    strong: bool = False,
    memory: int = 1 << 30,
    threads: int = 2,
    runs: Runs | None = None,
    progress: ReadProgress | None = None,
) -> Verified:
    """Re-read an average and its sources, recompute it, and compare bit by bit.

    Args:
      out: the average.
      strong: also compute a SHA-256 of every leaf of the output.
      memory, threads: as for averaging.
      runs: runs that are listed already.
      progress: called with the bytes of sources read.

    Raises:
      CorruptCheckpointError: output or source is not what it was, or the average is not theirs.
      SelectionError: `out` has no record.
    """
    runs = runs or Runs()
    checkpoint = runs.open(out, include=("*",))
    record = read_record(checkpoint)
    verify_checkpoint(checkpoint)
    sha256 = {n: strong_digest(checkpoint.read_leaf(n)) for n in checkpoint.leaves if strong}
    paths = {s.address: _find(s, checkpoint) for s in record.sources}
    missing = [address for address, path in paths.items() if path is None]
    if missing:
        return Verified(0, [], missing, sha256)
    options = AveragingOptions(
        include=record.options.include,
        exclude=record.options.exclude,
        dtype=record.options.dtype,
        bn=record.options.bn,
        memory=memory,
        threads=threads,
    )
    recipe = Recipe(
        tuple(str(path) for path in paths.values()),
        tuple(s.weight for s in record.sources),
        record.method,
        "verify",
    )
    sink = _Comparison(checkpoint)
    inputs = prepare([recipe], options, runs=runs).into([sink], progress)
    for source, digests in zip(record.sources, inputs.values(), strict=True):
        for name, expected in source.digests.items():
            if digests.get(name) != expected:
                raise CorruptCheckpointError(
                    f"{source.address}, leaf {name!r}: changed since it was averaged (digest "
                    f"expected {expected}, found {digests.get(name)})"
                )
    return Verified(len(checkpoint.leaves), list(paths), [], sha256)


def _find(source: SourceRecord, checkpoint: Checkpoint) -> epath.Path | None:
    """Where a source is now: where it was, or where it was relative to the output."""
    places = [epath.Path(source.path)]
    if source.relative is not None and not is_object_store(checkpoint.step_dir):
        beside = os.path.dirname(os.path.abspath(checkpoint.step_dir))
        places.append(epath.Path(beside, source.relative))
    return next((path for path in places if path.is_dir()), None)


class _Comparison:
    """A sink that compares every block with what is stored."""

    def __init__(self, stored: Checkpoint) -> None:
        self._stored = stored

    def write(self, name: str, index: tuple[slice, ...], array: np.ndarray) -> None:
        if name not in self._stored.leaves or self._stored.leaves[name].dtype != array.dtype:
            raise CorruptCheckpointError(
                f"{self._stored.label}: expected a leaf {name!r} of {array.dtype} as its record "
                f"says, found {self._stored.leaves.get(name, 'none')}"
            )
        block = np.empty(array.shape, array.dtype)
        self._stored.read(name, index, block)
        if block.tobytes() != np.ascontiguousarray(array).tobytes():
            raise CorruptCheckpointError(
                f"{self._stored.label}, leaf {name!r}: differs from the average of its sources as "
                "recomputed; make it again"
            )
