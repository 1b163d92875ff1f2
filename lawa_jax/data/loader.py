"""Batches by Grain, in an order that is a pure function of (seed, epoch, position).

A training position is therefore one number, the samples seen in this epoch: a run resumes there
with any number of threads, workers or processes and sees the same batches, augmentation included.
"""

import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from lawa_jax.data import Batch
from lawa_jax.errors import ConfigError

# Augmentation: (example, generator) -> example.
Transform = Callable[[Any, np.random.Generator], Any]


class Source(Protocol):
    """Examples by index: each a dict of numpy arrays of fixed shapes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]: ...


def epoch_seed(seed: int, epoch: int, purpose: int = 0) -> int:
    """A 32-bit seed for one purpose in one epoch, independent of its neighbours."""
    return int(np.random.SeedSequence([seed, epoch, purpose]).generate_state(1)[0])


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    transform: Transform | None = None,
    process: tuple[int, int] = (0, 1),
    threads: int = 4,
    workers: int = 0,
) -> Iterator[Batch]:
    """Shuffled full batches of one epoch from sample `start` on; a last partial batch is dropped.

    Every process gets a contiguous part of each global batch, so that the global array is the
    same for any number of processes.

    Args:
      source: examples by index.
      batch_size: global batch size in samples.
      seed: of the run; `epoch` counts from 1.
      start: samples of this epoch already seen, a multiple of `batch_size`.
      transform: random augmentation of one example.
      process: (index, count) of this process.
      threads: decoding threads, in this process or in each worker.
      workers: processes that load; 0: this one does. Batches are the same for any number.

    Raises:
      ConfigError: fewer examples than a batch, or sizes that do not divide.
    """
    index, count = process
    local = _local_size(batch_size, count)
    if len(source) < batch_size:
        raise ConfigError(
            f"the training set has {len(source)} examples, fewer than one batch of {batch_size}; "
            "choose a smaller batch_size"
        )
    if start % batch_size:
        raise ConfigError(f"start {start} is not at a batch boundary of {batch_size}")
    data = grain.MapDataset.source(source).shuffle(seed=epoch_seed(seed, epoch))
    if transform is not None:
        # Before any slicing, which would give every process the same randomness.
        data = data.random_map(transform, seed=epoch_seed(seed, epoch, purpose=1))
    data = data[: len(source) // batch_size * batch_size].batch(local)
    data = data[start // local + index :: count]
    return _iterate(data, source, threads, workers)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    process: tuple[int, int] = (0, 1),
    threads: int = 4,
    workers: int = 0,
) -> Iterator[Batch]:
    """All examples once, in order; the last batch is padded, and ``mask`` [B] is False there.

    Padding repeats the last example; a masked sample counts nowhere. With several processes each
    gets every count-th local batch, and all get equally many.

    Raises:
      ConfigError: a batch size that the processes cannot divide.
    """
    index, count = process
    local = _local_size(batch_size, count)
    number = -(-len(source) // batch_size) * count
    examples = _Padded(source, number * local)
    data = grain.MapDataset.source(examples).batch(local)[index::count]
    return _iterate(data, source, threads, workers)


def _local_size(batch_size: int, processes: int) -> int:
    if batch_size % processes:
        raise ConfigError(f"batch size {batch_size} cannot be divided over {processes} processes")
    return batch_size // processes


class _Padded:
    """A source lengthened to `length` by repeating its last example with ``mask`` False."""

    def __init__(self, source: Source, length: int) -> None:
        self._source, self._length = source, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        real = int(index) < len(self._source)
        example = dict(self._source[index if real else len(self._source) - 1])
        example["mask"] = np.asarray(real)
        return example


def _iterate(data: Any, source: Source, threads: int, workers: int) -> Iterator[Batch]:
    if len(data) == 0:
        return iter(())
    # In batches: every thread fills one of its own.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2)
    data = data.to_iter_dataset(options)
    if workers:
        # Grain reads its flags when it starts workers, and only programs of absl parse any.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        # Each worker takes every workers-th of the finished batches, so that their order and
        # content cannot depend on how many there are.
        data = data.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_begin_worker,
        )
    return _consume(iter(data), getattr(source, "inspect", None))


@contextmanager
def _signals_held() -> Iterator[None]:
    """Workers begun within the block never see SIGINT and SIGTERM, not even while they start.

    A new process inherits the mask of blocked signals. What arrives for this one waits.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(index: int, count: int) -> None:
    """Let a worker live exactly as long as the process that it loads for.

    Ctrl-C and a scheduler's SIGTERM reach every process of a job. The one that trains still wants
    the batch under way and ends its workers itself; if it is killed, they must not stay behind.
    """
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _consume(batches: Any, inspect: Callable[[Batch], Batch] | None) -> Iterator[Batch]:
    """The batches, after the source's own look at each; workers end when the reader is done."""
    try:
        with _signals_held():
            first = list(islice(batches, 1))
        for batch in chain(first, batches):
            yield batch if inspect is None else inspect(batch)
    finally:
        batches.close()


class ArraySource:
    """In-memory arrays of equal length as a source: ``{"image": [N, ...], "label": [N]}``."""

    def __init__(self, **arrays: np.ndarray) -> None:
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ConfigError(f"arrays of one source must have equal lengths, found {lengths}")
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        return {name: array[index] for name, array in self.arrays.items()}
