"""The JSON record beside every average: what it was made of, and how."""

import datetime
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, get_args

from etils import epath

from lawa_jax.averaging.statistics import StoredStatistics
from lawa_jax.offline.recipe import Recipe
from lawa_jax.trajectory import Checkpoint
from lawa_jax.trajectory.storage import is_object_store
from lawa_jax.tree import LeafSpec

FORMAT = 1
_PACKAGES = ("lawa-jax", "jax", "numpy", "orbax-checkpoint", "tensorstore")


def make_record(
    recipe: Recipe,
    sources: Sequence[Checkpoint],
    *,
    out: epath.PathLike,
    specs: Mapping[str, LeafSpec],
    input_digests: Sequence[Mapping[str, str]],
    options: Mapping[str, Any],
    copied: Sequence[str],
) -> dict[str, Any]:
    """The record of one average, all of it JSON.

    Args:
      recipe: what was asked for.
      sources: the opened checkpoints, oldest first.
      out: where the average will be; sources are also given relative to it.
      specs: shapes and dtypes of the output.
      input_digests: digests of the leaves of each source.
      options: item, include, exclude, dtype and BatchNorm policy, to repeat the average.
      copied: leaves taken from the newest source instead of averaged.
    """
    total = math.fsum(recipe.weights)
    return {
        "format": FORMAT,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "method": recipe.method,
        "weights": list(recipe.weights),
        "sources": [
            {
                "address": address,
                **_place(source.path, out),
                "step": source.step,
                "weight": weight,
                "coefficient": weight / total,
                "digests": dict(digests),
            }
            for address, source, weight, digests in zip(
                recipe.sources, sources, recipe.weights, input_digests, strict=True
            )
        ],
        "options": dict(options),
        "taken_from_newest": sorted(copied),
        "dtypes": {name: spec.dtype.name for name, spec in specs.items()},
        "versions": {"python": platform.python_version(), **_versions()},
    }


_NUMBER, _TEXT = (int, float), (str,)
_FIELDS: dict[str, tuple[type, ...]] = {
    "method": _TEXT, "weights": (list,), "sources": (list,), "options": (dict,),
}  # fmt: skip
_SOURCE: dict[str, tuple[type, ...]] = {
    "address": _TEXT, "path": _TEXT, "relative": (str, type(None)), "weight": _NUMBER,
    "coefficient": _NUMBER, "digests": (dict,),
}  # fmt: skip
_OPTIONS: dict[str, tuple[type, ...]] = {
    "include": (list,), "exclude": (list,), "dtype": (str, type(None)), "bn": _TEXT,
}  # fmt: skip


def problem_of(record: Mapping[str, Any]) -> str | None:
    """What is wrong with a record, None if nothing is: missing fields, contradictions."""
    problem = _missing(record, _FIELDS) or _missing(record["options"], _OPTIONS)
    for source in [] if problem else record["sources"]:
        problem = problem or _missing(source, _SOURCE)
    if problem:
        return problem
    if record["options"]["bn"] not in get_args(StoredStatistics):
        return f"unknown BatchNorm policy {record['options']['bn']!r}"
    weights = [source["weight"] for source in record["sources"]]
    total = math.fsum(weights)
    if not weights or not math.isfinite(total) or total == 0:
        return f"its weights make no average: {weights}"
    if weights != record["weights"]:
        return f"weights {record['weights']} contradict those of its sources, {weights}"
    for source in record["sources"]:
        if source["coefficient"] != source["weight"] / total:
            return f"coefficient {source['coefficient']} of {source['address']} contradicts weights"
    return None


def _missing(found: Any, fields: Mapping[str, tuple[type, ...]]) -> str | None:
    if not isinstance(found, Mapping):
        return f"expected fields {', '.join(fields)}, found {found!r}"
    for name, types in fields.items():
        if name not in found:
            return f"it has no {name!r}"
        if not isinstance(found[name], types):
            return f"{name!r} is {found[name]!r}"
    return None


def _place(source: epath.Path, out: epath.PathLike) -> dict[str, str | None]:
    """Where a source is: absolute, so that it is found from any directory, and from the output."""
    if is_object_store(source) or is_object_store(out):
        path = str(source) if is_object_store(source) else os.path.abspath(source)
        return {"path": path, "relative": None}
    path, parent = os.path.abspath(source), os.path.dirname(os.path.abspath(out))
    return {"path": path, "relative": os.path.relpath(path, parent)}


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
