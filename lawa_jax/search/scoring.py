"""Many averages of a trajectory made, evaluated and entered into a table, one at a time.

Averages are made in memory and let go of after their evaluation: a sweep of hundreds needs no disk.
A pass over the checkpoints makes as many as half of the memory allowed holds, at least one.
"""

import dataclasses
import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from etils import epath

from lawa_jax.errors import EvaluationError, LawaError, OutputExistsError
from lawa_jax.offline.prepare import Prepared, prepare
from lawa_jax.offline.recipe import AveragingOptions, Recipe, step_of
from lawa_jax.offline.record import options_of, read_record
from lawa_jax.offline.streaming import ReadProgress
from lawa_jax.search.evaluators import Evaluator, Metrics
from lawa_jax.search.results import Results, Row
from lawa_jax.trajectory import Checkpoint, Runs, open_checkpoint

Trees = Callable[[Sequence[Recipe]], Iterator[tuple[Recipe, dict[str, Any]]]]


def score_recipes(
    recipes: Sequence[Recipe],
    evaluator: Evaluator,
    results: Results,
    trees: Trees,
    *,
    options: AveragingOptions,
    runs: Runs | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Evaluate every average that `results` does not know yet, and enter it.

    An average is known if one of the same sources (by their digests where they have any, otherwise
    by path and time), weights, options and evaluator was evaluated.

    Args:
      recipes: the averages.
      evaluator: of a tree.
      results: the table.
      trees: makes the averages of some recipes, see `in_memory` and `stored`.
      options: as `trees` uses them.
      runs: runs that are listed already.
      on_row: called with every row that is entered.

    Returns:
      The rows of all recipes, in their order.

    Raises:
      EvaluationError: the evaluator failed; its traceback goes to stderr. Rows entered are kept.
      Those of `lawa_jax.average_checkpoints`.
    """
    keys = keys_of(recipes, evaluator, options, runs)
    missing: dict[str, list[Recipe]] = {}
    for recipe in recipes:
        row = results.rows.get(recipe.name)
        if row is None or row.key != keys[recipe.name]:
            missing.setdefault(keys[recipe.name], []).append(recipe)

    def enter(key: str, metrics: Metrics, seconds: float) -> None:
        for number, recipe in enumerate(missing[key]):
            row = _row(recipe, metrics, 0.0 if number else seconds, key)
            results.add(row)
            if on_row is not None:
                on_row(row)

    for key in missing:
        known = results.known(key)
        if known is not None:
            enter(key, known, 0.0)
    todo = [group[0] for key, group in missing.items() if results.known(key) is None]
    for recipe, tree in trees(todo):
        started = time.perf_counter()
        metrics = score(evaluator, tree, steps_of(recipe), recipe.name)
        # Or it would be held while the next is made.
        del tree
        enter(keys[recipe.name], metrics, time.perf_counter() - started)
    return [results.rows[recipe.name] for recipe in recipes]


def score(evaluator: Evaluator, tree: dict[str, Any], steps: tuple[int, ...], what: str) -> Metrics:
    """The metrics of one average, `what` names it in messages.

    Raises:
      EvaluationError: the evaluator failed; its traceback is printed on stderr.
    """
    try:
        return evaluator.score(tree, steps)
    except LawaError:
        raise
    except (Exception, SystemExit) as error:
        # sys.exit() in it would end the command, and with 0 as if it had succeeded.
        traceback.print_exc()
        raise EvaluationError(
            f"{evaluator.name} failed on {what}: {type(error).__name__}: {error}; see the "
            "traceback above"
        ) from error


def steps_of(recipe: Recipe) -> tuple[int, ...]:
    """Steps of a recipe's sources, oldest first; 0 for a checkpoint that is no step."""
    return tuple(step_of(source) or 0 for source in recipe.sources)


def in_memory(
    recipes: Sequence[Recipe],
    options: AveragingOptions,
    progress: ReadProgress | None = None,
    *,
    runs: Runs | None = None,
) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    """Averages made in memory, see `passes`."""
    for prepared in passes(recipes, options, runs):
        made = prepared.in_memory(progress)
        while made:
            # No name of this frame may hold a tree while the caller has it, or makes the next.
            yield made[0].recipe, made.pop(0).tree_in_memory


def passes(
    recipes: Sequence[Recipe], options: AveragingOptions, runs: Runs | None = None
) -> Iterator[Prepared]:
    """Recipes in groups, each prepared to be made in one pass when it is asked for.

    Half of the memory is for averages waiting to be evaluated, at least one; a pass may take the
    rest.
    """
    if not recipes:
        return
    runs = runs or Runs()
    size = max(1, prepare(recipes[:1], options, runs=runs).estimate.bytes_to_write)
    count = min(len(recipes), max(1, options.memory // 2 // size))
    rest = max(options.memory - count * size, options.memory // 2)
    each = dataclasses.replace(options, memory=rest)
    for start in range(0, len(recipes), count):
        yield prepare(recipes[start : start + count], each, runs=runs)


def stored(
    recipes: Sequence[Recipe], folder: epath.Path, options: AveragingOptions
) -> Iterator[tuple[Recipe, dict[str, Any]]]:
    """Averages read back from the directory that they were written to."""
    for recipe in recipes:
        checkpoint = open_checkpoint(
            folder / recipe.name, include=options.include, exclude=options.exclude
        )
        yield recipe, checkpoint.read_tree()


def is_stored(
    recipe: Recipe, folder: epath.Path, options: AveragingOptions, runs: Runs | None = None
) -> bool:
    """Whether `folder` holds this very average already.

    Raises:
      OutputExistsError: it holds another one of that name.
    """
    out = folder / recipe.name
    if not out.exists():
        return False
    record = read_record(open_checkpoint(out))
    runs = runs or Runs()
    sources = [_open(runs, s, options) for s in recipe.sources]
    same = (
        [s.weight for s in record.sources] == list(recipe.weights)
        and len(record.sources) == len(sources)
        and all(
            _unchanged(theirs.digests, ours)
            for theirs, ours in zip(record.sources, sources, strict=True)
        )
        and record.options == options_of(options)
    )
    if not same:
        raise OutputExistsError(
            f"{out} already exists and is an average of other sources, weights or options; choose "
            "another output, or --overwrite"
        )
    return True


def _unchanged(digests: dict[str, str], source: Checkpoint) -> bool:
    ours = source.checksums
    return all(ours[name] == digest for name, digest in digests.items() if name in ours)


def keys_of(
    recipes: Sequence[Recipe],
    evaluator: Evaluator,
    options: AveragingOptions,
    runs: Runs | None = None,
) -> dict[str, str]:
    """By recipe name, a digest of all that an evaluation depends on."""
    runs = runs or Runs()
    sources = {
        source: _identity(_open(runs, source, options))
        for source in dict.fromkeys(s for recipe in recipes for s in recipe.sources)
    }
    shared = [evaluator.name, evaluator.identity, msgspec.to_builtins(options_of(options))]
    return {
        r.name: _digest([shared, [sources[s] for s in r.sources], steps_of(r), r.weights])
        for r in recipes
    }


def _open(runs: Runs, source: str, options: AveragingOptions) -> Checkpoint:
    return runs.open(source, **options.selection)


def _identity(source: Checkpoint) -> str:
    return _digest(source.checksums or [str(source.path), source.path.stat().mtime])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _row(recipe: Recipe, metrics: Metrics, seconds: float, key: str) -> Row:
    steps, total = steps_of(recipe), math.fsum(recipe.weights)
    return Row(
        recipe.name,
        steps[-1],
        len(steps),
        recipe.method,
        steps,
        tuple(w / total for w in recipe.weights),
        metrics,
        seconds,
        key,
    )
