"""Who is found dead, that all hear the same, and that the last words are heard."""

import threading

import pytest

from lawa_jax.distributed import roll_call
from lawa_jax.distributed.roll_call import RollCall, end_process


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(roll_call, "_INTERVAL", 0.01)


class Service:
    """The recoverable coordination service in memory."""

    def __init__(self, count):
        self.values, self.dead, self.count = {}, set(), count
        self.changed = threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self.changed:
            if key in self.values and not allow_overwrite:
                raise RuntimeError("ALREADY_EXISTS")
            self.values[key] = value
            self.changed.notify_all()

    def key_value_try_get(self, key):
        if key not in self.values:
            raise RuntimeError("NOT_FOUND")
        return self.values[key]

    def key_value_delete(self, key):
        self.values.pop(key, None)

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000):
                raise RuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]

    def key_value_dir_get(self, folder):
        return [(k, v) for k, v in self.values.items() if k.startswith(folder)]

    def get_live_nodes(self, process_ids):
        return {i: 1 for i in process_ids if i not in self.dead}


@pytest.fixture
def roll(monkeypatch):
    """``roll(service, index)``: a process's roll call, and the reasons it was ended for."""
    made = []

    def make(service, index, timeout=60):
        ended, reasons = threading.Event(), []

        def end(reason):
            reasons.append(reason)
            made_one._parted.set()
            ended.set()

        ready = threading.Event()

        def hold(reason):
            ready.wait(30)
            end(reason)

        made_one = RollCall(service, index, service.count, timeout=timeout, end=hold)
        made_one.places[:] = [f"host{i}" for i in range(service.count)]
        ready.set()
        made.append(made_one)
        made_one.ended, made_one.reasons = ended, reasons
        return made_one

    yield make
    for one in made:
        one._parted.set()
        for thread in one._threads:
            thread.join(30)


def test_a_process_without_heartbeats_is_named_to_all(roll):
    service = Service(3)
    zero, one = roll(service, 0), roll(service, 1)
    service.dead = {2}
    assert zero.ended.wait(30)
    assert one.ended.wait(30)
    expected = "process 2 (host2) has given no sign of life for 60 s"
    assert zero.reasons == one.reasons == [expected]


def test_a_reason_given_is_the_one_heard(roll):
    service = Service(3)
    zero, one, two = (roll(service, i) for i in range(3))
    one.tell("the disk is full")
    for other in (zero, two):
        assert other.ended.wait(30)
        assert other.reasons == ["process 1 (host1) stopped: the disk is full"]
    assert not one.reasons


def test_process_0_stays_until_its_last_words_are_heard(roll):
    """The service ends with it."""
    service = Service(2)
    zero = roll(service, 0)
    teller = threading.Thread(target=zero.tell, args=("a defect",))
    teller.start()
    assert service.blocking_key_value_get("lawa-roll/stopped", 30_000).endswith("a defect")
    assert teller.is_alive()
    one = roll(service, 1)
    assert one.ended.wait(30)
    teller.join(30)
    assert not teller.is_alive()
    assert one.reasons == ["process 0 (host0) stopped: a defect"]


def test_the_end_of_the_connection_is_the_end_of_process_0(roll):
    one = roll(Service(2), 1)
    one.lost()
    assert one.reasons == ["process 0 (host0), which coordinates the others, is gone"]


def test_parting_is_no_death(roll):
    service = Service(2)
    zero, one = roll(service, 0), roll(service, 1)
    one.part()
    service.dead = {1}
    zero.part()
    one.lost()
    assert zero.reasons == one.reasons == []
    assert not any(thread.is_alive() for thread in (*zero._threads, *one._threads))


def test_the_one_that_the_others_wait_for_is_named(roll, capfd):
    service = Service(3)
    zero = roll(service, 0)

    class Still:
        seconds = 60.0

        def look(self, now):
            return {"place": "group.py:1 exchange", "waits": True}

        def due(self, now):
            return True

    zero._parted.set()
    for thread in zero._threads:
        thread.join(30)
    zero._standstill = Still()
    service.values["lawa-roll/still/1"] = '{"place": "reading.py:7 read", "waits": false}'
    zero._look()
    # Process 2 moves: they may all be waiting for that.
    assert capfd.readouterr().err == ""
    service.values["lawa-roll/still/2"] = '{"place": "array.py:3 _value", "waits": true}'
    zero._look()
    assert capfd.readouterr().err == (
        "warning: process 1 (host1) is alive but has made no progress for 60 s, and the others "
        "wait for it; it is at reading.py:7 read\n"
    )
    service.values["lawa-roll/still/1"] = "{}"
    zero._look()
    assert capfd.readouterr().err == ""


def test_the_end_is_one_line_and_exit_code_1(monkeypatch, capfd):
    codes = []
    monkeypatch.setattr(roll_call.os, "_exit", codes.append)
    end_process("process 2 is gone", " with --resume")
    assert codes == [1]
    assert capfd.readouterr().err == (
        "error: process 2 is gone; stopping, since the processes work in step. "
        "Start all of them again with --resume\n"
    )
