"""When a process counts as standing still, by a clock of the test's own."""

import queue
import threading

import jax
import pytest

from lawa_jax.distributed.standstill import Standstill, _main_thread


@pytest.fixture
def reader():
    """A thread that stays in one call until it is let go."""
    here, go = threading.Event(), queue.SimpleQueue()

    def read():
        here.set()
        go.get(timeout=60)

    thread = threading.Thread(target=read)
    thread.start()
    assert here.wait(30)
    yield go, thread
    go.put(None)
    thread.join(30)


def look(standstill, now):
    # From one line, so that the main thread is where it was.
    return standstill.look(now)


def test_a_process_at_one_place_for_long_says_where(reader):
    standstill, found = Standstill(60.0), []
    for now in (0.0, 30.0, 59.0, 60.0, 61.0):
        found.append((look(standstill, now), standstill.due(now)))
    assert [f for f, _ in found[:3]] == [None] * 3
    assert "look" in found[3][0]["place"]
    assert not found[3][0]["waits"]
    assert found[4][0] is None
    assert [due for _, due in found] == [False, False, False, True, False]
    assert standstill.due(120.0)


def test_one_that_waits_in_an_exchange_or_in_jax_waits_for_the_others():
    def exchange():
        return _main_thread()["waits"]

    assert exchange()
    assert jax.tree.map(lambda _: _main_thread()["waits"], 1)
    assert not _main_thread()["waits"]


def test_a_thread_that_moves_is_progress(reader):
    go, thread = reader
    standstill, found = Standstill(60.0), []
    for now in (0.0, 59.0, 61.0, 122.0):
        if now == 59.0:
            go.put(None)
            thread.join(30)
        found.append(look(standstill, now))
    assert found[:3] == [None, None, None]
    assert found[3]["place"]
