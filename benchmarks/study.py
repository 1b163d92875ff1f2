"""Which averaging is best? Every method on small real runs, several seeds, as they come out.

    python benchmarks/study.py --out docs/study

Trains with the training scripts (finished runs and figures are used again), and evaluates all
methods at several ends of every run. The validation set is cut in two halves by rows: methods that
choose (soup, best window, trainable) do it on one, and everything is reported on the other.
"""

import dataclasses
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import tyro
from etils import epath
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lawa_jax import Accumulator, best_window, greedy_soup, learn_coefficients, script
from lawa_jax.averaging import coefficients
from lawa_jax.errors import TrainingFailedError
from lawa_jax.training import run_directory
from lawa_jax.training.config import ImageConfig, from_json
from lawa_jax.training.image_task import image_task, load_images
from lawa_jax.training.lawa import WindowAverage, read_verified, settle_statistics
from lawa_jax.training.mesh import Placement
from lawa_jax.training.metrics import total_of
from lawa_jax.training.task import Task
from lawa_jax.training.text_config import TextConfig
from lawa_jax.training.text_task import load_text, text_task
from lawa_jax.trajectory import open_checkpoint

ROOT = Path(__file__).resolve().parent.parent
UNIFORM = (2, 3, 5, 7, 10, 15, 20)
CHOOSE_FROM = 20


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The study."""

    seeds: tuple[int, ...] = ()
    """One run a seed and setting; ten of digits and three of text by default."""
    runs: Path = Path("runs/study")
    """Where runs and figures are kept."""
    settings: tuple[str, ...] = ()
    """Only these."""
    out: Path = Path("docs/study")
    """Prefix of the picture (.png) and the tables (-tables.md)."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way of training.

    Attributes:
      title: for people.
      script: in train/.
      flags: of it.
      ends: at which averages end.
      seeds: one run each.
    """

    title: str
    script: str
    flags: tuple[str, ...]
    ends: tuple[int, ...]
    seeds: tuple[int, ...]


def settings(arguments: Arguments) -> dict[str, Setting]:
    digits = ("--config", "configs/resnet_digits.py")
    text = ("--config", "configs/roberta_tiny.py")
    few, many = arguments.seeds or tuple(range(3)), arguments.seeds or tuple(range(10))
    found = {
        "digits-cosine": Setting(
            "digits, cosine", "resnet_imagenet.py", digits, (10, 15, 20, 25, 30), many
        ),
        "digits-constant": Setting(
            "digits, constant",
            "resnet_imagenet.py",
            (*digits, "--schedule", "constant"),
            (10, 15, 20, 25, 30),
            many,
        ),
        "text-constant": Setting(
            "Python documentation, constant",
            "roberta_wikitext.py",
            text,
            (20, 30, 40, 50, 60),
            few,
        ),
        "text-decay": Setting(
            "Python documentation, linear decay",
            "roberta_wikitext.py",
            (*text, "--schedule", "polynomial", "--total_updates", "1440"),
            (20, 30, 40, 50, 60),
            few,
        ),
    }
    return {name: s for name, s in found.items() if name in (arguments.settings or found)}


def train(arguments: Arguments, name: str, setting: Setting, seed: int) -> Path:
    """The run directory, trained where it is not."""
    run = (arguments.runs / f"{name}-seed{seed}").resolve()
    flags = [*setting.flags, "--seed", str(seed), "--run_dir", str(run), "--lawa_k", "0"]
    if (run / "config.json").exists():
        flags.append("--resume")
    command = [sys.executable, f"train/{setting.script}", *flags]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise TrainingFailedError(f"training failed: {' '.join(command)}")
    return run


class Trained:
    """A run to try methods on."""

    def __init__(self, run: Path, text: bool) -> None:
        stored = run_directory.read_config(epath.Path(run))
        self._run, self._trees = run, dict[int, Any]()
        if text:
            config = from_json(stored, TextConfig, str(run))
            config = dataclasses.replace(config, data_dir=str(ROOT / config.data_dir))
            self.task: Task = text_task(config, load_text(config, ("train", "val")), Placement())
        else:
            images = from_json(stored, ImageConfig, str(run))
            self.task = image_task(images, load_images(images), Placement())
        self.halves = [list(self._half(parity)) for parity in (0, 1)]

    def _half(self, parity: int) -> Iterator[Any]:
        seen = 0
        for batch in self.task.eval_batches("val"):
            rows = next(iter(batch.values())).shape[0]
            mask = np.asarray(batch.get("mask", np.ones(rows, bool)))
            chosen = mask & ((seen + np.cumsum(mask)) % 2 == parity)
            seen += int(mask.sum())
            yield self.task.place.batch({**batch, "mask": chosen})

    def load(self, step: int) -> Any:
        if step not in self._trees:
            checkpoint = open_checkpoint(self._run, step=step, include=("*",))
            self._trees[step] = self.task.place.state(read_verified(checkpoint))
        return self._trees[step]

    def loss(self, tree: Any, newest: int, half: int) -> float:
        """Held-out loss after BatchNorm has been settled as in training."""
        settled = settle_statistics(
            WindowAverage(tree, self.load(newest), (newest,)), "recalibrate", self.task
        )
        return total_of(self.task.eval_step(settled, b) for b in self.halves[half]).means()["loss"]

    def mean(self, steps: list[int], weights: Any = None) -> Any:
        # Not `average`, which compiles anew for every number of trees.
        accumulator = Accumulator()
        for step, weight in zip(
            steps, [1.0] * len(steps) if weights is None else weights, strict=True
        ):
            accumulator.add(self.load(step), float(weight))
        return accumulator.result()

    def batch_loss(self, tree: Any, batch: Any) -> jax.Array:
        """Of one batch, as evaluated, to be differentiated."""
        total, count = self.task.eval_step(tree, batch)["loss"]
        return total / jnp.maximum(count, 1).astype(total.dtype)


def methods(trained: Trained, end: int) -> Iterator[tuple[str, Callable[[], tuple[Any, str]]]]:
    """Name and maker of every average that ends at `end`."""
    everything = list(range(1, end + 1))

    def of(steps: list[int], weights: Any = None) -> Callable[[], tuple[Any, str]]:
        return lambda: (trained.mean(steps, weights), "")

    yield "raw", of([end])
    for k in UNIFORM:
        if k <= end:
            yield f"uniform k={k}", of(everything[-k:])
    for stride in (2, 4):
        steps = everything[::-1][::stride][:5][::-1]
        if len(steps) == 5:
            yield f"uniform k=5, every {stride}", of(steps)
    for method in ("linear", "decay:cosine", "decay:1-sqrt"):
        if end >= 10:
            window = everything[-10:]
            yield f"{method} k=10", of(window, coefficients.of_method(method, window))
    for method in (
        *("ema:0.5", "ema:0.8", "ema:0.9", "power_ema:0.05", "power_ema:0.1"),
        *("bema:0.2", "bema:0.4"),
    ):
        yield f"{method}, all", of(everything, coefficients.of_method(method, everything))
    recent = everything[-CHOOSE_FROM:]

    def score(tree: Any) -> float:
        return trained.loss(tree, end, 0)

    def soup() -> tuple[Any, str]:
        found = greedy_soup(trained.load, recent, score)
        return found.tree, " ".join(map(str, found.steps))

    def search() -> tuple[Any, str]:
        found = best_window(trained.load, recent, score, ks=(1, *UNIFORM))
        return found.tree, f"k={len(found.steps)}"

    def learned() -> tuple[Any, str]:
        window = everything[-10:]
        c = learn_coefficients(
            [trained.load(s) for s in window],
            trained.batch_loss,
            trained.halves[0],
            passes=20,
        ).coefficients
        return trained.mean(window, c), " ".join(f"{x:.2f}" for x in c)

    yield f"greedy soup of {CHOOSE_FROM}", soup
    yield f"best window of {CHOOSE_FROM}", search
    yield "trainable k=10", learned


def figures(arguments: Arguments) -> list[dict[str, Any]]:
    """One row a setting, seed, end and method; what is on disk is not computed again."""
    arguments.runs.mkdir(parents=True, exist_ok=True)
    path = arguments.runs / "figures.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(r["setting"], r["seed"], r["end"], r["method"]) for r in rows}
    with path.open("a") as file:
        for name, setting in settings(arguments).items():
            for seed in setting.seeds:
                run = train(arguments, name, setting, seed)
                trained = Trained(run, setting.script.startswith("roberta"))
                for end in setting.ends:
                    for method, make in methods(trained, end):
                        if (name, seed, end, method) in known:
                            continue
                        tree, note = make()
                        row = {
                            "setting": name,
                            "seed": seed,
                            "end": end,
                            "method": method,
                            "loss": trained.loss(tree, end, 1),
                            "note": note,
                        }
                        rows.append(row)
                        file.write(json.dumps(row) + "\n")
                        file.flush()
                    print(f"{name}, seed {seed}, end {end}", file=sys.stderr, flush=True)
    chosen = settings(arguments)
    return [r for r in rows if r["setting"] in chosen and r["seed"] in chosen[r["setting"]].seeds]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of the 95 % confidence interval (Student's t)."""
    if len(values) < 2:
        return values[0], float("nan")
    spread = statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values), float(scipy.stats.t.ppf(0.975, len(values) - 1)) * spread


