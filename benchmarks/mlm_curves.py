"""Raw and LAWA loss of RoBERTa runs over epochs, one panel a setting: docs/roberta.png.

    python benchmarks/mlm_curves.py RUNS/*-seed* --out docs/roberta.png

Averages are evaluated with the training script on the validation set, at every second epoch; runs
that are called alike up to "-seedN" share a panel. Thin lines are seeds, thick ones their means.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lawa_jax import script
from lawa_jax.errors import TrainingFailedError
from lawa_jax.training.log import JsonLog

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to draw."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories, each called SETTING-seedN."""
    lawa_k: int = 5
    """Checkpoints in an average."""
    out: Path = Path("docs/roberta.png")
    """The picture."""


def raw_losses(run: Path) -> dict[int, float]:
    """Validation loss in bits by epoch, as logged in training."""
    rows = JsonLog(epath.Path(run) / "log.jsonl").by("epoch", "epoch")
    return {epoch: row["val/loss"] for epoch, row in rows.items()}


def average_losses(run: Path, k: int, epochs: list[int]) -> dict[int, float]:
    """Validation loss of averages by their last epoch."""
    ends = [str(e) for e in epochs if e >= k and (epochs[-1] - e) % 2 == 0]
    command = [sys.executable, "train/roberta_wikitext.py", "--evaluate", str(run.resolve())]
    command += ["--lawa_k", str(k), "--splits", "val", "--json", "--end", *ends]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise TrainingFailedError(f"evaluation failed: {' '.join(command)}")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["end"]: row["val/loss"] for row in rows}


def main() -> None:
    """Evaluate and draw."""
    arguments = tyro.cli(Arguments, description=__doc__)
    k = arguments.lawa_k
    panels: dict[str, list[tuple[dict[int, float], dict[int, float]]]] = {}
    for run in arguments.runs:
        raw = raw_losses(run)
        averages = average_losses(run, k, sorted(raw))
        better = sum(averages[e] < raw[e] for e in averages)
        print(f"{run.name}: the average is better at {better} of {len(averages)} ends", flush=True)
        panels.setdefault(run.name.rpartition("-seed")[0], []).append((raw, averages))
    figure = Figure(figsize=(10.4, 3.8 * -(-len(panels) // 2)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(-(-len(panels) // 2), min(2, len(panels)), squeeze=False)
    for axes, (name, seeds) in zip(grid.flat, panels.items(), strict=False):
        for colour, label, series in (
            ("#8c8c8c", "raw", [raw for raw, _ in seeds]),
            ("#0b6fb8", f"LAWA, k = {k}", [averages for _, averages in seeds]),
        ):
            # The first epochs would hide what happens later.
            epochs = [e for e in sorted(series[0]) if e >= k]
            values = np.array([[one[e] for e in epochs] for one in series])
            for row in values:
                axes.plot(epochs, row, c=colour, lw=0.7, alpha=0.5)
            axes.plot(epochs, values.mean(0), c=colour, lw=2, label=f"{label} ({len(seeds)} seeds)")
        axes.set_title(name)
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation loss, bits")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    script.run(main)
