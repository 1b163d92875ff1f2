"""One average made by 1, 2 and 4 processes: time, and peak memory of each.

    python benchmarks/sharded_average.py --dir SCRATCH

Averages k checkpoints of more than a billion seeded random parameters with `lawa average` in
processes of their own, which find each other on 127.0.0.1; each reads, averages and writes its
share of the blocks. The leaf digests of all results must be the same. Rounds alternate; the files
are in the page cache as far as memory allows. Needs about 16 GB in SCRATCH.
"""

import dataclasses
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import averaging_data as data
import psutil
import tyro

from lawa_jax import script
from lawa_jax.errors import LawaError
from lawa_jax.trajectory import open_checkpoint

COMMAND = "from lawa_jax.cli.main import main; main()"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    dir: Path
    """Where the checkpoints are made, and kept."""
    parameters: int = 1_100_000_000
    """Of the model."""
    k: int = 5
    """Checkpoints in the window."""
    processes: tuple[int, ...] = (1, 2, 4)
    """Numbers of processes."""
    rounds: int = 3
    """Times each is measured."""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def average(run: Path, out: Path, k: int, count: int) -> tuple[float, list[int]]:
    """Seconds from start to end, and the peak resident bytes of every process."""
    command = [sys.executable, "-c", COMMAND, "average", str(run), "-k", str(k), "-o", str(out)]
    if count > 1:
        command += ["--coordinator", f"127.0.0.1:{free_port()}", "--process_count", str(count)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    started = time.perf_counter()
    children = [
        psutil.Popen(
            command if count == 1 else [*command, "--process_index", str(index)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for index in range(count)
    ]
    peaks = [0] * count
    running = threading.Event()

    def watch() -> None:
        while not running.wait(0.02):
            for index, child in enumerate(children):
                try:
                    peaks[index] = max(peaks[index], child.memory_info().rss)
                except psutil.Error:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    errors = [child.communicate()[1] for child in children]
    seconds = time.perf_counter() - started
    running.set()
    watcher.join()
    for child, error in zip(children, errors, strict=True):
        if child.returncode:
            raise LawaError(f"lawa average failed: {error.decode()[-2000:]}")
    return seconds, peaks


def main() -> None:
    """Measure and print."""
    arguments = tyro.cli(Arguments, description=__doc__)
    run = arguments.dir / str(arguments.parameters)
    data.make_large_run(run, arguments.parameters, arguments.k)
    seconds: dict[int, list[float]] = {count: [] for count in arguments.processes}
    peaks: dict[int, int] = dict.fromkeys(arguments.processes, 0)
    digests: list[dict[str, str]] = []
    for number in range(arguments.rounds):
        turn = number % len(arguments.processes)
        for count in arguments.processes[turn:] + arguments.processes[:turn]:
            out = arguments.dir / f"average-by-{count}"
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            taken, each = average(run, out, arguments.k, count)
            seconds[count].append(taken)
            peaks[count] = max(peaks[count], *each)
            digests.append(open_checkpoint(out).checksums)
            shutil.rmtree(out)
    if any(found != digests[0] for found in digests):
        raise LawaError(f"averages differ: {json.dumps(digests)[:2000]}")
    size = sum(spec.size for spec in data.large_specs(arguments.parameters).values())
    first = arguments.processes[0]
    print(
        f"{size:,} parameters, k = {arguments.k}; {len(digests)} averages, digests all the same\n"
    )
    print("| processes | seconds (least to most) | against one | peak MiB of a process |")
    print("| ---: | ---: | ---: | ---: |")
    for count, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[first], times, strict=True))
        print(
            f"| {count} | {statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f}) "
            f"| {ratio:.2f} | {peaks[count] / 2**20:.0f} |"
        )


if __name__ == "__main__":
    script.run(main)
