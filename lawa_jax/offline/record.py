"""The JSON record beside every average: what it was made of, and how."""

import datetime
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import msgspec
from etils import epath

from lawa_jax.averaging.statistics import StoredStatistics
from lawa_jax.errors import CorruptCheckpointError, SelectionError
from lawa_jax.offline.recipe import AveragingOptions, Recipe
from lawa_jax.trajectory import Checkpoint
from lawa_jax.trajectory.formats.orbax_metadata import read_json_item
from lawa_jax.trajectory.run import RECORD
from lawa_jax.trajectory.storage import is_object_store
from lawa_jax.untrusted import checked

FORMAT = 2
"""Format 1 also had fields that follow from others: they are ignored."""
_FORMATS = (1, 2)
_PACKAGES = ("lawa-jax", "jax", "numpy", "orbax-checkpoint", "tensorstore")


class SourceRecord(msgspec.Struct, kw_only=True):
    """One source of an average.

    Attributes:
      address: as it was named: ``RUN@26``.
      path: of the item directory, absolute.
      relative: the same from the directory that holds the average; None on object stores.
      step: its step, if it has one.
      weight: of any scale; its coefficient is its share of the sum of all weights.
      digests: of its leaves as they were read.
    """

    address: str
    path: str
    relative: str | None
    step: int | None = None
    weight: float
    digests: dict[str, str]


class OptionsRecord(msgspec.Struct, kw_only=True):
    """The options that the values of an average depend on, see `AveragingOptions`."""

    item: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dtype: str | None = None
    bn: StoredStatistics


class Record(msgspec.Struct, kw_only=True):
    """What an average was made of, and how.

    Attributes:
      format: of this record.
      created: when, ISO 8601 in UTC.
      method: ``uniform``, ``ema:0.9``, ...
      sources: the checkpoints, oldest first.
      options: to repeat the average.
      taken_from_newest: leaves that were not averaged.
      versions: of the packages that made it.
    """

    format: int = FORMAT
    created: str = ""
    method: str
    sources: list[SourceRecord]
    options: OptionsRecord
    taken_from_newest: list[str] = []
    versions: dict[str, str] = {}

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        return content


def options_of(options: AveragingOptions) -> OptionsRecord:
    """The options that results depend on."""
    return OptionsRecord(
        item=options.item,
        include=options.include,
        exclude=options.exclude,
        dtype=options.dtype,
        bn=options.bn,
    )


def make_record(
    recipe: Recipe,
    sources: Sequence[Checkpoint],
    *,
    out: epath.PathLike,
    input_digests: Sequence[Mapping[str, str]],
    options: AveragingOptions,
    copied: Sequence[str],
) -> Record:
    """The record of one average.

    Args:
      recipe: what was asked for.
      sources: the opened checkpoints, oldest first.
      out: where the average will be; sources are also given relative to it.
      input_digests: digests of the leaves of each source.
      options: as the average was made.
      copied: leaves taken from the newest source instead of averaged.
    """
    return Record(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        method=recipe.method,
        sources=[
            SourceRecord(
                address=address,
                path=_absolute(source.path),
                relative=_relative(source.path, out),
                step=source.step,
                weight=weight,
                digests=dict(digests),
            )
            for address, source, weight, digests in zip(
                recipe.sources, sources, recipe.weights, input_digests, strict=True
            )
        ],
        options=options_of(options),
        taken_from_newest=sorted(copied),
        versions={"python": platform.python_version(), **_versions()},
    )


def read_record(checkpoint: Checkpoint) -> Record:
    """The record beside an average.

    Raises:
      SelectionError: it has none, or one of a later format.
      CorruptCheckpointError: it is damaged, or its weights make no average.
    """
    content = read_json_item(checkpoint.step_dir / RECORD)
    if not content:
        raise SelectionError(
            f"{checkpoint.label} has no record of how it was made: only averages written by lawa "
            "can be verified"
        )
    if content.get("format") not in _FORMATS:
        raise SelectionError(
            f"{checkpoint.label}: its record has format {content.get('format')!r}, expected "
            f"{FORMAT}; use the version of lawa-jax that wrote it"
        )
    record = checked(
        content, Record, f"{checkpoint.label}: its record is damaged, make the average again"
    )
    weights = [source.weight for source in record.sources]
    if not weights or not all(map(math.isfinite, weights)) or not _is_total(weights):
        raise CorruptCheckpointError(
            f"{checkpoint.label}: its record is damaged: its weights make no average: {weights}; "
            "make the average again"
        )
    return record


def _is_total(weights: Sequence[float]) -> bool:
    try:
        return math.isfinite(math.fsum(weights)) and math.fsum(weights) != 0
    except OverflowError:
        return False


def _absolute(source: epath.Path) -> str:
    """A path that is found from any directory."""
    return str(source) if is_object_store(source) else os.path.abspath(source)


def _relative(source: epath.Path, out: epath.PathLike) -> str | None:
    if is_object_store(source) or is_object_store(out):
        return None
    return os.path.relpath(_absolute(source), os.path.dirname(os.path.abspath(out)))


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
