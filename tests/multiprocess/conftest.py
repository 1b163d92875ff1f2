"""Real processes on 127.0.0.1, two devices each."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Processes:
    """Several copies of one command; none outlives the test."""

    def __init__(self, command, count, folder, devices, own):
        environment = {
            **os.environ,
            "JAX_NUM_CPU_DEVICES": str(devices),
            "PYTHONPATH": str(ROOT),
            # Tests share two cores: eight threads a process only get in each other's way.
            "OMP_NUM_THREADS": "1",
        }
        address = f"127.0.0.1:{free_port()}"
        self.logs = [folder / f"process{i}.log" for i in range(count)]
        self.all = []
        for index, log in enumerate(self.logs):
            flags = ["--coordinator", address, "--process_count", count, "--process_index", index]
            mine = [*command, *(own[index] if own else [])]
            with log.open("w") as file:
                self.all.append(
                    subprocess.Popen(
                        [sys.executable, *map(str, [*mine, *(flags if count > 1 else [])])],
                        cwd=folder, env=environment, stdout=file, stderr=file,
                    )
                )  # fmt: skip

    def wait_for(self, path, seconds=300):
        """Until a file exists; fails if a process ends before."""
        end = time.monotonic() + seconds
        while not path.exists():
            assert all(p.poll() is None for p in self.all), self.text()
            assert time.monotonic() < end, f"{path} did not appear\n{self.text()}"
            time.sleep(0.05)

    def wait(self, seconds=300):
        """Exit codes."""
        end = time.monotonic() + seconds
        return [p.wait(timeout=max(1, end - time.monotonic())) for p in self.all]

    def text(self):
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs)

    def kill(self, index, number=signal.SIGKILL):
        self.all[index].send_signal(number)


@pytest.fixture
def start(tmp_path):
    """``start(command, count)``: processes that are killed after the test.

    ``own`` gives each of them arguments of its own.
    """
    started = []

    def run(command, count, *, devices=2, own=None):
        folder = tmp_path / f"logs{len(started)}"
        folder.mkdir()
        started.append(Processes(command, count, folder, devices, own))
        return started[-1]

    yield run
    for processes in started:
        for process in processes.all:
            if process.poll() is None:
                process.kill()
            process.wait()
