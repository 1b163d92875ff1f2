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

from etils import epath

from lawa_jax.checkpoints import Checkpoint, open_checkpoint
from lawa_jax.errors import EvaluationError, LawaError, OutputExistsError
from lawa_jax.evaluators import Evaluator, Metrics
from lawa_jax.jobs import Job, Options, Result, step_of
from lawa_jax.provenance import read_record
from lawa_jax.results import Results, Row
from lawa_jax.trajectory import estimate, open_address, run_jobs

Progress = Callable[[int], None]
Trees = Callable[[Sequence[Job]], Iterator[tuple[Job, dict[str, Any]]]]


def evaluate_jobs(
    jobs: Sequence[Job],
    evaluator: Evaluator,
    results: Results,
    trees: Trees,
    *,
    options: Options,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Evaluate every average that `results` does not know yet, and enter it.

    An average is known if one of the same sources (by their digests where they have any, otherwise
    by path and time), weights, options and evaluator was evaluated.

    Args:
      jobs: the averages.
      evaluator: of a tree.
      results: the table.
      trees: makes the averages of some jobs, see `in_memory` and `stored`.
      options: as `trees` uses them.
      on_row: called with every row that is entered.

    Returns:
      The rows of all jobs, in their order.

    Raises:
      EvaluationError: the evaluator failed; its traceback goes to stderr. Rows entered are kept.
      Those of `lawa_jax.average_checkpoints`.
    """
    keys = keys_of(jobs, evaluator, options)
    missing: dict[str, list[Job]] = {}
    for job in jobs:
        row = results.rows.get(job.name)
        if row is None or row.key != keys[job.name]:
            missing.setdefault(keys[job.name], []).append(job)

    def enter(key: str, metrics: Metrics, seconds: float) -> None:
        for number, job in enumerate(missing[key]):
            row = _row(job, metrics, 0.0 if number else seconds, key)
            results.add(row)
            if on_row is not None:
                on_row(row)

    for key in missing:
        known = results.known(key)
        if known is not None:
            enter(key, known, 0.0)
    todo = [group[0] for key, group in missing.items() if results.known(key) is None]
    for job, tree in trees(todo):
        started = time.perf_counter()
        metrics = score(evaluator, tree, steps_of(job), job.name)
        # Or it would be held while the next is made.
        del tree
        enter(keys[job.name], metrics, time.perf_counter() - started)
    return [results.rows[job.name] for job in jobs]


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


def steps_of(job: Job) -> tuple[int, ...]:
    """Steps of a job's sources, oldest first; 0 for a checkpoint that is no step."""
    return tuple(step_of(source) or 0 for source in job.sources)


def in_memory(
    jobs: Sequence[Job], options: Options, progress: Progress | None = None
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Averages made in memory, see `passes`."""
    for group, each in passes(jobs, options):
        made = run_jobs(group, options=each, progress=progress)
        while made:
            # No name of this frame may hold a tree while the caller has it, or makes the next.
            yield made[0].job, _tree_of(made.pop(0))


def _tree_of(result: Result) -> dict[str, Any]:
    assert result.tree is not None
    return result.tree


def passes(jobs: Sequence[Job], options: Options) -> list[tuple[Sequence[Job], Options]]:
    """Jobs in groups, each made in one pass, with what its pass may take of the memory.

    Half of the memory is for averages waiting to be evaluated, at least one.
    """
    if not jobs:
        return []
    size = max(1, estimate(jobs[:1], options).bytes_to_write)
    count = min(len(jobs), max(1, options.memory // 2 // size))
    rest = max(options.memory - count * size, options.memory // 2)
    each = dataclasses.replace(options, memory=rest)
    return [(jobs[start : start + count], each) for start in range(0, len(jobs), count)]


def stored(
    jobs: Sequence[Job], folder: epath.Path, options: Options
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Averages read back from the directory that they were written to."""
    for job in jobs:
        checkpoint = open_checkpoint(
            folder / job.name, include=options.include, exclude=options.exclude
        )
        yield job, checkpoint.read_tree()


def is_stored(job: Job, folder: epath.Path, options: Options) -> bool:
    """Whether `folder` holds this very average already.

    Raises:
      OutputExistsError: it holds another one of that name.
    """
    out = folder / job.name
    if not out.exists():
        return False
    record = read_record(open_checkpoint(out))
    sources = [open_address(s, item=options.item) for s in job.sources]
    same = (
        [s["weight"] for s in record["sources"]] == list(job.weights)
        and len(record["sources"]) == len(sources)
        and all(
            _unchanged(theirs["digests"], ours)
            for theirs, ours in zip(record["sources"], sources, strict=True)
        )
        and record["options"] == json.loads(json.dumps(_choices(options)))
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


def keys_of(jobs: Sequence[Job], evaluator: Evaluator, options: Options) -> dict[str, str]:
    """By job name, a digest of all that an evaluation depends on."""
    sources = {
        source: _identity(open_address(source, item=options.item))
        for source in dict.fromkeys(s for job in jobs for s in job.sources)
    }
    shared = [evaluator.name, evaluator.identity, _choices(options)]
    return {
        job.name: _digest([shared, [sources[s] for s in job.sources], steps_of(job), job.weights])
        for job in jobs
    }


def _identity(source: Checkpoint) -> str:
    return _digest(source.checksums or [str(source.path), source.path.stat().mtime])


def _choices(options: Options) -> dict[str, Any]:
    """The options that results depend on."""
    names = ("item", "include", "exclude", "dtype", "bn")
    return {name: getattr(options, name) for name in names}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _row(job: Job, metrics: Metrics, seconds: float, key: str) -> Row:
    steps, total = steps_of(job), math.fsum(job.weights)
    return Row(
        job.name,
        steps[-1],
        len(steps),
        job.method,
        steps,
        tuple(w / total for w in job.weights),
        metrics,
        seconds,
        key,
    )
