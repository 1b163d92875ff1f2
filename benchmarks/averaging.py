"""Averaging checkpoints: this project against what a user would run instead.

    python benchmarks/averaging.py --dir SCRATCH

Every row is timed in every round, one after the other in changing order, and compared with the
original's loop OF THE SAME ROUND: medians of ratios, with the smallest and largest. Peers must give
equal averages (to float32 rounding, which some of them do k times). Needs about 40 GB in SCRATCH,
which is kept for the next time.
"""

import dataclasses
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import averaging_data as data
import averaging_peers as peers
import numpy as np
import tyro

from lawa_jax import script, streaming
from lawa_jax.offline.prepare import prepare
from lawa_jax.offline.recipe import sweep_recipes, window_recipe
from lawa_jax.offline.sinks import MemorySink, NullSink
from lawa_jax.trajectory import Checkpoint, open_checkpoint
from lawa_jax.tree import named_leaves

Model = Literal["resnet50", "roberta"]
ORIGINAL = "original's loop (torch.load, model, running mean)"
FLOOR = "floor: 2 threads, preadv + float64 add"
OURS = "lawa-jax, read + accumulate"
CHECKED = "lawa-jax, with checks and digests"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    dir: Path
    """Where the checkpoints are made, and kept."""
    models: tuple[Model, ...] = ("resnet50", "roberta")
    """Sizes: 25.6M and 124.7M parameters."""
    k: tuple[int, ...] = (5, 10)
    """Window lengths."""
    cache: tuple[Literal["warm", "cold"], ...] = ("warm", "cold")
    """With the files in the page cache, and without."""
    rounds: int = 5
    """Times everything is measured."""
    parts: Annotated[tuple[Literal["speed", "whole", "sweep"], ...], tyro.conf.arg()] = (
        "speed",
        "whole",
        "sweep",
    )
    """Reading and averaging; the whole command; a sweep against re-reading."""


Row = tuple[str, Callable[[], object]]