def differences(
    rows: list[dict[str, Any]], setting: str, end: int
) -> dict[str, tuple[float, float, float]]:
    """Loss against the raw weights of the same seed and end, in %: mean and 95 % interval.

    Of the logarithms of ratios, so that halves and doubles weigh alike.
    """
    here = [r for r in rows if r["setting"] == setting and r["end"] == end]
    raw = {r["seed"]: r["loss"] for r in here if r["method"] == "raw"}
    found: dict[str, list[float]] = {}
    for r in here:
        found.setdefault(r["method"], []).append(math.log(r["loss"] / raw[r["seed"]]))

    def percent(values: list[float]) -> tuple[float, float, float]:
        mean, half = interval(values)
        low, middle, high = (100 * math.expm1(x) for x in (mean - half, mean, mean + half))
        return middle, low, high

    return {method: percent(values) for method, values in found.items()}


def tables(rows: list[dict[str, Any]], chosen: dict[str, Setting]) -> str:
    """Markdown: raw loss, and every method's difference to it in %."""
    parts = []
    for name, setting in chosen.items():
        ends = setting.ends
        seeds = sorted({r["seed"] for r in rows if r["setting"] == name})
        parts.append(
            f"### {setting.title} learning rate\n\nSeeds {', '.join(map(str, seeds))}; difference "
            "of the held-out loss to the raw weights in %: geometric mean (95 % interval).\n\n"
            f"| method | {' | '.join(f'epoch {end}' for end in ends)} |\n"
            f"| --- |{' ---: |' * len(ends)}"
        )
        raw = [
            interval([r["loss"] for r in rows
                      if (r["setting"], r["end"], r["method"]) == (name, end, "raw")])
            for end in ends
        ]  # fmt: skip
        parts[-1] += "\n| raw loss | " + " | ".join(f"{m:.4f} ± {h:.4f}" for m, h in raw) + " |"
        by_end = [differences(rows, name, end) for end in ends]
        for method in dict.fromkeys(m for found in by_end for m in found):
            if method != "raw":
                cells = [
                    "{:+.1f} ({:+.1f} to {:+.1f})".format(*found[method]) if method in found else ""
                    for found in by_end
                ]
                parts[-1] += f"\n| {method} | " + " | ".join(cells) + " |"
    return "\n\n".join(parts) + "\n"


