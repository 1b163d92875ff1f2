"""Saving the steps of one directory through `orbax.checkpoint.CheckpointManager`.

Orbax writes a step under a temporary name and renames it when it is complete. It syncs nothing to
the disk and keeps no digests of its own, so this module adds the digests as a JSON item, and before
the rename it syncs what was written, reads it back and compares the digests.
"""

import errno
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from lawa_jax.distributed import Group, together
from lawa_jax.errors import CheckpointWriteError, LawaError, reason_of
from lawa_jax.output.publish import fsync_path, fsync_tree, publish
from lawa_jax.output.step_writer import checksums_json
from lawa_jax.training.snapshot import Snapshot, digests, orbax_tree, slices
from lawa_jax.trajectory.checkpoint import Checkpoint, Located
from lawa_jax.trajectory.checksums import STEP_METADATA
from lawa_jax.trajectory.digest import combine, leaf_digest_block, to_hex
from lawa_jax.trajectory.integrity import check_digest
from lawa_jax.trajectory.storage import TMP_MARKER, is_object_store

ITEM = "model"
_REPLACING = f"replacing{TMP_MARKER}"


class StepSaver:
    """The steps of one directory; use it from one thread, and `close` it.

    Args:
      root: the directory that holds the steps.
      group: processes that save together, each the parts it holds; all make the same calls.
      keep: how many of the steps last saved to keep; None keeps all.
    """

    def __init__(self, root: epath.Path, group: Group, *, keep: int | None = None) -> None:
        self._root, self._group, self._keep = root, group, keep
        self._manager: Any = None
        self._staging: epath.Path | None = None

    def save(self, step: int, part: Snapshot, metrics: Mapping[str, float] | None) -> None:
        """Save a step to the end: when this returns it is published, and durable.

        A step that exists is replaced by the complete new one in one rename, so that a process
        killed at any moment leaves the old or the new one. (On an object store, which has no such
        rename, the old one is deleted first.)

        Raises:
          CheckpointWriteError: it could not be saved; nothing was published.
          CorruptCheckpointError: what was read back is not what was written.
        """
        directory = self._root / str(step)
        try:
            self._save(directory, step, part, metrics)
        except Exception as error:  # Orbax and TensorStore raise many types.
            if isinstance(error, LawaError):
                raise
            raise CheckpointWriteError(
                getattr(error, "errno", None) or errno.EIO,
                f"cannot write {directory}: {reason_of(error)}; nothing was published",
            ) from error

    def _save(
        self, directory: epath.Path, step: int, part: Snapshot, metrics: Mapping[str, float] | None
    ) -> None:
        group = self._group
        own = digests(part)
        shares = group.exchange("digests", own)
        whole = {name: to_hex(combine(*(s.get(name, 0) for s in shares))) for name in part}
        items: dict[str, Any] = {
            "checksums": checksums_json(whole, {name: leaf.spec for name, leaf in part.items()})
        }
        if metrics is not None:
            items["metrics"] = dict(metrics)
        exists = group.exchange("exists", directory.exists())[0]
        if exists and not is_object_store(directory):
            aside = self._root / _REPLACING
            together(group, "aside", lambda: None if group.index else _make_empty(aside))
            manager = self._open(aside)
            try:
                self._write(manager, aside, step, part, own, items)
            finally:
                manager.close()
            together(group, "replaced", lambda: None if group.index else _swap(aside, directory))
            return
        if self._manager is None:
            self._manager = self._open(self._root, self._keep)
        if exists:
            self._manager.delete(step)
        self._write(self._manager, self._root, step, part, own, items)

    def _open(self, root: epath.Path, keep: int | None = None) -> Any:
        import orbax.checkpoint as ocp  # a second, which training need not wait for

        logging.getLogger("absl").addFilter(_is_worth_saying)
        processes = None if self._group.count == 1 else set(range(self._group.count))
        options = ocp.CheckpointManagerOptions(
            create=False,
            max_to_keep=keep,
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._complete,
                barrier_sync_fn=self._barrier,
                # Else a save that fails at once leaves a thread that waits for five minutes.
                create_directories_asynchronously=False,
            ),
            # With named processes Orbax waits through the coordination service; its collectives
            # on the devices would meet those of the training step.
            multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=processes),
        )
        handlers = {
            ITEM: ocp.PyTreeCheckpointHandler(
                use_ocdbt=False,
                use_compression=False,
                multiprocessing_options=options.multiprocessing_options,
            ),
            "checksums": ocp.JsonCheckpointHandler(),
        }
        return ocp.CheckpointManager(root, options=options, item_handlers=handlers)

    def _write(
        self,
        manager: Any,
        root: epath.Path,
        step: int,
        part: Snapshot,
        own: Mapping[str, int],
        items: Mapping[str, Any],
    ) -> None:
        """Save one new step below `root`, completely."""
        import orbax.checkpoint as ocp

        # On an object store Orbax writes in place, and a marker file stands for the rename.
        staging = root / (str(step) if is_object_store(root) else f"{step}{TMP_MARKER}")

        def verify() -> None:
            # Items have temporary names, too, until all processes have written.
            item = staging / f"{ITEM}{TMP_MARKER}"
            _check(item if item.exists() else staging / ITEM, staging, part, own)
            self._is_verified = True

        self._staging, self._verify, self._is_verified = staging, verify, False
        arguments = ocp.args.Composite(
            **{ITEM: ocp.args.PyTreeSave(orbax_tree(part))},
            **{name: ocp.args.JsonSave(content) for name, content in items.items()},
        )
        # `force` also saves a step lower than the newest; False would mean that it was not saved.
        saved = manager.save(step, args=arguments, force=True)
        manager.wait_until_finished()
        directory = root / str(step)
        if not (saved and self._is_verified and (directory / STEP_METADATA).exists()):
            raise CheckpointWriteError(
                errno.EIO, f"cannot write {directory}: Orbax did not save it; nothing was published"
            )
        # Orbax stamps a step between our sync and its rename.
        together(self._group, "durable", lambda: None if self._group.index else _sync(directory))

    def _barrier(self, *, key: str, timeout_ms: int) -> None:
        """How Orbax waits for all processes: a failure of one is the failure of all."""
        if "async_write_complete" in key and self._group.count > 1:
            # Until all have written, files come and go.
            self._group.exchange("written")
            # Process 0 cannot make durable what still is in another machine's memory.
            together(self._group, "synced", lambda: _sync(self._staging))
            together(self._group, "verified", self._verify)
        self._group.exchange(f"orbax {key}")

    def _complete(self) -> None:
        """Called by Orbax in process 0, before it renames a complete step to its final name."""
        assert self._staging is not None
        _sync(self._staging)
        if self._group.count == 1:
            self._verify()

    def close(self) -> None:
        """Release Orbax's threads, and remove what a failed save has left."""
        try:
            if self._manager is not None:
                self._manager.close()
        finally:
            if self._staging is not None and self._group.index == 0:
                for leftover in (self._staging, self._root / _REPLACING):
                    shutil.rmtree(leftover, ignore_errors=True)


def _check(item: epath.Path, step: epath.Path, part: Snapshot, own: Mapping[str, int]) -> None:
    """Read back what this process has written and compare its digests."""
    stored = Checkpoint(Located(item, step, None, str(step)), ("*",), ())
    for name, expected in own.items():
        found = []
        for bounds in part[name].counted:
            index = slices(bounds)
            block = np.empty(tuple(stop - start for start, stop in bounds), part[name].spec.dtype)
            stored.read(name, index, block)
            found.append(leaf_digest_block(block, part[name].spec.shape, index))
        check_digest(stored.label, name, combine(*found), to_hex(expected))


def _make_empty(directory: epath.Path) -> None:
    if directory.exists():
        directory.rmtree()
    directory.mkdir(parents=True)


def _swap(aside: epath.Path, directory: epath.Path) -> None:
    publish(Path(aside / directory.name), Path(directory), overwrite=True)
    aside.rmtree()


def _sync(directory: epath.Path) -> None:
    """Make a directory and its name durable; object stores do so by themselves."""
    if not is_object_store(directory):
        fsync_tree(Path(directory))
        fsync_path(str(directory.parent))


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Orbax warns at every save that files of a layout which is not used are not there."""
    return "Skipping merge of OCDBT" not in record.getMessage()
