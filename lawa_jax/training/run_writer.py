"""Saving a run's models and resume states in the background, in order, and always to the end.

Training stands still only for the copy from device to host. Digests and all that Orbax does to save
happen in one worker thread, one save after the other, so that a resume state is never published
before the models it follows are durable. (Orbax's own asynchronous save would copy, make
directories and wait for an earlier save in the training thread.) Leaving the ``with`` block waits
for everything, also after an exception.
"""

import errno
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from etils import epath

from lawa_jax.distributed import ALONE, Group, together
from lawa_jax.errors import CheckpointWriteError
from lawa_jax.training.snapshot import Snapshot, snapshot
from lawa_jax.training.step_saver import StepSaver
from lawa_jax.trajectory.storage import TMP_MARKER, is_object_store
from lawa_jax.tree import PyTree


class RunWriter:
    """Writes ``epochs/<e>`` and ``resume/<step>`` of one run.

    Args:
      run: the run directory.
      keep_resume: how many resume states to keep; models are all kept.
      group: processes that write together, each the parts it holds; all make the same calls.

    Raises:
      CheckpointWriteError: the processes do not share the run directory.
    """

    def __init__(self, run: epath.Path, *, keep_resume: int = 2, group: Group = ALONE) -> None:
        self._group = group
        for folder in (run / "epochs", run / "resume") if group.index == 0 else ():
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"*{TMP_MARKER}*"):
                # Half-written by a killed session of this run; a run has one writer at a time.
                leftover.rmtree()
        group.exchange("run folders")
        together(group, "one run", lambda: _check_shared(run / "epochs", group))
        self._epochs = StepSaver(run / "epochs", group)
        self._resume = StepSaver(run / "resume", group, keep=keep_resume)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="lawa-save")
        self._pending: dict[tuple[StepSaver, int], Future[None]] = {}
        # A model is saved from when the state that follows it is copied, or the worker would take
        # time from that copy.
        self._copied: list[tuple[StepSaver, int, Snapshot, dict[str, float] | None]] = []
        self.stalled = 0.0
        """Seconds the caller was held up in all: copies, and waits for an earlier save."""

    def save_epoch(self, epoch: int, model: PyTree, metrics: Mapping[str, float]) -> None:
        """Save the model at the end of an epoch, with its metrics and leaf digests.

        It is copied now, and saved from the next call on (of `save_resume`, or of a wait).

        A model of this epoch that exists already is replaced once the new one is complete: it
        stems from training past the state that this run was resumed from.

        Raises:
          TreeMismatchError: the model cannot be saved (`check_savable`).
          CheckpointWriteError, CorruptCheckpointError: an earlier save has failed.
        """
        # Copied here: the caller may go on to change its dict while the worker saves.
        self._submit(self._epochs, epoch, model, dict(metrics))

    def save_resume(self, step: int, state: PyTree) -> None:
        """Save everything needed to go on from `step`; older states beyond `keep_resume` go.

        Raises:
          As `save_epoch`.
        """
        self._submit(self._resume, step, state, None)

    def wait_for_epoch(self, epoch: int) -> float:
        """Wait until an epoch's model is published; seconds waited.

        Raises:
          OSError: it could not be written.
        """
        started = time.perf_counter()
        self._start()
        future = self._pending.get((self._epochs, epoch))
        if future is not None:
            future.result()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Wait for everything submitted; raises the first error."""
        self._start()
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
        self._start()
        for saver in (self._epochs, self._resume):
            self._worker.submit(saver.close)
        self._worker.shutdown(wait=True)
        if error is None:
            self.wait()

    def _submit(
        self, saver: StepSaver, step: int, tree: PyTree, metrics: dict[str, float] | None
    ) -> None:
        started = time.perf_counter()
        if saver is self._epochs:
            self._start()
        for earlier, future in list(self._pending.items()):
            # One state in flight bounds host memory; a failed save must not go unnoticed.
            if earlier[0] is saver or future.done():
                future.result()
                del self._pending[earlier]
        self._copied.append((saver, step, snapshot(tree, self._group), metrics))
        if saver is self._resume:
            self._start()
        self.stalled += time.perf_counter() - started

    def _start(self) -> None:
        """Let the worker save what has been copied."""
        for saver, step, part, metrics in self._copied:
            self._pending[saver, step] = self._worker.submit(saver.save, step, part, metrics)
        self._copied.clear()


def _check_shared(folder: epath.Path, group: Group) -> None:
    if not is_object_store(folder) and not folder.exists():
        raise CheckpointWriteError(
            errno.ENOENT,
            f"process {group.index} does not see {folder}, which process 0 made: the run directory "
            "must be on a file system that all processes share, or on an object store (gs://)",
        )
