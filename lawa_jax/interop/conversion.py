"""Converting a whole trajectory: many files, one run; parallel, resumable, atomic per epoch."""

import os
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lawa_jax.errors import (
    CheckpointWriteError,
    CorruptCheckpointError,
    LawaError,
    SelectionError,
)
from lawa_jax.interop import epoch_writer, run_files
from lawa_jax.interop.alignment import aligned
from lawa_jax.interop.names import Conversion, Converter, Names
from lawa_jax.output.space import check_space
from lawa_jax.trajectory.file_steps import (
    FoundFiles,
    NumberedFile,
    Unit,
    check_epoch,
    discover,
)
from lawa_jax.trajectory.formats.huggingface import open_state
from lawa_jax.trajectory.formats.state_dict import StateDict, told_left_out


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert; see `convert_trajectory`."""

    epochs: tuple[int, int] | None = None
    every: int = 1
    workers: int = 2
    verify: bool = False
    dry_run: bool = False
    overwrite: bool = False
    allow_gaps: bool = False
    trust_names: bool = False
    wrapper: str | None = None
    stubs: tuple[str, ...] = ()
    by: Unit | None = None
    match: str | None = None


@dataclass(frozen=True)
class Summary:
    """What was done: epochs converted now, found finished before, bytes written, tensors left out
    of every file."""

    converted: tuple[int, ...]
    finished_before: tuple[int, ...]
    nbytes: int
    left_out: str = ""


class _Stopped(Exception):
    """Another epoch failed; this one is given up."""


def convert_trajectory(
    source: Path, run: Path, convert: Converter, options: ConvertOptions
) -> Summary:
    """Turn a folder of checkpoints into a run directory.

    Args:
      source: the folder, or a single file.
      run: the run directory to make or to continue.
      convert: decides names and layouts of one file.
      options: ``epochs`` (first, last) and ``every`` choose; ``workers`` files are converted at
        once; ``verify`` re-reads and compares every tensor; ``dry_run`` opens every file and
        writes nothing; ``overwrite`` replaces epochs that come from elsewhere or are damaged;
        ``allow_gaps`` goes on although epochs are missing; ``trust_names`` ignores epochs stated
        in files; ``wrapper`` and ``stubs`` as in `open_state`; ``by`` and ``match`` as in
        `discover`.

    Raises:
      SelectionError: missing or duplicate epochs, or names and contents disagree.
      TreeMismatchError: not the model expected, or epochs of different shapes.
      CorruptCheckpointError, UnsafePickleError: a file is damaged or hostile.
      OutputExistsError: `run` is something else, or another process converts into it.
      CheckpointWriteError: no space, or not writable. Finished epochs are kept in any case.
    """

    def opened(path: Path) -> StateDict:
        return open_state(path, wrapper=options.wrapper, stubs=options.stubs)

    trajectory = discover(
        source,
        opened=opened,
        epochs=options.epochs,
        every=options.every,
        by=options.by,
        match=options.match,
    )
    _check_gaps(trajectory, options.allow_gaps)
    for text in trajectory.ignored:
        _say(f"ignored: {text}")
    for text in trajectory.notes:
        _say(f"note: {text}")
    first = trajectory.checkpoints[0]
    state = opened(first.path)
    plan = convert(state)
    left_out = told_left_out(state.left_out)
    for note in (*plan.notes, *([f"left out: {left_out}"] if left_out else [])):
        _say(f"note: {note}")
    job = _Job(plan, first, opened, convert, options)
    if options.dry_run:
        return job.rehearse(trajectory.checkpoints)
    with run_files.prepared(run, plan, source):
        return replace(job.run(run, trajectory.checkpoints), left_out=left_out)


def _check_gaps(trajectory: FoundFiles, allowed: bool) -> None:
    if not trajectory.missing:
        return
    shown = ", ".join(map(str, trajectory.missing[:10]))
    more = ", ..." if len(trajectory.missing) > 10 else ""
    text = f"{len(trajectory.missing)} missing: epoch {shown}{more}"
    if not allowed:
        raise SelectionError(
            f"{text}; fetch them, choose others with --epochs, or say --allow_gaps"
        )
    _say(f"note: {text}")


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


class _Job:
    """Everything the epochs of one conversion share."""

    def __init__(
        self,
        plan: Conversion,
        first: NumberedFile,
        opened: Any,
        convert: Converter,
        options: ConvertOptions,
    ) -> None:
        self._names, self._first = plan.names, first
        self._opened, self._convert, self._options = opened, convert, options
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._offset: int | None = None

    def _open(self, found: NumberedFile) -> tuple[StateDict, Names]:
        """Open one file and check that it belongs to the trajectory."""
        state = self._opened(found.path)
        if not self._options.trust_names:
            with self._lock:
                self._offset = check_epoch(found, dict(state.facts), self._offset)
        names = self._convert(state).names
        return state, aligned(self._names, names, state, self._first.path)

    def rehearse(self, checkpoints: Iterable[NumberedFile]) -> Summary:
        """Open and check every file, write nothing."""
        checkpoints = list(checkpoints)
        for found in checkpoints:
            self._open(found)
            print(f"{found.unit} {found.epoch} ({found.by}): {found.path}")
        epochs = tuple(found.epoch for found in checkpoints)
        return Summary((), (), self._names.nbytes * len(epochs))

    def run(self, run: Path, checkpoints: Iterable[NumberedFile]) -> Summary:
        """Convert what is not finished yet."""
        todo: list[NumberedFile] = []
        before: list[int] = []
        replaced: set[int] = set()
        for found in checkpoints:
            if self._is_finished(run / "epochs" / str(found.epoch), found, replaced):
                before.append(found.epoch)
            else:
                todo.append(found)
        remedy = "choose fewer with --epochs or --every, or another disk"
        check_space(run, self._names.nbytes * len(todo), remedy)
        done = self._convert_all(run, todo, replaced)
        return Summary(tuple(sorted(done)), tuple(before), self._names.nbytes * len(done))

    def _is_finished(self, directory: Path, found: NumberedFile, replaced: set[int]) -> bool:
        if not directory.is_dir():
            return False
        state, names = self._open(found)
        try:
            return epoch_writer.is_finished(directory, state, names, verify=self._options.verify)
        except CorruptCheckpointError as error:
            _say(f"note: {error}; converting epoch {found.epoch} again")
        except LawaError:
            if not self._options.overwrite:
                raise
        replaced.add(found.epoch)
        return False

    def _convert_all(self, run: Path, todo: list[NumberedFile], replaced: set[int]) -> list[int]:
        done: list[int] = []
        with (
            tqdm(
                total=self._names.nbytes * len(todo),
                unit="B",
                unit_scale=True,
                unit_divisor=1000,
                desc=f"{len(todo)} epochs",
                disable=not todo,
                mininterval=0.5,
                file=sys.stderr,
            ) as bar,
            _pool(self._options.workers, self._stop) as pool,
        ):

            def one(found: NumberedFile) -> None:
                if self._stop.is_set():
                    raise _Stopped
                self._one(run, found, replaced, bar)
                done.append(found.epoch)

            futures = [pool.submit(one, found) for found in todo]
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            if any(future.exception() for future in finished):
                self._stop.set()
                pool.shutdown(cancel_futures=True)
        errors = [f.exception() for f in futures if not f.cancelled() and f.exception()]
        for error in errors:
            if error is not None and not isinstance(error, _Stopped):
                if done:
                    # Other models and wrong selections stay what they are.
                    mended = isinstance(error, CorruptCheckpointError | CheckpointWriteError)
                    then = "; once that is mended the same command goes on" if mended else ""
                    _say(f"{len(done)} epochs are converted and kept{then}")
                raise error
        return done

    def _one(self, run: Path, found: NumberedFile, replaced: set[int], bar: Any) -> None:
        state, names = self._open(found)

        def progress(nbytes: int) -> None:
            if self._stop.is_set():
                raise _Stopped
            with self._lock:
                bar.update(nbytes)

        directory = run / "epochs" / str(found.epoch)
        epoch_writer.write_epoch(
            directory,
            state,
            names,
            found.epoch,
            progress=progress,
            threads=max(1, (os.cpu_count() or 1) // max(1, self._options.workers)),
            overwrite=found.epoch in replaced,
        )
        if self._options.verify:
            epoch_writer.compare(directory, state, names)


@contextmanager
def _pool(workers: int, stop: threading.Event) -> Iterator[ThreadPoolExecutor]:
    """Threads that give up at the next block once something interrupts the main thread."""
    pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="convert")
    try:
        yield pool
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
