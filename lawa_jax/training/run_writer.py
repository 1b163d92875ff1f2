"""Saving a run's models and resume states in the background, in order, and always to the end.

Training stands still only for the copy from device to host. Digests, writing, verifying and
publishing happen in one worker thread, so that a resume state is never published before the models
it follows. Leaving the ``with`` block waits for everything, also after an exception.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import jax
import numpy as np
from etils import epath

from lawa_jax.distributed import ALONE, Group
from lawa_jax.output.tree_writer import write_checkpoint
from lawa_jax.training.snapshot import snapshot, write_snapshot
from lawa_jax.trajectory import list_steps
from lawa_jax.trajectory.storage import TMP_MARKER
from lawa_jax.tree import PyTree, named_leaves, nested


class RunWriter:
    """Writes ``epochs/<e>`` and ``resume/<step>`` of one run.

    Args:
      run: the run directory.
      keep_resume: how many resume states to keep; models are all kept.
      group: processes that write together, each the parts it holds; all make the same calls.
    """

    def __init__(self, run: epath.Path, *, keep_resume: int = 2, group: Group = ALONE) -> None:
        self._group = group
        self._epochs, self._resume = run / "epochs", run / "resume"
        self._keep = keep_resume
        for folder in (self._epochs, self._resume) if group.index == 0 else ():
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"*{TMP_MARKER}*"):
                # Half-written by a killed session of this run; a run has one writer at a time.
                leftover.rmtree()
        group.exchange("run folders")
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="lawa-save")
        self._pending: dict[tuple[str, int], Future[None]] = {}
        self.stalled = 0.0
        """Seconds the caller was held up in all: copies, and waits for an earlier save."""

    def save_epoch(self, epoch: int, model: PyTree, metrics: Mapping[str, float]) -> None:
        """Save the model at the end of an epoch, with its metrics and leaf digests.

        A model of this epoch that exists already is replaced once the new one is complete: it
        stems from training past the state that this run was resumed from.
        """
        self._submit(
            ("epoch", epoch),
            model,
            lambda tree: self._write(self._epochs / str(epoch), tree, dict(metrics)),
        )

    def save_resume(self, step: int, state: PyTree) -> None:
        """Save everything needed to go on from `step`; older states beyond `keep_resume` go."""

        def write(tree: Any) -> None:
            self._write(self._resume / str(step), tree, None)
            if self._group.index == 0:
                for old in list_steps(self._resume)[: -self._keep]:
                    (self._resume / str(old)).rmtree()

        self._submit(("resume", step), state, write)

    def _write(self, directory: epath.Path, tree: Any, metrics: dict[str, float] | None) -> None:
        if self._group.count == 1:
            write_checkpoint(directory, tree, metrics=metrics, overwrite=True)
        else:
            write_snapshot(directory, tree, self._group, metrics=metrics, overwrite=True)

    def wait_for_epoch(self, epoch: int) -> float:
        """Wait until an epoch's model is published; seconds waited.

        Raises:
          OSError: it could not be written.
        """
        started = time.perf_counter()
        future = self._pending.get(("epoch", epoch))
        if future is not None:
            future.result()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Wait for everything submitted; raises the first error."""
        for future in list(self._pending.values()):
            future.result()
        self._pending.clear()

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._worker.shutdown(wait=True)
        if error is None:
            self.wait()

    def _submit(self, key: tuple[str, int], tree: PyTree, write: Any) -> None:
        started = time.perf_counter()
        for earlier, future in list(self._pending.items()):
            # One state in flight bounds host memory; a failed save must not go unnoticed.
            if earlier[0] == key[0] or future.done():
                future.result()
                del self._pending[earlier]
        copy = host_copy(tree) if self._group.count == 1 else snapshot(tree, self._group)
        self._pending[key] = self._worker.submit(write, copy)
        self.stalled += time.perf_counter() - started


def host_copy(tree: PyTree) -> dict[str, Any]:
    """The tree as nested dicts of numpy arrays that share no memory with it.

    On CPU `jax.device_get` may alias a buffer that the next training step reuses, hence the copy.
    NamedTuples and lists become dicts by leaf name, as they do in any checkpoint.
    """
    leaves = named_leaves(tree)
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    return nested({tuple(name.split("/")): np.array(leaf) for name, leaf in leaves.items()})
