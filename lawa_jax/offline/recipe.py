"""What to average, and how: windows, best checkpoints and weighted sets as plain recipes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from etils import epath

from lawa_jax.averaging import coefficients, posthoc_ema, window
from lawa_jax.averaging.statistics import StoredStatistics
from lawa_jax.errors import CheckpointNotFoundError, SelectionError
from lawa_jax.trajectory import Run, Runs, parse_address

DEFAULT_MEMORY = 1 << 30


@dataclasses.dataclass(frozen=True)
class AveragingOptions:
    """How checkpoints are read and averaged.

    Attributes:
      item: item of a step; chosen by name by default.
      include: patterns of leaf names; parameters and batch statistics by default.
      exclude: patterns of leaf names to leave out.
      dtype: of averaged leaves; their own by default.
      bn: batch statistics of the newest checkpoint, or averaged like weights.
      memory: bytes to stay within.
      threads: readers.
    """

    item: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dtype: str | None = None
    bn: StoredStatistics = "average"
    memory: int = DEFAULT_MEMORY
    threads: int = 2

    @property
    def selection(self) -> dict[str, Any]:
        """Which leaves of a source to read: keywords of `Run.open`."""
        return {"item": self.item, "include": self.include, "exclude": self.exclude}


class Recipe(NamedTuple):
    """One average to be made.

    Attributes:
      sources: addresses (``RUN@26``), oldest first.
      weights: one a source, of any scale.
      method: ``uniform``, ``ema:0.9``, ..., or ``custom``.
      name: a directory name for it among others: ``k5-end30-uniform``.
    """

    sources: tuple[str, ...]
    weights: tuple[float, ...]
    method: str
    name: str


class Result(NamedTuple):
    """One finished average.

    Attributes:
      recipe: what was asked for.
      tree: nested dict of arrays, where it was made in memory.
      path: the checkpoint, where it was written.
      digests: of its leaves.
      input_digests: of the sources' leaves, by address.
      bytes_read: by the whole pass.
      seconds: of the whole pass, by phase: "read and average", "publish".
    """

    recipe: Recipe
    tree: dict[str, Any] | None
    path: epath.Path | None
    digests: dict[str, str]
    input_digests: dict[str, dict[str, str]]
    bytes_read: int
    seconds: dict[str, float]

    @property
    def tree_in_memory(self) -> dict[str, Any]:
        """The tree of an average that was made in memory."""
        if self.tree is None:
            raise ValueError(f"{self.recipe.name} was written to {self.path}; open it there")
        return self.tree


def window_recipe(
    run: epath.PathLike | Run,
    *,
    k: int | None = 5,
    end: int | None = None,
    method: str = "uniform",
    steps: str | Sequence[int] | None = None,
    share: str | None = None,
) -> Recipe:
    """A window of a run: the `k` latest steps up to `end`, or a share of the run, or given steps.

    Args:
      run: the run; a `Run` is not listed again.
      k: number of checkpoints.
      end: the newest step; the run's newest by default.
      method: see `lawa_jax.averaging.coefficients.of_method`.
      steps: exactly these, as ``"50:90:10"`` or numbers, instead of `k` and `end`.
      share: ``"1%"`` of the run's checkpoints (rounded up, at least 2) instead of `k`.

    Raises:
      CheckpointNotFoundError: there are none in `run`.
      SelectionError: checkpoints that do not exist or are in doubt, an impossible window, an
        unknown method.
    """
    run = _with_steps(run)
    existing = run.steps
    if steps is not None:
        wanted = window.parse_steps(steps) if isinstance(steps, str) else steps
        chosen = window.select(existing, wanted)
        name = f"steps{chosen[0]}-{chosen[-1]}x{len(chosen)}"
    else:
        count = window.share_of_run(len(existing), share) if share is not None else k
        if count is None:
            raise SelectionError("say which checkpoints: a number k, a share, or steps")
        chosen = window.latest(existing, count, end)
        name = f"k{count}-end{chosen[-1]}"
    return _of_method(run, chosen, method, name)


def best_recipe(
    run: epath.PathLike | Run,
    *,
    best: int,
    metric: str,
    mode: Literal["min", "max"] = "min",
    method: str = "uniform",
) -> Recipe:
    """The `best` checkpoints of a run by a metric saved with them; of equals the newer.

    Raises:
      SelectionError: fewer checkpoints have that metric; lists the metrics there are.
    """
    if best < 1:
        raise SelectionError(f"expected at least 1 checkpoint to average, found {best}")
    if mode not in ("min", "max"):
        raise SelectionError(f"mode: expected min or max, found {mode!r}")
    values: dict[int, float] = {}
    known: set[str] = set()
    run = _with_steps(run)
    for step in run.steps:
        metrics = run.metrics(step)
        known |= metrics.keys()
        if metric in metrics and math.isfinite(metrics[metric]):
            values[step] = metrics[metric]
    if len(values) < best:
        raise SelectionError(
            f"{run.path}: {len(values)} checkpoints have a finite metric {metric!r}, expected at "
            f"least {best}; saved metrics: {', '.join(sorted(known)) or 'none'}"
        )
    sign = 1 if mode == "min" else -1
    chosen = sorted(sorted(values, key=lambda s: (sign * values[s], -s))[:best])
    return _of_method(run, chosen, method, f"best{best}-{metric.replace('/', '_')}")


def weighted_recipe(sources: Sequence[str]) -> Recipe:
    """Any weighted set: ``["A@10:0.25", "B@20:0.75"]``, the last taken as the newest.

    Without any weights they are equal; with some, all need one. A path without ``@step`` is a
    checkpoint itself, or a run's newest.

    Raises:
      SelectionError: weights that are no numbers or do not sum to 1, a source named twice.
    """
    addresses, weights = [], []
    for text in sources:
        place, weight = split_weight(text)
        addresses.append(place)
        weights.append(weight)
    given = [w for w in weights if w is not None]
    if given and len(given) < len(weights):
        missing = addresses[weights.index(None)]
        raise SelectionError(f"{missing} has no weight; give all sources one, or none")
    twice = sorted({a for a in addresses if addresses.count(a) > 1})
    if twice:
        raise SelectionError(f"{twice[0]} is named twice; add its weights up instead")
    c = coefficients.custom(given) if given else coefficients.uniform(len(addresses))
    return Recipe(tuple(addresses), _weights(c), "custom" if given else "uniform", "weighted")


def reconstruction_recipe(
    runs: Mapping[str, float],
    *,
    sigma_rel: float,
    end: int | None = None,
    listed: Runs | None = None,
) -> tuple[Recipe, float]:
    """A power-function EMA that was not stored, from the snapshots of those that were.

    Args:
      runs: run directories of EMA snapshots, and the relative width of each. Steps count updates
        (or epochs) since the start of training.
      sigma_rel: relative width that is wanted.
      end: step at which it ends; the newest snapshot by default. Later ones are not used.
      listed: runs that are listed already.

    Returns:
      The recipe, and its reconstruction error (see `lawa_jax.averaging.posthoc_ema`).

    Raises:
      CheckpointNotFoundError: a directory without snapshots.
      SelectionError: no snapshot at `end`, or a width out of range.
    """
    listed = listed or Runs()
    steps = {run: _with_steps(listed.run(run)).steps for run in runs}
    everything = sorted({step for existing in steps.values() for step in existing})
    if end is None:
        end = everything[-1]
    if end not in everything:
        raise SelectionError(
            f"there is no snapshot {end} to end at; existing: {window.describe(everything)}"
        )
    found = sorted(
        (step, sigma, run) for run, sigma in runs.items() for step in steps[run] if step <= end
    )
    profiles = [posthoc_ema.Profile(sigma, step) for step, sigma, _ in found]
    target = posthoc_ema.Profile(sigma_rel, end)
    c = posthoc_ema.posthoc_ema_weights(profiles, target)
    # What weighs nothing need not be read: all but one where that one is the EMA itself.
    c[np.abs(c) < 1e-9 * np.abs(c).max()] = 0
    c /= c.sum()
    error = posthoc_ema.reconstruction_error(profiles, target, c)
    used = [(address(run, step), w) for (step, _, run), w in zip(found, c, strict=True) if w]
    recipe = Recipe(
        tuple(source for source, _ in used),
        tuple(float(w) for _, w in used),
        f"posthoc_ema:{sigma_rel:g}",
        f"end{end}-posthoc_ema{sigma_rel:g}",
    )
    return recipe, error


def split_weight(text: str) -> tuple[str, float | None]:
    """``"A@10:0.25"`` as address and weight; None where no weight is given.

    Raises:
      SelectionError: what follows the last colon is no number, and no such path exists.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or "/" in tail or "@" in tail or epath.Path(text).exists():
        return text, None
    try:
        return head, float(tail)
    except ValueError:
        raise SelectionError(
            f"{text!r}: expected ADDRESS:WEIGHT with a number, found {tail!r}"
        ) from None


