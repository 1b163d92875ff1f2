"""Order and augmentation are pure functions of (seed, epoch, position), however they are loaded."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lawa_jax.data import imagenet
from lawa_jax.data.loader import (
    ArraySource,
    epoch_seed,
    eval_batches,
    train_batches,
)
from lawa_jax.errors import ConfigError, CorruptDataError


def numbers(length):
    return ArraySource(x=np.arange(length), y=np.arange(length) * 10)


def jitter(example, rng):
    return {**example, "noise": rng.random(3)}


def load(length=50, **options):
    defaults = {"batch_size": 8, "seed": 3, "epoch": 1, "transform": jitter}
    return list(train_batches(numbers(length), **{**defaults, **options}))


def same(one, other):
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        for a, b in zip(one, other, strict=True)
    )


def test_an_epoch_is_a_permutation_without_its_tail():
    batches = load()
    assert [batch["x"].shape for batch in batches] == [(8,)] * 6
    seen = np.concatenate([batch["x"] for batch in batches])
    assert len(set(seen.tolist())) == 48
    assert (seen != np.sort(seen)).any()
    for batch in batches:
        np.testing.assert_array_equal(batch["y"], batch["x"] * 10)


def test_order_and_noise_depend_on_seed_and_epoch_alone():
    base = load()
    assert same(base, load())
    for threads in (0, 1, 7):
        assert same(base, load(threads=threads))
    for other in (load(seed=4), load(epoch=2)):
        assert (base[0]["x"] != other[0]["x"]).any()
        noise = {tuple(row) for batch in base for row in batch["noise"]}
        assert not noise & {tuple(row) for batch in other for row in batch["noise"]}
    # No two samples share their randomness.
    assert len(noise) == 48


def test_the_tail_left_out_differs_between_epochs():
    tails = [
        set(range(50)) - {int(x) for batch in load(epoch=epoch) for x in batch["x"]}
        for epoch in range(1, 9)
    ]
    assert len({frozenset(tail) for tail in tails}) > 4


@pytest.mark.parametrize("start", [0, 8, 24, 40, 48])
def test_starting_within_an_epoch(start):
    assert same(load(start=start), load()[start // 8 :])


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("start", [0, 16])
def test_processes_share_the_global_batch(count, start):
    parts = [load(process=(index, count), start=start) for index in range(count)]
    whole = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert same(whole, load(start=start))


@settings(max_examples=25)
@given(
    length=st.integers(1, 60),
    local=st.integers(1, 7),
    count=st.integers(1, 4),
    step=st.integers(0, 5),
)
def test_any_split_of_any_data(length, local, count, step):
    size = local * count
    if length < size:
        with pytest.raises(ConfigError, match="fewer than one batch"):
            load(length, batch_size=size, threads=0)
        return
    start = min(step, length // size) * size
    whole = load(length, batch_size=size, threads=0)
    assert len(whole) == length // size
    for index in range(count):
        part = load(length, batch_size=size, start=start, process=(index, count), threads=0)
        rows = slice(index * local, (index + 1) * local)
        expected = [{key: batch[key][rows] for key in batch} for batch in whole[start // size :]]
        assert same(part, expected)


def test_evaluation_sees_everything_once_in_order():
    batches = list(eval_batches(numbers(10), batch_size=4))
    assert [batch["x"].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert [batch["mask"].tolist() for batch in batches] == [
        [True] * 4, [True] * 4, [True, True, False, False],
    ]  # fmt: skip
    assert all(batch["mask"].dtype == bool for batch in batches)


@pytest.mark.parametrize(("length", "count"), [(10, 2), (3, 4), (16, 4), (1, 2)])
def test_evaluation_over_processes(length, count):
    parts = [
        list(eval_batches(numbers(length), batch_size=8, process=(index, count)))
        for index in range(count)
    ]
    assert len({len(part) for part in parts}) == 1
    steps = [
        np.concatenate([batch["x"][batch["mask"]] for batch in step])
        for step in zip(*parts, strict=False)
    ]
    assert np.concatenate(steps).tolist() == list(range(length))
    assert all(batch["x"].shape == (8 // count,) for part in parts for batch in part)


def test_evaluation_of_nothing():
    assert list(eval_batches(numbers(0), batch_size=4)) == []


def test_errors():
    with pytest.raises(ConfigError, match="batch size 9 cannot be divided over 2 processes"):
        load(batch_size=9, process=(0, 2))
    with pytest.raises(ConfigError, match="batch size 9 cannot be divided over 2 processes"):
        eval_batches(numbers(5), batch_size=9, process=(0, 2))
    with pytest.raises(ConfigError, match="has 50 examples, fewer than one batch of 64; choose"):
        load(batch_size=64)
    with pytest.raises(ConfigError, match="start 12 is not at a batch boundary of 8"):
        load(start=12)
    with pytest.raises(ConfigError, match=r"equal lengths, found \{'a': 2, 'b': 3\}"):
        ArraySource(a=np.zeros(2), b=np.zeros(3))


def test_array_source():
    source = numbers(5)
    assert len(source) == 5
    assert source[4] == {"x": 4, "y": 40}
    assert source[np.int64(2)] == {"x": 2, "y": 20}


def test_epoch_seeds():
    # Written down: a change would change the order of every run that resumes.
    assert epoch_seed(0, 1) == 3964924996
    seeds = [epoch_seed(*key) for key in itertools.product(range(10), range(10), range(3))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_the_order_of_a_seed_is_kept():
    # The same for Grain's permutation.
    assert load()[0]["x"].tolist() == [29, 30, 31, 7, 26, 3, 47, 19]


def test_worker_processes_change_nothing(image_folder):
    data = imagenet.find(image_folder, image_size=8)
    # One file that worker processes replace and this one reports.
    (image_folder / "train" / "bee" / "3.JPEG").write_bytes(b"")

    def batches(workers, start=0):
        return list(
            train_batches(
                data.train,
                batch_size=4,
                seed=0,
                epoch=1,
                start=start,
                transform=data.augment,
                threads=1,
                workers=workers,
            )
        )

    whole = batches(0)
    assert len(whole) == 6
    assert same(batches(2), whole)
    # Resumed with another number of workers, more than there are batches left.
    assert same(batches(4, start=12), whole[3:])


def test_errors_of_worker_processes(image_folder):
    data = imagenet.find(image_folder, image_size=8, corrupt_budget=0)
    (image_folder / "val" / "bee" / "2.JPEG").write_bytes(b"")
    with pytest.raises(CorruptDataError, match=r"val/bee/2\.JPEG: the file is empty"):
        list(eval_batches(data.validation, batch_size=3, threads=1, workers=1))


def test_leaving_early_ends_the_workers(image_folder):
    data = imagenet.find(image_folder, image_size=8)
    batches = eval_batches(data.validation, batch_size=3, threads=1, workers=1)
    next(batches)
    assert multiprocessing.active_children()
    batches.close()
    assert not multiprocessing.active_children()


def test_signals_for_all_leave_the_workers_loading(image_folder):
    data = imagenet.find(image_folder, image_size=8)
    batches = eval_batches(data.validation, batch_size=3, threads=1, workers=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert len(list(batches)) == 2


def test_workers_end_with_a_killed_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, numpy, time\n"
        "from lawa_jax.data.loader import ArraySource, eval_batches\n"
        "if __name__ == '__main__':\n"
        "    source = ArraySource(x=numpy.arange(1000))\n"
        "    batches = eval_batches(source, batch_size=1, threads=1, workers=1)\n"
        "    next(batches)\n"
        "    print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    ) as process:
        worker = psutil.Process(int(process.stdout.readline()))
        process.kill()
    worker.wait(timeout=30)
