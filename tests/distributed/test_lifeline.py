"""A connection whose end is a sign of death."""

import subprocess
import sys
import threading

from lawa_jax.distributed.lifeline import Door, hold

KEEP = """
import sys, time
from lawa_jax.distributed.lifeline import Door
print(Door().port, flush=True)
time.sleep(600)
"""


def wait_for_the_threads():
    for thread in threading.enumerate():
        if thread.name in ("lawa-lifeline", "lawa-door") and thread.is_alive():
            thread.join(0.5)


def test_a_farewell_is_no_death():
    door, gone = Door(), threading.Event()
    assert hold("127.0.0.1", door.port, gone.set)
    # The connection is in the queue at once, but may not be accepted yet.
    for _ in range(500):
        if door._open:
            break
        gone.wait(0.01)
    door.close()
    assert not gone.wait(0.3)
    wait_for_the_threads()


def test_the_end_of_a_killed_process_is_noticed():
    with subprocess.Popen([sys.executable, "-c", KEEP], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        port, gone = int(other.stdout.readline()), threading.Event()
        assert hold("127.0.0.1", port, gone.set)
        assert not gone.wait(0.2)
        other.kill()
        assert gone.wait(30)
    wait_for_the_threads()


def test_a_closed_port_is_no_error():
    door = Door()
    port = door.port
    door.close()
    assert not hold("127.0.0.1", port, lambda: None, timeout=1)
