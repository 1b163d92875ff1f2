"""Real processes that die, give up, or make no progress, and what the others say."""

import signal
import time

import numpy as np
import pytest

from lawa_jax.output import write_checkpoint

pytestmark = pytest.mark.multiprocess

# Process 1 waits for a file within `together`, as in a read that never returns.
STUCK = """
import pathlib, sys, time
from lawa_jax import script
from lawa_jax.distributed import initialize, roll_call, together

folder, flags = pathlib.Path(sys.argv[1]), sys.argv[2:]
index = int(flags[5])

def wait_for_the_file():
    while not (folder / "go on").exists():
        time.sleep(0.01)

def main():
    roll_call.RollCall.__init__.__kwdefaults__["still"] = 2.0
    group = initialize(flags[1], 2, index)
    (folder / f"joined{index}").touch()
    together(group, "read", wait_for_the_file if index else lambda: None)
    print("finished")

script.run(main)
"""


def appears(log, text, seconds=120):
    end = time.monotonic() + seconds
    while text not in log.read_text():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def test_a_process_in_a_read_is_named_with_its_place_and_is_not_ended(start, tmp_path):
    program = tmp_path / "stuck.py"
    program.write_text(STUCK)
    both = start([program, tmp_path], 2)
    appears(both.logs[0], "the others wait for it; it is at ")
    text = both.logs[0].read_text()
    assert "warning: process 1 (" in text
    assert "is alive but has made no progress for 2 s" in text
    assert "warning: process 0" not in text
    assert "wait_for_the_file" in text
    (tmp_path / "go on").touch()
    assert both.wait(60) == [0, 0], both.text()
    assert "finished" in both.logs[1].read_text()


@pytest.mark.parametrize("dead", [0, 1])
def test_a_killed_process_ends_the_others_in_one_line(start, tmp_path, dead):
    program = tmp_path / "stuck.py"
    # The timeout of the heartbeats, which is a minute otherwise.
    program.write_text(STUCK.replace("2, index)", "2, index, peer_timeout=5)", 1))
    both = start([program, tmp_path], 2)
    for index in (0, 1):
        both.wait_for(tmp_path / f"joined{index}")
    both.kill(dead)
    codes = both.wait(120)
    assert codes[dead] == -signal.SIGKILL
    assert codes[1 - dead] == 1, both.text()
    errors = [
        line
        for line in both.logs[1 - dead].read_text().splitlines()
        if not line.startswith("warning: process ")
    ]
    (line,) = errors
    assert line.startswith(f"error: process {dead} (")
    # No command of this program could resume.
    assert line.endswith("Start all of them again")


def test_an_average_with_other_arguments_in_one_process_is_refused(start, tmp_path):
    run = tmp_path / "run"
    for step in (1, 2, 3):
        write_checkpoint(run / str(step), {"w": np.full(4, step, np.float32)})
    cli = tmp_path / "lawa.py"
    cli.write_text("from lawa_jax.cli.main import main\nmain()\n")
    command = [cli, "average", run, "-o", tmp_path / "out"]
    both = start(command, 2, devices=1, own=(["-k", 2], ["-k", 3]))
    assert both.wait(120) == [2, 2], both.text()
    for log in both.logs:
        (line,) = log.read_text().splitlines()
        assert "k: 2 in process 0, 3 in process 1" in line
    assert not (tmp_path / "out").exists()
