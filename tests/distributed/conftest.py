"""Groups whose processes are threads: the same protocol without starting anything."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest


class ThreadGroup:
    """One of several threads that stand for processes; exchanges in memory."""

    def __init__(self, index, count, shared):
        self.index, self.count, self._shared = index, count, shared

    def exchange(self, topic, value=None):
        self._shared["values"][topic, self.index] = value
        self._shared["barrier"].wait(timeout=60)
        found = [self._shared["values"][topic, i] for i in range(self.count)]
        self._shared["barrier"].wait(timeout=60)
        return found


@pytest.fixture
def as_processes():
    """Call ``work(group)`` in `count` threads at once; their results, or the exceptions."""

    def run(count, work):
        shared = {"values": {}, "barrier": threading.Barrier(count)}

        def one(index):
            try:
                return work(ThreadGroup(index, count, shared))
            except Exception as error:
                return error

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(one, range(count)))

    return run
