"""Checking an average against its record, and one checkpoint against another."""

import os
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lawa_jax.errors import CorruptCheckpointError, SelectionError
from lawa_jax.offline.prepare import prepare
from lawa_jax.offline.recipe import AveragingOptions, Recipe
from lawa_jax.offline.record import FORMAT, problem_of
from lawa_jax.offline.streaming import ReadProgress
from lawa_jax.trajectory import Checkpoint, Runs, verify_checkpoint
from lawa_jax.trajectory.digest import strong_digest
from lawa_jax.trajectory.formats.orbax_metadata import read_json_item
from lawa_jax.trajectory.storage import is_object_store
from lawa_jax.tree import is_averaged

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


def read_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """The record beside an average.

    Raises:
      SelectionError: it has none, or one of a later format.
      CorruptCheckpointError: it is damaged, or contradicts itself.
    """
    record = read_json_item(checkpoint.step_dir / "record")
    if not record:
        raise SelectionError(
            f"{checkpoint.label} has no record of how it was made: only averages written by lawa "
            "can be verified"
        )
    if record.get("format") != FORMAT:
        raise SelectionError(
            f"{checkpoint.label}: its record has format {record.get('format')!r}, expected "
            f"{FORMAT}; use the version of lawa-jax that wrote it"
        )
    problem = problem_of(record)
    if problem:
        raise CorruptCheckpointError(
            f"{checkpoint.label}: its record is damaged: {problem}; make the average again"
        )
    return record


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
    paths = {s["address"]: _find(s, checkpoint) for s in record["sources"]}
    missing = [address for address, path in paths.items() if path is None]
    if missing:
        return Verified(0, [], missing, sha256)
    options = AveragingOptions(
        include=tuple(record["options"]["include"]),
        exclude=tuple(record["options"]["exclude"]),
        dtype=record["options"]["dtype"],
        bn=record["options"]["bn"],
        memory=memory,
        threads=threads,
    )
    recipe = Recipe(
        tuple(str(path) for path in paths.values()),
        tuple(s["weight"] for s in record["sources"]),
        record["method"],
        "verify",
    )
    sink = _Comparison(checkpoint)
    inputs = prepare([recipe], options, runs=runs).into([sink], progress)
    for source, digests in zip(record["sources"], inputs.values(), strict=True):
        for name, expected in source["digests"].items():
            if digests.get(name) != expected:
                raise CorruptCheckpointError(
                    f"{source['address']}, leaf {name!r}: changed since it was averaged (digest "
                    f"expected {expected}, found {digests.get(name)})"
                )
    return Verified(len(checkpoint.leaves), list(paths), [], sha256)


def _find(source: dict[str, Any], checkpoint: Checkpoint) -> epath.Path | None:
    """Where a source is now: where it was, or where it was relative to the output."""
    places = [epath.Path(source["path"])]
    if source["relative"] is not None and not is_object_store(checkpoint.step_dir):
        beside = os.path.dirname(os.path.abspath(checkpoint.step_dir))
        places.append(epath.Path(beside, source["relative"]))
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


class LeafDifference(NamedTuple):
    """How one leaf differs.

    Attributes:
      name: of the leaf.
      max_abs: largest absolute difference; None where shapes or dtypes do not compare.
      relative: L2 norm of the difference over that of the first.
      differing: elements whose bits differ.
      size: elements.
      problem: why nothing could be compared, or None.
    """

    name: str
    max_abs: float | None
    relative: float | None
    differing: int
    size: int
    problem: str | None


def diff(a: Checkpoint, b: Checkpoint) -> list[LeafDifference]:
    """Leaf by leaf what differs between two checkpoints; leaves with equal bits are left out.

    Read block by block, so that memory does not depend on the model.
    """
    found = []
    for name in dict.fromkeys([*a.leaves, *b.leaves]):
        if name not in a.leaves or name not in b.leaves:
            only = a.label if name in a.leaves else b.label
            found.append(LeafDifference(name, None, None, 0, 0, f"only in {only}"))
            continue
        one, other = a.leaves[name], b.leaves[name]
        if one != other:
            found.append(LeafDifference(name, None, None, 0, 0, f"{one} against {other}"))
            continue
        difference = _compare(a, b, name)
        if difference.differing:
            found.append(difference)
    return found


def _compare(a: Checkpoint, b: Checkpoint, name: str) -> LeafDifference:
    spec = a.leaves[name]
    wide = np.complex128 if spec.dtype.kind == "c" else np.float64
    differing, largest, squares, norm = 0, 0.0, 0.0, 0.0
    for index in a.blocks(name, _BLOCK_BYTES):
        shape = tuple(part.stop - part.start for part in index)
        x, y = np.empty(shape, spec.dtype), np.empty(shape, spec.dtype)
        a.read(name, index, x)
        b.read(name, index, y)
        bits = f"V{spec.dtype.itemsize}"
        differing += int(np.count_nonzero(x.reshape(-1).view(bits) != y.reshape(-1).view(bits)))
        if not is_averaged(spec.dtype) and spec.dtype.kind not in "iub":
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.abs(x.astype(wide) - y.astype(wide))
            largest = max(largest, float(gap.max(initial=0.0)))
            squares += float(np.sum(gap**2))
            norm += float(np.sum(np.abs(x.astype(wide)) ** 2))
    relative = (squares / norm) ** 0.5 if norm else float("inf") if squares else 0.0
    return LeafDifference(name, largest, relative, differing, spec.size, None)
