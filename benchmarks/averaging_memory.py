"""Peak memory of averaging: 125M and more than a billion parameters, k = 5 and 50.

    python benchmarks/averaging_memory.py --dir SCRATCH

Every case is a process of its own, which averages a small run first (so that all is imported),
then forgets its peak and makes the average on disk. Two checkpoints of seeded random numbers are
hard-linked in turn as fifty steps; the result is compared with the numbers they were made from.
Needs about 16 GB in SCRATCH.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import averaging_data as data
import numpy as np
import tyro

from lawa_jax import script
from lawa_jax.offline.prepare import prepare
from lawa_jax.offline.recipe import DEFAULT_MEMORY, AveragingOptions, window_recipe
from lawa_jax.trajectory import open_checkpoint

STEPS = 50


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    dir: Path
    """Where the checkpoints are made, and kept."""
    parameters: tuple[int, ...] = (125_000_000, 1_100_000_000)
    """Sizes of models."""
    k: tuple[int, ...] = (5, 50)
    """Window lengths."""
    memory: tuple[int, ...] = (DEFAULT_MEMORY, 128 << 20)
    """Values of --memory, in bytes."""
    one: Annotated[bool, tyro.conf.arg(help="One case, in this process.")] = False


def status(field: str) -> int:
    """A figure of this process in bytes."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return 1024 * int(lines[field].split()[0])


def measure_here(arguments: Arguments) -> None:
    """One case in this process; prints JSON."""
    (parameters,), (k,), (memory,) = arguments.parameters, arguments.k, arguments.memory
    small = data.make_large_run(arguments.dir / "warm-up", 1, 2)
    out = arguments.dir / f"average-{parameters}-{k}-{memory}"
    for folder in (out, out.with_suffix(".small")):
        shutil.rmtree(folder, ignore_errors=True)
    options = AveragingOptions(memory=memory)
    prepare([window_recipe(small, k=2)], options).written([out.with_suffix(".small")])
    recipe = window_recipe(arguments.dir / str(parameters), k=k, end=STEPS)
    bound = prepare([recipe], options).estimate.memory_bound
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    (result,) = prepare([recipe], options).written([out])
    peak = status("VmHWM") - before
    worst = check(out, k)
    shutil.rmtree(out)
    shutil.rmtree(out.with_suffix(".small"))
    print(
        json.dumps(
            {
                "parameters": parameters,
                "k": k,
                "memory": memory,
                "peak": peak,
                "bound": bound,
                "worst": worst,
                "seconds": sum(result.seconds.values()),
            }
        )
    )


def check(out: Path, k: int) -> float:
    """Largest error of a sample of blocks against the numbers the sources were made from."""
    average = open_checkpoint(out)
    # Odd steps hold the first checkpoint, even ones the second.
    odd = len([e for e in range(STEPS - k + 1, STEPS + 1) if e % 2])
    worst = 0.0
    for i, name in enumerate(average.leaves):
        for j in (0, 7, 15):
            found = np.empty(data.BLOCK, np.float32)
            average.read(name, (slice(j * data.BLOCK, (j + 1) * data.BLOCK),), found)
            first, second = (
                data.large_block(seed, data.PER_LEAF * i + j).astype(np.float64) for seed in (1, 2)
            )
            expected = ((odd * first + (k - odd) * second) / k).astype(np.float32)
            worst = max(worst, float(np.abs(found - expected).max()))
    return worst


def main() -> None:
    """Measure every case in a process of its own."""
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.one:
        measure_here(arguments)
        return
    print("| parameters | k | --memory MiB | peak MiB | bound MiB | largest error | seconds |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for parameters in arguments.parameters:
        data.make_large_run(arguments.dir / str(parameters), parameters, STEPS)
        for k in arguments.k:
            for memory in arguments.memory:
                command = [sys.executable, __file__, "--dir", str(arguments.dir)]
                command += ["--parameters", str(parameters), "--k", str(k)]
                command += ["--memory", str(memory), "--one"]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                row = json.loads(done.stdout)
                count = sum(s.size for s in data.large_specs(parameters).values())
                print(
                    f"| {count:,} | {k} | {memory >> 20} | {row['peak'] / 2**20:.0f} "
                    f"| {row['bound'] / 2**20:.0f} | {row['worst']:.1e} | {row['seconds']:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    script.run(main)
