"""What an output may replace: nothing but an earlier average of ours, and never a source.

Everything here is found out before a checkpoint is read, so that a refusal costs nothing.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from etils import epath

from lawa_jax.errors import CorruptCheckpointError, OutputExistsError
from lawa_jax.trajectory import Checkpoint
from lawa_jax.trajectory.formats.orbax_metadata import read_json_item
from lawa_jax.trajectory.run import RECORD
from lawa_jax.trajectory.step_names import step_of
from lawa_jax.trajectory.storage import is_object_store


def check_outputs(
    outs: Sequence[epath.Path],
    sources: Iterable[Checkpoint],
    *,
    overwrite: bool,
    as_step: bool = False,
) -> None:
    """Refuse outputs that would destroy or imitate something.

    Args:
      outs: the directories to be written.
      sources: what they will be made from.
      overwrite: whether an existing output may be replaced.
      as_step: whether an output may have the name of a step of the run it is made from.

    Raises:
      OutputExistsError: an output exists and may not be replaced, is a source or lies around or
        inside one, or would be taken for a step of one.
    """
    places = [(source, _real(source.step_dir)) for source in sources]
    for out in outs:
        real = _real(out)
        for source, place in places:
            if real == place or real in _parents(place):
                raise OutputExistsError(
                    f"{out} is or holds {source.label}, from which it would be made; choose "
                    "another output"
                )
            if place in _parents(real):
                raise OutputExistsError(
                    f"{out} lies inside {source.label}, from which it would be made; choose "
                    "another output"
                )
            if not as_step and _parent(real) == _parent(place) and step_of(out.name) is not None:
                raise OutputExistsError(
                    f"{out} has the name of step {step_of(out.name)} of the run it is made from; "
                    "choose a name without a number at its end, or say --as-step"
                )
        if overwrite:
            _check_replaceable(out)
        elif out.exists() or (not is_object_store(out) and os.path.lexists(out)):
            raise OutputExistsError(
                f"{out} already exists and is never replaced silently; choose another name or say "
                "overwrite (--overwrite)"
            )


def _check_replaceable(out: epath.Path) -> None:
    """Of what exists, only an earlier average of ours may be replaced."""
    if not is_object_store(out) and os.path.islink(out):
        raise OutputExistsError(
            f"{out} is a link, whose target is not replaced; name the target, or another output"
        )
    if not out.exists():
        return
    try:
        record = read_json_item(out / RECORD)
    except CorruptCheckpointError:
        record = {}
    if not {"format", "sources", "options"} <= record.keys():
        raise OutputExistsError(
            f"{out} is no average that lawa wrote (it holds no record of one), so that it is not "
            "replaced even with --overwrite; choose another output, or move it away yourself"
        )


def _real(path: epath.Path) -> str:
    """A local path without links; links in it would hide that two paths are one."""
    return str(path).rstrip("/") if is_object_store(path) else os.path.realpath(path)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _parents(path: str) -> set[str]:
    return {str(parent) for parent in Path(path).parents} | {_parent(path)}
