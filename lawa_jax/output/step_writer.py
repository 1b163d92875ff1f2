"""Writing a checkpoint block by block: larger than memory, from several threads, atomically.

The result is an ordinary Orbax step directory (items ``model``, ``metrics``, ``checksums`` and any
JSON items), whose arrays are raw zarr 2 chunks. Everything is written beside the target under a
name that readers ignore, synced, read back and compared with the digests, then renamed.
"""

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from lawa_jax.errors import (
    CheckpointWriteError,
    CorruptCheckpointError,
    LawaError,
    TreeMismatchError,
)
from lawa_jax.output.destination import AbortsOnError, BlockSink, open_destination
from lawa_jax.trajectory import open_checkpoint
from lawa_jax.trajectory.checkpoint import Checkpoint, bounds_of
from lawa_jax.trajectory.digest import ALGORITHM, combine, leaf_digest_block, to_hex
from lawa_jax.trajectory.formats import orbax_layout, raw_chunks
from lawa_jax.trajectory.formats.orbax_metadata import DICT, STRINGS_FILE, StoredLeaf
from lawa_jax.trajectory.formats.zarr_header import ArrayHeader
from lawa_jax.trajectory.integrity import verify_checkpoint
from lawa_jax.trajectory.run import STEP_METADATA
from lawa_jax.trajectory.storage import COMMIT_MARKER
from lawa_jax.trajectory.structure import rebuilt
from lawa_jax.tree import Index, LeafSpec


