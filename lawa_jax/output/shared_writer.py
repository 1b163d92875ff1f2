"""Several processes writing one checkpoint, each its own blocks."""

import errno
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from lawa_jax.distributed import Group, together
from lawa_jax.errors import CheckpointWriteError
from lawa_jax.output.destination import AbortsOnError
from lawa_jax.output.step_writer import StepWriter
from lawa_jax.trajectory.digest import leaf_digest_block, to_hex
from lawa_jax.trajectory.integrity import check_digest
from lawa_jax.tree import Index, LeafSpec


class SharedWriter(AbortsOnError):
    """A `StepWriter` for a group of processes with one file system, or one object store.

    Process 0 makes the staging directory, writes the metadata and publishes; all write and read
    back their own blocks. No array travels between processes. Let no two processes write into one
    storage chunk: network file systems and object stores replace whole pages or files.

    Args:
      group: the processes; all make the same calls, `write` excepted.
      directory, specs, keys, options: see `StepWriter`.
      overwrite: replace an existing directory once everything has succeeded.

    Raises:
      OutputExistsError, CheckpointWriteError: in every process.
    """

    def __init__(
        self,
        group: Group,
        directory: epath.PathLike,
        specs: Mapping[str, LeafSpec],
        keys: Mapping[str, tuple[str, ...]],
        *,
        overwrite: bool = False,
        **options: Any,
    ) -> None:
        self._group = group
        self._specs = specs
        self._blocks: list[tuple[str, Index, int]] = []
        self._all: dict[str, str] | None = None
        writer: StepWriter | None = None

        def lead() -> str | None:
            nonlocal writer
            if group.index:
                return None
            writer = StepWriter(directory, specs, keys, overwrite=overwrite, **options)
            return str(writer.staging)

        def follow() -> None:
            nonlocal writer
            if not epath.Path(staging).exists() and "://" not in staging:
                raise CheckpointWriteError(
                    errno.ENOENT,
                    f"process {group.index} does not see {staging}, which process 0 made: the "
                    "directory must be on a file system that all processes share, or on an object "
                    "store (gs://)",
                )
            if group.index:
                writer = StepWriter(
                    directory, specs, keys, overwrite=True, staging=staging, **options
                )

        try:
            staging = together(group, "staging", lead)[0]
            together(group, "staged", follow)
        except BaseException:
            if writer is not None and not group.index:
                writer.abort()
            raise
        assert writer is not None
        self._writer = writer
        self.directory = writer.directory

    def write(self, name: str, index: Index, array: np.ndarray) -> int:
        """Write one block; see `StepWriter.write`."""
        digest = self._writer.write(name, index, array)
        self._blocks.append((name, index, digest))
        return digest

    def digests(self) -> dict[str, str]:
        """Digests by leaf: of everybody's blocks after `finish`, of one's own before."""
        return self._writer.digests() if self._all is None else dict(self._all)

    def finish(self, record: Mapping[str, Any] | None = None, *, verify: bool = True) -> None:
        """Complete, sync, read back and publish; see `StepWriter.finish`."""
        group, writer = self._group, self._writer
        parts = together(group, "written", self._written)

        def seal() -> dict[str, str] | None:
            if group.index:
                return None
            for part in parts[1:]:
                writer.adopt_partial(part)
            return writer.seal(record=record)

        self._all = together(group, "sealed", seal)[0]
        if verify:
            together(group, "verified", self._verify)
        together(group, "published", lambda: None if group.index else writer.publish())

    def _written(self) -> dict[str, tuple[int, int]]:
        if self._group.index:
            # Process 0 cannot make durable what still is in this machine's memory.
            self._writer.flush()
        return self._writer.partial()

    def _verify(self) -> None:
        stored = self._writer.reopened()
        for name, index, digest in self._blocks:
            block = np.empty(tuple(s.stop - s.start for s in index), self._specs[name].dtype)
            stored.read(name, index, block)
            found = leaf_digest_block(block, self._specs[name].shape, index)
            check_digest(stored.label, name, to_hex(found), to_hex(digest))

    def abort(self) -> None:
        """Remove what was written; the target is untouched."""
        if self._group.index == 0:
            self._writer.abort()
