"""A connection that passes through this process, and whose end is a sign of death."""

import socket
import subprocess
import sys
import threading

import pytest

from lawa_jax.distributed.relay import Relay

SERVE = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
connection = listener.accept()[0]
while data := connection.recv(1 << 16):
    connection.sendall(data.upper())
"""


@pytest.fixture
def other():
    """A process that answers in capitals, and its port."""
    with subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.port = int(process.stdout.readline())
        yield process
        process.kill()


def connect(relay):
    host, _, port = relay.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read(connection, size):
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return data


def relay_threads():
    return [thread for thread in threading.enumerate() if thread.name == "lawa-relay"]


def test_bytes_pass_both_ways_and_our_own_end_is_no_death(other):
    lost = threading.Event()
    relay = Relay("127.0.0.1", other.port, lost.set, timeout=30)
    with connect(relay) as connection:
        connection.sendall(b"abc" * 100_000)
        assert read(connection, 300_000) == b"ABC" * 100_000
    relay.close()
    for thread in relay_threads():
        thread.join(30)
    assert not relay_threads()
    assert not lost.is_set()


def test_the_end_of_a_killed_process_is_heard_before_the_connection_closes(other):
    """JAX's client aborts the process when its connection closes."""
    heard, go_on = threading.Event(), threading.Event()

    def lost():
        heard.set()
        assert go_on.wait(30)

    relay = Relay("127.0.0.1", other.port, lost, timeout=30)
    with connect(relay) as connection:
        connection.sendall(b"a")
        assert read(connection, 1) == b"A"
        other.kill()
        assert heard.wait(30)
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        go_on.set()
        connection.settimeout(30)
        assert connection.recv(1) == b""
    relay.close()


def test_a_process_0_that_has_not_started_is_no_death():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    lost = threading.Event()
    relay = Relay("127.0.0.1", port, lost.set, timeout=30)
    with connect(relay) as connection:
        assert connection.recv(1) == b""
    relay.close()
    assert not lost.is_set()


def test_nothing_listens_beyond_this_machine():
    relay = Relay("127.0.0.1", 1, lambda: None, timeout=1)
    assert relay.address.startswith("127.0.0.1:")
    relay.close()
