"""Writing a checkpoint block by block: larger than memory, from several threads, atomically.

The result is an ordinary Orbax step directory (items ``model``, ``metrics``, ``checksums`` and any
JSON items), whose arrays are raw zarr 2 chunks. Everything is written beside the target under a
name that readers ignore, synced, read back and compared with the digests, then renamed.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from lawa_jax.checkpoints import orbax_layout, publish
from lawa_jax.checkpoints.array_header import ArrayHeader
from lawa_jax.checkpoints.checkpoint import Checkpoint, Index, bounds_of, open_checkpoint
from lawa_jax.checkpoints.chunk_files import ChunkFiles
from lawa_jax.checkpoints.discovery import COMMIT_MARKER, STEP_METADATA, is_object_store
from lawa_jax.checkpoints.metadata import DICT, STRINGS_FILE, StoredLeaf
from lawa_jax.checkpoints.verify import verify_checkpoint
from lawa_jax.digest import ALGORITHM, combine, leaf_digest_block, to_hex
from lawa_jax.errors import CheckpointWriteError, CorruptCheckpointError, LawaError
from lawa_jax.tree import LeafSpec


class StreamingWriter:
    """One step directory in the making.

    Args:
      directory: the step directory to be; its parent is made if needed.
      specs: shape and dtype of every leaf by name.
      keys: key tuple of every leaf by name.
      metrics: numbers saved beside the tree.
      item: name of the tree's item.
      json_items: further JSON items by name (a provenance record).
      key_types: how Orbax rebuilds containers (`Checkpoint.key_types`); dicts by default.
      kinds: "np.ndarray" by default; "scalar" leaves load as Python numbers.
      empty: key tuples of empty nodes and their kind (`Checkpoint.empty`).
      strings: string leaves by name (`Checkpoint.strings`).
      chunks: chunk shape of a leaf; by default one chunk a leaf.
      overwrite: replace an existing directory once everything has succeeded.
      staging: where to write meanwhile, on the same file system as `directory`; an existing
        staging directory is continued (say with `adopt` which blocks it holds).

    Raises:
      OutputExistsError: `directory` exists.
      CheckpointWriteError: it cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        specs: Mapping[str, LeafSpec],
        keys: Mapping[str, tuple[str, ...]],
        *,
        metrics: Mapping[str, float] | None = None,
        item: str = "model",
        json_items: Mapping[str, Any] | None = None,
        key_types: Mapping[str, tuple[int, ...]] | None = None,
        kinds: Mapping[str, str] | None = None,
        empty: Mapping[tuple[str, ...], str] | None = None,
        strings: Mapping[str, str] | None = None,
        chunks: Mapping[str, tuple[int, ...]] | None = None,
        overwrite: bool = False,
        staging: str | os.PathLike[str] | None = None,
    ) -> None:
        if is_object_store(directory):
            raise CheckpointWriteError(f"{directory}: writing to object stores is not supported")
        self.directory = Path(os.path.abspath(directory))
        self._overwrite = overwrite
        self._started_ns = time.time_ns()
        self._specs = dict(specs)
        self._item = item
        self._json = dict(json_items or {})
        if metrics is not None:
            self._json["metrics"] = dict(metrics)
        self._strings = dict(strings or {})
        self._entries = _entries(specs, keys, key_types or {}, kinds or {}, empty or {}, strings)
        self._lock = threading.Lock()
        self._digests = dict.fromkeys(specs, 0)
        self._written = dict.fromkeys(specs, 0)
        publish.check_free(self.directory, overwrite=overwrite)
        self.staging = publish.staging_path(self.directory) if staging is None else Path(staging)
        try:
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            (self.staging / item).mkdir(parents=True, exist_ok=staging is not None)
            self._files = {
                name: self._create(name, (chunks or {}).get(name), ".".join(keys[name]))
                for name in specs
            }
        except OSError as error:
            raise self._write_error(error) from error

    def _write_error(self, error: OSError) -> CheckpointWriteError:
        return CheckpointWriteError(
            error.errno,
            f"cannot write {self.directory}: {error.strerror or error} "
            f"({error.filename or self.staging}); nothing was published",
        )

    def _create(self, name: str, chunks: tuple[int, ...] | None, folder: str) -> ChunkFiles:
        spec = self._specs[name]
        chunks = tuple(max(1, n) for n in (spec.shape if chunks is None else chunks))
        header = ArrayHeader(spec.shape, np.dtype(spec.dtype), chunks, "zarr", True, ".")
        path = self.staging / self._item / folder
        path.mkdir(exist_ok=True)
        _write_json(path / ".zarray", orbax_layout.array_header(spec, chunks))
        return ChunkFiles(path, header)

    def write(self, name: str, index: Index, array: np.ndarray) -> None:
        """Write one block of a leaf. Thread-safe; blocks must not overlap.

        Args:
          name: of the leaf.
          index: one slice (step 1) a dimension.
          array: the block, in the leaf's dtype.

        Raises:
          CheckpointWriteError: disk full, permission denied.
          ValueError: the block does not fit.
        """
        spec = self._specs[name]
        bounds = bounds_of(index, spec.shape, name)
        array = np.asarray(array)
        if array.dtype != spec.dtype or array.shape != tuple(b - a for a, b in bounds):
            raise ValueError(
                f"leaf {name!r}: block {bounds} of {spec} expected, found "
                f"{array.dtype}{list(array.shape)}"
            )
        if array.size:
            try:
                self._files[name].write(bounds, array)
            except OSError as error:
                raise self._write_error(error) from error
        self.adopt(name, index, leaf_digest_block(array, spec.shape, index))

    def adopt(self, name: str, index: Index, digest: int) -> None:
        """Count a block as written, with its digest: by another process, or before a restart."""
        size = 1
        for start, stop in bounds_of(index, self._specs[name].shape, name):
            size *= stop - start
        with self._lock:
            self._digests[name] = combine(self._digests[name], digest)
            self._written[name] += size

    def digests(self) -> dict[str, str]:
        """Digests of what was written so far, by leaf."""
        with self._lock:
            return {name: to_hex(digest) for name, digest in self._digests.items()}

    def finish(
        self,
        checksums: Mapping[str, str] | None = None,
        record: Mapping[str, Any] | None = None,
        *,
        verify: bool = True,
    ) -> None:
        """Complete, sync, read back and publish.

        Args:
          checksums: digests by leaf that the written bytes must have; by default those of the
            blocks as they were given to `write`.
          record: a JSON item ``record`` (where the checkpoint comes from).
          verify: read everything back and compare digests before publishing.

        Raises:
          CorruptCheckpointError: what was read back differs, or blocks are missing.
          CheckpointWriteError: disk full, permission denied.
          OutputExistsError: somebody else published there meanwhile.
        """
        for name, spec in self._specs.items():
            if self._written[name] != spec.size:
                raise CorruptCheckpointError(
                    f"{self.directory}, leaf {name!r}: {self._written[name]} of {spec.size} "
                    "elements were written; nothing was published"
                )
        digests = self.digests() if checksums is None else dict(checksums)
        if record is not None:
            self._json["record"] = dict(record)
        self._json["checksums"] = checksums_json(digests, self._specs)
        try:
            self._write_metadata()
            self._sync()
            if verify:
                verify_checkpoint(self._reopened(), digests)
            publish.publish(self.staging, self.directory, overwrite=self._overwrite)
        except LawaError:
            raise
        except OSError as error:
            raise self._write_error(error) from error

    def _reopened(self) -> Checkpoint:
        return open_checkpoint(self.staging / self._item, include=["*"])

    def _write_metadata(self) -> None:
        item = self.staging / self._item
        _write_json(item / "_METADATA", orbax_layout.tree_metadata(self._entries))
        if self._strings:
            folders = {e.name: e.folder for e in self._entries}
            _write_json(
                item / STRINGS_FILE, {folders[name]: text for name, text in self._strings.items()}
            )
        handlers = {self._item: orbax_layout.PYTREE_HANDLER}
        for name, content in self._json.items():
            (self.staging / name).mkdir(exist_ok=True)
            _write_json(self.staging / name / orbax_layout.json_file(name), content)
            handlers[name] = orbax_layout.JSON_HANDLER
        metadata = orbax_layout.step_metadata(handlers, self._started_ns)
        _write_json(self.staging / STEP_METADATA, metadata)
        for place in (*(self.staging / name for name in handlers), self.staging):
            (place / COMMIT_MARKER).write_text(orbax_layout.COMMITTED)

    def _sync(self) -> None:
        for files in self._files.values():
            files.sync()
        for folder, _, names in os.walk(self.staging, topdown=False):
            if ".zarray" not in names:
                for name in names:
                    publish.fsync_file(Path(folder, name))
            publish.fsync_directory(Path(folder))

    def abort(self) -> None:
        """Remove what was written; the target is untouched."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.abort()


def checksums_json(digests: Mapping[str, str], specs: Mapping[str, LeafSpec]) -> dict[str, Any]:
    """Content of the ``checksums`` item."""
    return {
        "algorithm": ALGORITHM,
        "leaves": {
            name: {
                "digest": digest,
                "shape": list(specs[name].shape),
                "dtype": specs[name].dtype.name,
            }
            for name, digest in digests.items()
        },
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def _entries(
    specs: Mapping[str, LeafSpec],
    keys: Mapping[str, tuple[str, ...]],
    key_types: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, str],
    empty: Mapping[tuple[str, ...], str],
    strings: Mapping[str, str] | None,
) -> list[StoredLeaf]:
    entries = [
        StoredLeaf(
            keys[name],
            key_types.get(name, (DICT,) * len(keys[name])),
            kinds.get(name, "np.ndarray"),
            False,
        )
        for name in specs
    ]
    for name in strings or {}:
        path = keys.get(name, tuple(name.split("/")))
        entries.append(StoredLeaf(path, (DICT,) * len(path), "string", False))
    entries += [StoredLeaf(path, (DICT,) * len(path), kind, True) for path, kind in empty.items()]
    folders: dict[str, str] = {}
    for entry in entries:
        if not entry.folder or entry.folder in (".", "..") or "\0" in entry.folder:
            raise ValueError(f"leaf {entry.name!r} cannot be stored: its keys make no folder name")
        if "/" in entry.folder:
            raise ValueError(f"leaf {entry.name!r}: a key holds '/', which Orbax cannot store")
        if folders.setdefault(entry.folder, entry.name) != entry.name:
            raise ValueError(
                f"leaves {folders[entry.folder]!r} and {entry.name!r} would be stored in one "
                f"folder {entry.folder!r}, since Orbax joins keys by dots; rename one"
            )
    return entries
