"""Averages written as ordinary checkpoints, each with the record of what it was made of."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from lawa_jax.distributed import Group
from lawa_jax.offline import streaming
from lawa_jax.offline.journal import Journal
from lawa_jax.offline.plan import Plan
from lawa_jax.offline.recipe import Recipe, Result
from lawa_jax.offline.record import make_record
from lawa_jax.offline.sinks import NullSink
from lawa_jax.offline.streaming import Done, ReadProgress
from lawa_jax.output import StepWriter
from lawa_jax.output.shared_writer import SharedWriter
from lawa_jax.output.space import check_space
from lawa_jax.trajectory import Checkpoint
from lawa_jax.trajectory.step_names import step_of as step_of_directory

if TYPE_CHECKING:
    from lawa_jax.offline.prepare import Prepared


def write_averages(
    prepared: "Prepared",
    outs: Sequence[epath.Path],
    journal: epath.PathLike | None,
    progress: ReadProgress | None,
    *,
    overwrite: bool,
    as_step: bool,
) -> list[Result]:
    """Make prepared averages and publish each as a checkpoint; see `Prepared.written`."""
    with ExitStack() as stack:
        book = None
        if journal is not None and Path(journal).exists():
            book = stack.enter_context(Journal(Path(journal), _identity(prepared, outs)))
        # What an interrupted pass has published is there rightly.
        new = [out for out in outs if book is None or not book.is_published(out)]
        prepared.check(new, overwrite=overwrite, as_step=as_step)
        for folder in {out.parent for out in new} if book is None else ():
            count = sum(out.parent == folder for out in new)
            check_space(folder, prepared.plan.bytes_to_write // len(outs) * count)
        if journal is not None and book is None:
            book = stack.enter_context(Journal(Path(journal), _identity(prepared, outs)))
        return _write(stack, prepared, outs, overwrite, book, progress)


def _write(
    stack: ExitStack,
    prepared: "Prepared",
    outs: Sequence[epath.Path],
    overwrite: bool,
    book: Journal | None,
    progress: ReadProgress | None,
) -> list[Result]:
    recipes, plan, opened = prepared.recipes, prepared.plan, prepared.opened
    writers: list[StepWriter | SharedWriter | None] = []
    for recipe, out in zip(recipes, outs, strict=True):
        if book is not None and book.is_published(out):
            writers.append(None)
            continue
        newest = opened[recipe.sources[-1]]
        writer = _writer(out, newest, plan, overwrite, book, prepared.group)
        if book is None:
            # With a journal, what is staged survives an interruption, to be taken up again.
            stack.enter_context(writer)
        writers.append(writer)
    finished = {} if book is None else _adopted(plan, writers, book.finished)
    started = time.perf_counter()
    inputs = streaming.run(
        plan,
        [NullSink() if writer is None else writer for writer in writers],
        finished=finished,
        on_block=None if book is None else book.append,
        progress=progress,
        group=prepared.group,
    )
    averaged = time.perf_counter()
    by_address = dict(zip(opened, inputs, strict=True))
    for recipe, out, each in zip(recipes, outs, writers, strict=True):
        if each is None:
            continue
        if book is not None:
            book.publishing(out)
        each.finish(record=_record(recipe, out, prepared, by_address))
        if book is not None:
            book.published(out)
    if book is not None:
        book.complete()
    seconds = {
        "read and average": averaged - started,
        "publish": time.perf_counter() - averaged,
    }
    return [
        Result(
            recipe,
            None,
            out,
            {} if writer is None else writer.digests(),
            {source: by_address[source] for source in recipe.sources},
            plan.bytes_to_read,
            seconds,
        )
        for recipe, out, writer in zip(recipes, outs, writers, strict=True)
    ]


def _writer(
    out: epath.Path,
    newest: Checkpoint,
    plan: Plan,
    overwrite: bool,
    book: Journal | None,
    group: Group,
) -> StepWriter | SharedWriter:
    options: dict[str, Any] = {
        "item": _item_name(newest),
        "key_types": newest.key_types,
        "kinds": newest.kinds,
        "nodes": newest.nodes,
        "strings": {
            node.name: newest.strings[node.name] for node in newest.nodes if node.kind == "string"
        },
        **newest.passed_on,
        "overwrite": overwrite,
    }
    if group.count > 1:
        # A chunk is written by one process.
        chunks = {name: plan.grid(name) for name in plan.out}
        return SharedWriter(group, out, plan.out, newest.keys, chunks=chunks, **options)
    staging = None if book is None else book.staging(out)
    return StepWriter(out, plan.out, newest.keys, staging=staging, **options)


def _item_name(source: Checkpoint) -> str:
    """The output's item: the source's, or Orbax's default where the step itself was the item."""
    name = source.path.name
    return "default" if step_of_directory(name) is not None else name


def _adopted(
    plan: Plan,
    writers: Sequence[StepWriter | SharedWriter | None],
    finished: Mapping[tuple[str, int], Done],
) -> dict[tuple[str, int], Done]:
    """The finished blocks that the staging directories really hold, told to the writers.

    What they do not hold, or not with the bytes that were written, is done again.
    """
    held: dict[tuple[str, int], Done] = {}
    for name in {name for name, _ in finished}.intersection(plan.specs):
        for number, index in enumerate(plan.blocks(name)):
            done = finished.get((name, number))
            if done is None:
                continue
            staged = [
                (writer, digest)
                for writer, digest in zip(writers, done.written, strict=True)
                if isinstance(writer, StepWriter) and digest is not None
            ]
            if all(writer.holds(name, index, digest) for writer, digest in staged):
                held[name, number] = done
                for writer, digest in staged:
                    writer.adopt(name, index, digest)
    return held


def _record(
    recipe: Recipe,
    out: epath.Path,
    prepared: "Prepared",
    input_digests: dict[str, dict[str, str]],
) -> dict[str, Any]:
    return make_record(
        recipe,
        [prepared.opened[source] for source in recipe.sources],
        out=out,
        input_digests=[input_digests[source] for source in recipe.sources],
        options=prepared.options,
        copied=sorted(prepared.plan.copied),
    ).as_json()


def _identity(prepared: "Prepared", outs: Sequence[epath.Path]) -> dict[str, Any]:
    """What must be the same for an interrupted pass to be taken up again."""
    return {
        "jobs": [[list(recipe.sources), list(recipe.weights)] for recipe in prepared.recipes],
        "outs": [str(out) for out in outs],
        "options": dataclasses.asdict(prepared.options),
        "sources": {
            source: [str(c.path), c.path.stat().mtime, c.checksums]
            for source, c in prepared.opened.items()
        },
    }
