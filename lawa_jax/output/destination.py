"""Where a checkpoint in the making lives, and how it becomes visible.

On local disks: in a staging directory beside the target, made durable, then renamed. On object
stores, which have no atomic rename: under the target itself, where no reader sees it until the
commit marker is written, last.
"""

import os
import shutil
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from etils import epath

from lawa_jax.errors import OutputExistsError
from lawa_jax.output import publish
from lawa_jax.output.chunk_files import ChunkFiles
from lawa_jax.output.staging import Lock, new_staging
from lawa_jax.trajectory.formats.orbax_layout import COMMITTED
from lawa_jax.trajectory.formats.raw_chunks import Bounds
from lawa_jax.trajectory.formats.zarr_header import ArrayHeader
from lawa_jax.trajectory.storage import COMMIT_MARKER, is_object_store


class BlockSink(Protocol):
    """Takes the blocks of one array, in any order and from any thread."""

    def write(self, bounds: Bounds, block: np.ndarray) -> None:
        """Write one block."""


class Destination(Protocol):
    """A step directory in the making."""

    target: epath.Path
    staging: epath.Path

    def array(self, folder: str, header: ArrayHeader) -> BlockSink:
        """A sink for an array whose ``.zarray`` is already written to `folder`."""

    def write_text(self, name: str, text: str) -> None:
        """Write a small file; directories are made."""

    def flush(self) -> None:
        """Make durable what was written so far."""

    def sync(self) -> None:
        """Make everything durable, and complete."""

    def publish(self) -> None:
        """Make it visible under its name, all at once."""

    def abort(self) -> None:
        """Remove what was written."""


class AbortsOnError:
    """A writer whose ``with`` block, left by an exception, leaves nothing behind."""

    def abort(self) -> None:
        """Remove what was written."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()


class LocalDestination:
    """A directory on a local disk."""

    def __init__(self, target: epath.Path, *, overwrite: bool, staging: Path | None) -> None:
        self._target = Path(os.path.abspath(target))
        self._overwrite = overwrite
        publish.check_free(self._target, overwrite=overwrite)
        self._lock: Lock | None = None
        if staging is None:
            self._staging, self._lock = new_staging(self._target)
        else:
            self._staging = staging
            self._target.parent.mkdir(parents=True, exist_ok=True)
            staging.mkdir(exist_ok=True)
        self.target, self.staging = epath.Path(self._target), epath.Path(self._staging)

    def array(self, folder: str, header: ArrayHeader) -> ChunkFiles:
        """See `Destination`."""
        return ChunkFiles(self._staging / folder, header)

    def write_text(self, name: str, text: str) -> None:
        """See `Destination`."""
        path = self._staging / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def flush(self) -> None:
        """See `Destination`."""
        publish.fsync_tree(self._staging)

    def sync(self) -> None:
        """See `Destination`."""
        # As Orbax does: a copy of the directory on an object store is then a checkpoint, too.
        self.write_text(COMMIT_MARKER, COMMITTED)
        publish.fsync_tree(self._staging)

    def publish(self) -> None:
        """See `Destination`."""
        publish.publish(self._staging, self._target, overwrite=self._overwrite)
        self._release()

    def abort(self) -> None:
        """See `Destination`."""
        shutil.rmtree(self._staging, ignore_errors=True)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()


class TensorStoreSink:
    """An array on an object store."""

    def __init__(self, folder: epath.Path) -> None:
        import tensorstore as ts

        from lawa_jax.trajectory.formats.tensorstore_reader import directory_spec

        spec = {
            "driver": "zarr",
            "kvstore": directory_spec(folder),
            "store_data_equal_to_fill_value": True,
        }
        try:
            self._store: Any = ts.open(spec, open=True).result()
        except ValueError as error:
            raise OSError(str(error)) from error

    def write(self, bounds: Bounds, block: np.ndarray) -> None:
        """See `BlockSink`."""
        try:
            self._store[tuple(slice(*b) for b in bounds)].write(block).result()
        except ValueError as error:
            raise OSError(str(error)) from error


class ObjectStoreDestination:
    """A prefix on an object store."""

    def __init__(self, target: epath.Path, *, overwrite: bool, joins: bool = False) -> None:
        self.target = self.staging = target
        if not joins and target.exists():
            if not overwrite:
                raise OutputExistsError(
                    f"{target} already exists and is never replaced silently; choose another name "
                    "or say overwrite (--overwrite)"
                )
            # Without its marker it is no checkpoint any more, however far the removal gets.
            (target / COMMIT_MARKER).unlink(missing_ok=True)
            target.rmtree()

    def array(self, folder: str, header: ArrayHeader) -> TensorStoreSink:
        """See `Destination`."""
        return TensorStoreSink(self.target / folder)

    def write_text(self, name: str, text: str) -> None:
        """See `Destination`."""
        path = self.target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def flush(self) -> None:
        """Object stores are durable once a write returns."""

    def sync(self) -> None:
        """Object stores are durable once a write returns."""

    def publish(self) -> None:
        """See `Destination`."""
        self.write_text(COMMIT_MARKER, COMMITTED)

    def abort(self) -> None:
        """See `Destination`."""
        if self.target.exists():
            self.target.rmtree()


def open_destination(
    directory: epath.PathLike, *, overwrite: bool, staging: epath.PathLike | None
) -> Destination:
    """The destination that fits the path.

    Raises:
      OutputExistsError: the directory exists and may not be overwritten.
      OSError: it cannot be made.
    """
    if is_object_store(directory):
        return ObjectStoreDestination(
            epath.Path(directory), overwrite=overwrite, joins=staging is not None
        )
    local = None if staging is None else Path(os.path.abspath(staging))
    return LocalDestination(epath.Path(directory), overwrite=overwrite, staging=local)
