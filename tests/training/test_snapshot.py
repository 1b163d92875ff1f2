"""What each of several processes saves of a tree."""

from typing import NamedTuple

import pytest
from etils import epath

from lawa_jax.errors import CheckpointWriteError
from lawa_jax.training.run_writer import RunWriter
from lawa_jax.training.snapshot import saving_devices


class Second:
    """The second of two processes, the first of which finds everything in order."""

    index, count = 1, 2

    def exchange(self, topic, value=None):
        return [{"ok": None}, value]


def test_a_run_directory_that_is_not_shared_is_said_at_once(tmp_path):
    with pytest.raises(CheckpointWriteError, match=r"process 1 does not see .*epochs, which"):
        RunWriter(epath.Path(tmp_path), group=Second())


class Device(NamedTuple):
    process_index: int
    id: int


class Sharding(NamedTuple):
    indices: dict

    def devices_indices_map(self, shape):
        return self.indices


def test_what_several_processes_hold_is_cut_into_equal_shares():
    a, b, c, d = Device(0, 0), Device(0, 1), Device(1, 2), Device(1, 3)
    everything = slice(None)
    left, right = (everything, slice(0, 3)), (everything, slice(3, 6))
    halves = Sharding({a: left, b: right, c: left, d: right})
    # Rows 0 and 1 are saved by process 0, the others by process 1.
    assert saving_devices(halves, (4, 6)).tolist() == [[[a, b], [c, d]]]
    whole = Sharding(dict.fromkeys((a, b, c, d), (everything,)))
    assert saving_devices(whole, (6,)).tolist() == [[b, d]]
    # Three elements do not divide: both take part, the first counts.
    assert saving_devices(whole, (3,)).tolist() == [[b], [d]]
    scalar = Sharding(dict.fromkeys((a, c), ()))
    assert saving_devices(scalar, ()).tolist() == [a, c]