class StepWriter(AbortsOnError):
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
      nodes: empty nodes and strings (`Checkpoint.nodes`).
      strings: string leaves by name (`Checkpoint.strings`).
      chunks: chunk shape of a leaf; by default one chunk a leaf.
      custom_metadata: of the step and of the tree, to be passed on.
      overwrite: replace an existing directory once everything has succeeded.
      staging: where to write meanwhile, on the same file system as `directory`; an existing
        staging directory is continued (say with `adopt` which blocks it holds).

    Raises:
      OutputExistsError: `directory` exists.
      CheckpointWriteError: it cannot be written.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        specs: Mapping[str, LeafSpec],
        keys: Mapping[str, tuple[str, ...]],
        *,
        metrics: Mapping[str, float] | None = None,
        item: str = "model",
        json_items: Mapping[str, Any] | None = None,
        key_types: Mapping[str, tuple[int, ...]] | None = None,
        kinds: Mapping[str, str] | None = None,
        nodes: Sequence[StoredLeaf] = (),
        strings: Mapping[str, str] | None = None,
        chunks: Mapping[str, tuple[int, ...]] | None = None,
        custom_metadata: tuple[Mapping[str, Any], Any] = ({}, None),
        overwrite: bool = False,
        staging: epath.PathLike | None = None,
    ) -> None:
        self._started_ns = time.time_ns()
        self._specs = dict(specs)
        self._item = item
        self._json = dict(json_items or {})
        if metrics is not None:
            self._json["metrics"] = dict(metrics)
        self._strings = dict(strings or {})
        self._entries = _entries(specs, keys, key_types or {}, kinds or {}, nodes, strings)
        self._custom = custom_metadata
        self._lock = threading.Lock()
        self._digests = dict.fromkeys(specs, 0)
        self._written = dict.fromkeys(specs, 0)
        self._folders = {name: ".".join(keys[name]) for name in specs}
        self._headers: dict[str, ArrayHeader] = {}
        self.directory = epath.Path(directory)
        destination = None
        try:
            destination = open_destination(directory, overwrite=overwrite, staging=staging)
            self._destination = destination
            self._sinks = {
                name: self._create(name, (chunks or {}).get(name), self._folders[name])
                for name in specs
            }
        except BaseException as error:
            if destination is not None and staging is None:
                destination.abort()
            if isinstance(error, OSError) and not isinstance(error, LawaError):
                raise self._write_error(error) from error
            raise

    @property
    def staging(self) -> epath.Path:
        """Where the checkpoint is being written."""
        return self._destination.staging

    def _write_error(self, error: OSError) -> CheckpointWriteError:
        return CheckpointWriteError(
            error.errno,
            f"cannot write {self.directory}: {error.strerror or error}"
            f"{f' ({error.filename})' if error.filename else ''}; nothing was published",
        )

    def _create(self, name: str, chunks: tuple[int, ...] | None, folder: str) -> BlockSink:
        spec = self._specs[name]
        chunks = tuple(max(1, n) for n in (spec.shape if chunks is None else chunks))
        header = ArrayHeader(spec.shape, np.dtype(spec.dtype), chunks, "zarr", True, ".", False)
        self._headers[name] = header
        place = f"{self._item}/{folder}"
        self._write_json(f"{place}/.zarray", orbax_layout.array_header(spec, chunks))
        return self._destination.array(place, header)

    def _write_json(self, name: str, content: Any) -> None:
        self._destination.write_text(name, json.dumps(content))

    def write(self, name: str, index: Index, array: np.ndarray) -> int:
        """Write one block of a leaf. Thread-safe; blocks must not overlap.

        Args:
          name: of the leaf.
          index: one slice (step 1) a dimension.
          array: the block, in the leaf's dtype.

        Returns:
          The block's digest, to be given to `adopt` after a restart.

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
                self._sinks[name].write(bounds, array)
            except OSError as error:
                raise self._write_error(error) from error
        digest = leaf_digest_block(array, spec.shape, index)
        self.adopt(name, index, digest)
        return digest

    def holds(self, name: str, index: Index, digest: int) -> bool:
        """Whether a block that an earlier process wrote to the staging directory is there, whole.

        A journal may know of a block that a power failure has taken.
        """
        spec = self._specs[name]
        block = np.empty(tuple(s.stop - s.start for s in index), spec.dtype)
        if block.size:
            folder = os.fspath(self.staging / self._item / self._folders[name])
            bounds = bounds_of(index, spec.shape, name)
            try:
                raw_chunks.read_block(folder, self._headers[name], bounds, block, leaf=name)
            except CorruptCheckpointError:
                return False
        return leaf_digest_block(block, spec.shape, index) == digest

    def adopt(self, name: str, index: Index, digest: int) -> None:
        """Count a block as written, with its digest: by another process, or before a restart."""
        size = 1
        for start, stop in bounds_of(index, self._specs[name].shape, name):
            size *= stop - start
        with self._lock:
            self._digests[name] = combine(self._digests[name], digest)
            self._written[name] += size

    def partial(self) -> dict[str, tuple[int, int]]:
        """What was written so far: digest and number of elements by leaf, for `adopt_partial`."""
        with self._lock:
            return {
                name: (digest, self._written[name])
                for name, digest in self._digests.items()
                if self._written[name]
            }

    def adopt_partial(self, partial: Mapping[str, Sequence[int]]) -> None:
        """Count what another process has written to the same staging directory."""
        with self._lock:
            for name, (digest, elements) in partial.items():
                self._digests[name] = combine(self._digests[name], digest)
                self._written[name] += elements

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
        digests = self.seal(checksums, record)
        if verify:
            verify_checkpoint(self.reopened(), digests)
        self.publish()

    def flush(self) -> None:
        """Make durable what was written so far."""
        try:
            self._destination.flush()
        except OSError as error:
            raise self._write_error(error) from error

    def seal(
        self, checksums: Mapping[str, str] | None = None, record: Mapping[str, Any] | None = None
    ) -> dict[str, str]:
        """The first part of `finish`: complete and sync; the digests it must have."""
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
            self._destination.sync()
        except LawaError:
            raise
        except OSError as error:
            raise self._write_error(error) from error
        return digests

    def publish(self) -> None:
        """The last part of `finish`: make it visible."""
        try:
            self._destination.publish()
        except LawaError:
            raise
        except OSError as error:
            raise self._write_error(error) from error

    def reopened(self) -> Checkpoint:
        """What is staged, as readers will find it, after `seal`."""
        return open_checkpoint(self.staging / self._item, include=["*"])

    def _write_metadata(self) -> None:
        item = self._item
        self._write_json(
            f"{item}/_METADATA", orbax_layout.tree_metadata(self._entries, self._custom[1])
        )
        if self._strings:
            folders = {e.name: e.folder for e in self._entries}
            content = {folders[name]: text for name, text in self._strings.items()}
            self._write_json(f"{item}/{STRINGS_FILE}", content)
        handlers = {item: orbax_layout.PYTREE_HANDLER}
        for name, content in self._json.items():
            self._write_json(f"{name}/{orbax_layout.json_file(name)}", content)
            handlers[name] = orbax_layout.JSON_HANDLER
        for name in handlers:
            self._destination.write_text(f"{name}/{COMMIT_MARKER}", orbax_layout.COMMITTED)
        metadata = orbax_layout.step_metadata(handlers, self._started_ns, self._custom[0])
        self._write_json(STEP_METADATA, metadata)

    def abort(self) -> None:
        """Remove what was written; the target is untouched."""
        self._destination.abort()


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


def _entries(
    specs: Mapping[str, LeafSpec],
    keys: Mapping[str, tuple[str, ...]],
    key_types: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, str],
    nodes: Sequence[StoredLeaf],
    strings: Mapping[str, str] | None,
) -> list[StoredLeaf]:
    entries = [
        StoredLeaf(
            keys[name],
            key_types.get(name, (DICT,) * len(keys[name])),
            # Declared as numpy arrays, they load without the sharding they once had.
            "scalar" if kinds.get(name) == "scalar" else "np.ndarray",
            False,
        )
        for name in specs
    ]
    entries += nodes
    for name in set(strings or {}) - {node.name for node in nodes}:
        path = keys.get(name, tuple(name.split("/")))
        entries.append(StoredLeaf(path, (DICT,) * len(path), "string", False))
    # As Orbax will: what it could not rebuild is not written.
    rebuilt({e.keys: None for e in entries}, {e.keys: e.key_types for e in entries})
    folders: dict[str, str] = {}
    for entry in entries:
        if not entry.has_safe_folder or "\\" in entry.folder:
            raise TreeMismatchError(
                f"leaf {entry.name!r} cannot be stored: its keys make no folder name that Orbax "
                "reads back; rename it, or leave it out with --exclude"
            )
        if folders.setdefault(entry.folder, entry.name) != entry.name:
            raise TreeMismatchError(
                f"leaves {folders[entry.folder]!r} and {entry.name!r} would be stored in one "
                f"folder {entry.folder!r}, since Orbax joins keys by dots; rename one"
            )
    for folder, name in folders.items():
        for end in (i for i, letter in enumerate(folder) if letter == "/"):
            if folder[:end] in folders:
                raise TreeMismatchError(
                    f"leaf {name!r} would be stored inside leaf {folders[folder[:end]]!r}; "
                    "rename one"
                )
    return entries