SHOWN = {
    "uniform k=2": "#9ecae1",
    "uniform k=5": "#3182bd",
    "uniform k=10": "#08519c",
    "ema:0.8, all": "#e6550d",
    "decay:1-sqrt k=10": "#31a354",
    "greedy soup of 20": "#756bb1",
    "trainable k=10": "#d62728",
}


def plot(rows: list[dict[str, Any]], chosen: dict[str, Setting], path: Path) -> None:
    """Difference to the raw weights over ends, one panel a setting."""
    columns = (len(chosen) + 1) // 2
    figure = Figure(figsize=(5.2 * columns, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(2 if len(chosen) > 1 else 1, columns)).T.flat
    for axes, (name, setting) in zip(panels, chosen.items(), strict=False):
        width = (setting.ends[1] - setting.ends[0]) / (len(SHOWN) + 2)
        for number, (method, colour) in enumerate(SHOWN.items()):
            points = {
                end: found[method]
                for end in setting.ends
                if method in (found := differences(rows, name, end))
            }
            axes.errorbar(
                [end + (number - len(SHOWN) / 2) * width for end in points],
                [mean for mean, _, _ in points.values()],
                np.array([(mean - low, high - mean) for mean, low, high in points.values()]).T,
                fmt="o",
                ms=4,
                lw=1.2,
                c=colour,
                label=method,
            )
        axes.axhline(0, c="black", lw=0.8)
        axes.set_title(f"{setting.title} learning rate")
        axes.set_xticks(setting.ends)
        axes.set_xlabel("epoch at which the average ends")
        axes.set_ylabel("held-out loss against raw weights, %")
        axes.grid(alpha=0.3, axis="y")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(SHOWN), fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the study."""
    arguments = tyro.cli(Arguments, description=__doc__)
    chosen, rows = settings(arguments), figures(arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = tables(rows, chosen)
    arguments.out.with_name(arguments.out.name + "-tables.md").write_text(text)
    plot(rows, chosen, arguments.out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    script.run(main)
