"""What one process tells the others, and that nobody waits for one that failed."""

import pytest

from lawa_jax.distributed import ALONE, together
from lawa_jax.distributed.group import Processes, agree
from lawa_jax.errors import CheckpointWriteError, ConfigError, PeerError


class Service:
    """The coordination service in memory; `late` processes never arrive at a barrier."""

    def __init__(self, late=()):
        self.values, self.late = {}, late

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def key_value_delete(self, key):
        del self.values[key]

    def key_value_dir_get(self, folder):
        return [(k, v) for k, v in self.values.items() if k.startswith(folder)]

    def wait_at_barrier(self, name, timeout_in_ms):
        if self.late:
            raise RuntimeError("DEADLINE_EXCEEDED")


def test_one_process_hears_itself():
    assert ALONE.exchange("topic", 3) == [3]
    assert together(ALONE, "topic", lambda: 4) == [4]


def test_values_arrive_in_the_order_of_processes_and_are_tidied_away():
    service = Service()
    service.values["lawa/a/1/1"] = "20"
    service.values["lawa/a/2/1"] = "21"
    group = Processes(service, 0, 2)
    assert group.exchange("a", 10) == [10, 20]
    assert group.exchange("a", 11) == [11, 21]
    assert "lawa/a/1/0" not in service.values


def test_late_processes_are_named():
    service = Service(late=(1, 3))
    service.values["lawa/save/1/2"] = "null"
    with pytest.raises(PeerError, match=r"save: process 0 waited 5 s for process 1, 3 of 4"):
        Processes(service, 0, 4, timeout=5).exchange("save")


def test_the_arguments_that_differ_are_named(as_processes):
    def work(group):
        k = 3 if group.index == 2 else 5
        return agree(group, {"k": k, "out": "o", **({"end": 4} if group.index == 1 else {})})

    found = as_processes(3, work)
    for error in found:
        assert isinstance(error, ConfigError)
        assert "end: None in process 0, 4 in process 1" in str(error)
        assert "k: 5 in process 0, 3 in process 2" in str(error)
        assert "out" not in str(error)
    assert as_processes(2, lambda group: agree(group, {"k": 5})) == [None, None]


@pytest.mark.parametrize("kind", [ConfigError, CheckpointWriteError])
def test_an_error_in_one_process_is_an_error_in_all(as_processes, kind):
    def work(group):
        def mine():
            if group.index == 1:
                raise kind(28, "no room") if kind is CheckpointWriteError else kind("no room")
            return group.index

        return together(group, "work", mine)

    first, second, third = as_processes(3, work)
    assert type(first) is type(second) is type(third) is kind
    assert str(first) == str(third) == "process 1: no room"
    assert str(second) == "no room"


def test_a_defect_in_one_process_is_a_peer_error_in_the_others(as_processes):
    def work(group):
        return together(group, "work", lambda: 1 // group.index)

    zero, one = as_processes(2, work)
    assert isinstance(zero, ZeroDivisionError)
    assert isinstance(one, PeerError)
    assert "process 0: integer division" in str(one)