def measure(rows: Sequence[Row], rounds: int, before: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds of every row in every round; the order turns, so that nobody is always first."""
    seconds: dict[str, list[float]] = {name: [] for name, _ in rows}
    for number in range(rounds + 1):
        turn = number % len(rows)
        for name, call in [*rows[turn:], *rows[:turn]]:
            before()
            started = time.perf_counter()
            result = call()
            # The first round warms up: imports, compilation, allocations.
            if number:
                seconds[name].append(time.perf_counter() - started)
            del result
    return seconds


def ratios(
    seconds: dict[str, list[float]], name: str, reference: str
) -> tuple[float, float, float]:
    """How many times faster than the reference in the same round: median, least, most."""
    each = [a / b for a, b in zip(seconds[reference], seconds[name], strict=True)]
    return statistics.median(each), min(each), max(each)


def table(title: str, seconds: dict[str, list[float]], reference: str) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n\n| | median s | times faster (least to most) |\n| --- | --- | --- |")
    for name, each in seconds.items():
        middle, low, high = ratios(seconds, name, reference)
        print(
            f"| {name} | {statistics.median(each):.3f} | {middle:.2f} ({low:.2f} to {high:.2f}) |"
        )
    sys.stdout.flush()


def aim(what: str, found: float, wanted: float) -> None:
    """Say whether an aim is met."""
    print(f"\n{what}: {found:.2f}, aim {wanted:g}: {'met' if found >= wanted else 'MISSED'}")


def opened(run: Path, steps: Sequence[int]) -> list[Checkpoint]:
    return [open_checkpoint(run, step=step) for step in steps]


def in_memory(run: Path, steps: Sequence[int], *, digests: bool) -> dict[str, np.ndarray]:
    """The window's average by the streaming engine, without publishing it."""
    target = streaming.Target(tuple(range(len(steps))), (1.0,) * len(steps))
    plan = streaming.make_plan(opened(run, steps), [target])
    sink = MemorySink(plan.out)
    streaming.run(plan, [sink], digests=digests)
    return sink.leaves


def accumulate_only(run: Path, steps: Sequence[int]) -> None:
    """Read and accumulate alone, as the floor does."""
    target = streaming.Target(tuple(range(len(steps))), (1.0,) * len(steps))
    plan = streaming.make_plan(opened(run, steps), [target])
    streaming.run(plan, [NullSink()], digests=False)


def check_equal(model: Model, k: int, found: dict[str, np.ndarray], who: str) -> None:
    """Compare with the float64 mean."""
    total = {name: np.zeros(shape) for name, shape in data.shapes(model).items()}
    for epoch in range(1, k + 1):
        for name, value in data.leaves(model, epoch).items():
            total[name] += value
    for name, value in total.items():
        error = np.abs(found[name] - value / k).max()
        if not error < 1e-6:
            raise AssertionError(f"{who}: leaf {name} is off by {error}")


def speed(arguments: Arguments, model: Model, k: int, cache: str) -> None:
    """Reading and averaging alone."""
    place, steps, shapes = arguments.dir / model, range(1, k + 1), data.shapes(model)
    run, foreign = place / "run", place / "foreign"
    plain = [place / "torch" / f"checkpoint{e}.pt" for e in steps]
    full = [place / "torch-full" / f"checkpoint{e}.pt" for e in steps]
    folders = [run / "epochs" / str(e) / "model" for e in steps]
    averages: list[tuple[str, Callable[[], dict[str, np.ndarray]]]] = [
        (ORIGINAL, lambda: peers.original_loop(plain, shapes)),
        ("the same, files with optimizer state", lambda: peers.original_loop(full, shapes)),
        ("torch.load(mmap=True), in-place adds", lambda: peers.mapped_loop(plain)),
        ("float64 averager (timm's manner)", lambda: peers.float64_averager(plain)),
        (
            "Orbax restore + jitted tree.map",
            lambda: peers.orbax_tree_map(foreign, steps, shapes),
        ),
        (OURS + " into memory", lambda: in_memory(run, steps, digests=False)),
        (CHECKED, lambda: in_memory(run, steps, digests=True)),
        ("lawa-jax, foreign checkpoints", lambda: in_memory(foreign, steps, digests=True)),
    ]
    if cache == "warm":
        for name, call in averages:
            check_equal(model, k, call(), name)
        data.remember(place)
    rows: list[Row] = [
        (FLOOR, lambda: peers.floor(folders)),
        (OURS, lambda: accumulate_only(run, steps)),
        *averages,
    ]
    before = (lambda: data.forget(place)) if cache == "cold" else (lambda: None)
    seconds = measure(rows, arguments.rounds if cache == "warm" else 2, before)
    table(f"{model}, k = {k}, {cache} cache", seconds, ORIGINAL)
    if cache == "warm":
        aim("read + accumulate, share of the floor's speed", ratios(seconds, OURS, FLOOR)[0], 0.7)
        wanted = 8 if model == "roberta" else 4
        aim("times the original's loop", ratios(seconds, OURS, ORIGINAL)[0], wanted)
        mapped = ratios(seconds, OURS, "torch.load(mmap=True), in-place adds")[0]
        aim("times the mmap loop", mapped, 0.7)
        theirs = ratios(seconds, "lawa-jax, foreign checkpoints", ORIGINAL)[0]
        aim("foreign checkpoints, times the original's loop", theirs, 1.4)


def whole(arguments: Arguments, model: Model, k: int) -> None:
    """The whole command, output on disk: ours verified, synced and published."""
    place, steps = arguments.dir / model, range(1, k + 1)
    files = [place / "torch" / f"checkpoint{e}.pt" for e in steps]
    phases: dict[str, list[float]] = {}

    def original() -> None:
        torch = peers.import_torch()
        average = peers.original_loop(files, data.shapes(model))
        torch.save({n: torch.from_numpy(a) for n, a in average.items()}, place / "average.pt")

    def ours() -> None:
        out = place / "average"
        recipe = window_recipe(place / "run", k=k, end=k)
        (result,) = prepare([recipe]).written([out])
        for phase, value in result.seconds.items():
            phases.setdefault(phase, []).append(value)

    def clean() -> None:
        shutil.rmtree(place / "average", ignore_errors=True)
        (place / "average.pt").unlink(missing_ok=True)
        os.sync()

    seconds = measure(
        [("original's loop and torch.save", original), ("lawa average, everything", ours)],
        arguments.rounds,
        clean,
    )
    clean()
    reference = "original's loop and torch.save"
    table(f"{model}, k = {k}, written to disk, warm cache", seconds, reference)
    print("\nphases:", {name: round(statistics.median(v), 3) for name, v in phases.items()})
    aim("whole command", ratios(seconds, "lawa average, everything", reference)[0], 4)


def sweep(arguments: Arguments) -> None:
    """Four window lengths at seven ends over 40 checkpoints: one pass against re-reading."""
    place, ks, ends = arguments.dir / "resnet50", (2, 3, 5, 10), range(10, 41, 5)
    run = data.make_run(place / "run", "resnet50", 40)
    files = data.make_torch(place / "torch", "resnet50", 40, 0)
    recipes = sweep_recipes(run, ks=ks, ends=list(ends))
    out = place / "sweep"
    read: list[int] = []
    counted = [0]

    def progress(count: int) -> None:
        counted[0] += count

    def one_pass() -> None:
        counted[0] = 0
        prepare(recipes).written([out / recipe.name for recipe in recipes], progress=progress)
        read.append(counted[0])

    def again() -> None:
        for recipe in recipes:
            prepare([recipe]).written([out / recipe.name])

    def original() -> None:
        torch = peers.import_torch()
        out.mkdir()
        for end in ends:
            for k in ks:
                average = peers.original_loop(files[end - k : end], data.shapes("resnet50"))
                torch.save(
                    {n: torch.from_numpy(a) for n, a in average.items()}, out / f"{k}-{end}.pt"
                )

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()

    names = ("original's loop, 28 times", "lawa-jax, window by window", "lawa-jax, one pass")
    rows: list[Row] = list(zip(names, (original, again, one_pass), strict=True))
    seconds = measure(rows, 3, clean)
    clean()
    size = sum(a.nbytes for a in named_leaves(dict(data.leaves("resnet50", 1))).values())
    table("sweep of 28 averages over 40 checkpoints of ResNet-50", seconds, names[0])
    print(
        f"\nbytes read in one pass: {read[0] / size:.3f} times 40 checkpoints / 40: every byte "
        f"once: {all(r == 40 * size for r in read)}"
    )
    windows = len(ends) * sum(ks)
    predicted = (windows + len(recipes)) / (40 + len(recipes))
    found = ratios(seconds, names[2], names[1])[0]
    print(f"one pass against re-reading: {found:.2f} times; bytes predict {predicted:.2f}")
    aim("share of what the bytes predict", found / predicted, 0.8)


def main() -> None:
    """Make what is missing, measure, print."""
    arguments = tyro.cli(Arguments, description=__doc__)
    print(f"{os.cpu_count()} cores; numpy {np.__version__}; medians of {arguments.rounds} rounds")
    for model in arguments.models:
        place, k = arguments.dir / model, max(arguments.k)
        data.make_run(place / "run", model, k)
        data.make_foreign_run(place / "foreign", model, k)
        data.make_torch(place / "torch", model, k, 0)
        data.make_torch(place / "torch-full", model, k, 1 if model == "resnet50" else 2)
        for k in arguments.k:
            if "speed" in arguments.parts:
                for cache in arguments.cache:
                    speed(arguments, model, k, cache)
            if "whole" in arguments.parts:
                data.remember(place)
                whole(arguments, model, k)
    if "sweep" in arguments.parts:
        sweep(arguments)


if __name__ == "__main__":
    script.run(main)