def sweep_recipes(
    run: epath.PathLike | Run,
    *,
    ks: Sequence[int],
    ends: Sequence[int],
    methods: Sequence[str] = ("uniform",),
) -> list[Recipe]:
    """Every combination of window length, end and method, ends ascending.

    Raises:
      SelectionError: one of them is impossible; says which.
    """
    run = _with_steps(run)
    recipes = [
        window_recipe(run, k=k, end=end, method=method)
        for end in sorted(set(ends))
        for k in dict.fromkeys(ks)
        for method in dict.fromkeys(methods)
    ]
    if not recipes:
        raise SelectionError("the sweep is empty: give window lengths, ends and methods")
    return recipes


def address(run: epath.PathLike, step: int) -> str:
    """``RUN@step``."""
    return f"{run}@{step}"


def step_of(source: str) -> int | None:
    """The step of an address, None without one."""
    return parse_address(source)[1]


def _with_steps(run: epath.PathLike | Run) -> Run:
    run = Run.of(run)
    if not run.steps:
        raise CheckpointNotFoundError(f"{run.path} holds no committed checkpoint")
    return run


def _of_method(run: Run, steps: Sequence[int], method: str, name: str) -> Recipe:
    for step in steps:
        # Raises where it is in doubt which directory is the step.
        run.directory(step)
    c = coefficients.of_method(method, steps)
    # Ones instead of 1/k: their products are exact, and their sum is divided once.
    weights = (1.0,) * len(steps) if method == "uniform" else _weights(c)
    return Recipe(
        tuple(address(run.path, step) for step in steps),
        weights,
        method,
        f"{name}-{method.replace(':', '')}",
    )


def _weights(c: np.ndarray) -> tuple[float, ...]:
    return tuple(float(x) for x in c)
