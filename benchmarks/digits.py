"""What LAWA does on the digits, over several seeds: the figures and the picture in the README.

    python benchmarks/digits.py --seeds 0 1 2 --out docs/digits

Trains with the README's command once a seed (finished runs are used again), and reports all seeds
and all epochs: mean and standard deviation, epochs saved with their sign, nothing chosen.
"""

import dataclasses
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import tyro
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lawa_jax import script
from lawa_jax.errors import TrainingFailedError
from lawa_jax.report.curves import Curves, curves
from lawa_jax.training.log import JsonLog

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The study."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One run a seed."""
    lawa_k: int = 5
    """Checkpoints in an average."""
    label_noise: float = 0.0
    """Share of random training labels."""
    runs: Path = Path("runs")
    """Where runs are kept."""
    out: Path = Path("runs/digits")
    """Prefix of the picture (.png) and the table (.md)."""


def run_of(arguments: Arguments, seed: int) -> Curves:
    """The curves of one seed's run, training it where it is not there."""
    run = arguments.runs / f"digits-noise{arguments.label_noise:g}-seed{seed}"
    command = [
        sys.executable,
        "train/resnet_imagenet.py",
        "--config",
        "configs/resnet_digits.py",
        "--lawa_k",
        str(arguments.lawa_k),
        "--seed",
        str(seed),
        "--label_noise",
        str(arguments.label_noise),
        "--run_dir",
        str(run.resolve()),
    ]
    if (run / "config.json").exists():
        command.append("--resume")
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
        raise TrainingFailedError(f"training failed: {' '.join(command)}")
    log = JsonLog(epath.Path(run) / "log.jsonl")
    return curves(log.by("epoch", "epoch"), log.by("lawa", "end"))


def spread(values: list[float], digits: int = 4) -> str:
    """Mean and sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def table(runs: list[Curves], k: int) -> str:
    """Mean and spread over the seeds at every fifth epoch, as Markdown."""
    last = max(runs[0].raw)
    lines = [
        f"| epoch | raw loss | LAWA k={k} loss | raw top-1 % | LAWA top-1 % "
        "| epochs saved, by seed |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for end in (e for e in (5, 8, 10, 12, 15, 20, 25, 30) if k <= e <= last):
        cells = [
            spread([r.raw[end]["loss"] for r in runs]),
            spread([r.lawa[end]["loss"] for r in runs]),
            spread([100 * r.raw[end]["top1"] for r in runs], 1),
            spread([100 * r.lawa[end]["top1"] for r in runs], 1),
            ", ".join(str(r.saved[end]) for r in runs),
        ]
        lines.append(f"| {end} | " + " | ".join(cells) + " |")
    for first, final in ((k, 12), (13, last), (k, last)):
        window = [e for e in runs[0].lawa if first <= e <= final]
        raw = [statistics.mean(r.raw[e]["loss"] for e in window) for r in runs]
        lawa = [statistics.mean(r.lawa[e]["loss"] for e in window) for r in runs]
        better = sum(r.lawa[e]["loss"] < r.raw[e]["loss"] for r in runs for e in window)
        lines.append(
            f"| mean of {first}-{final} | {spread(raw)} | {spread(lawa)} | | | "
            f"average better at {better} of {len(window) * len(runs)} |"
        )
    return "\n".join(lines)


def plot(runs: list[Curves], k: int, path: Path) -> None:
    """Every seed's curves thin, their means thick; epochs saved as points."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss, saved = figure.subplots(1, 2, width_ratios=(1.35, 1))
    for colour, label, series in (
        ("#8c8c8c", "raw", [r.raw for r in runs]),
        ("#0b6fb8", f"LAWA, k = {k}", [r.lawa for r in runs]),
    ):
        epochs = sorted(series[0])
        values = np.array([[one[e]["loss"] for e in epochs] for one in series])
        for row in values:
            loss.plot(epochs, row, c=colour, lw=0.7, alpha=0.5)
        loss.plot(epochs, values.mean(0), c=colour, lw=2.2, label=f"{label} (mean)")
    loss.set_yscale("log")
    loss.set_xlabel("epoch")
    loss.set_ylabel("validation loss")
    loss.grid(alpha=0.3, which="both")
    loss.legend()
    for number, run in enumerate(runs):
        ends = sorted(run.saved)
        saved.plot(
            ends, [run.saved[e].epochs for e in ends], "o-", ms=3, lw=0.7, label=f"seed {number}"
        )
        bounds = [e for e in ends if run.saved[e].at_least]
        saved.plot(bounds, [run.saved[e].epochs for e in bounds], "^", ms=8, mfc="none", c="black")
    saved.axhline(0, c="black", lw=0.8)
    saved.set_xlabel("epoch at which the average ends")
    saved.set_ylabel("epochs saved (triangle: at least)")
    saved.grid(alpha=0.3)
    saved.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the study."""
    arguments = tyro.cli(Arguments, description=__doc__)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    runs = [run_of(arguments, seed) for seed in arguments.seeds]
    text = table(runs, arguments.lawa_k)
    arguments.out.with_suffix(".md").write_text(text + "\n")
    plot(runs, arguments.lawa_k, arguments.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    script.run(main)
