"""Metrics of a tree by code the user names: ``evaluate.py:score`` or ``package.module:score``.

Only what the command line names is imported, never what a run or checkpoint says.
"""

import hashlib
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from lawa_jax.errors import ConfigError, EvaluationError

Metrics = dict[str, float]


class Evaluator(NamedTuple):
    """A function from a tree to its metrics.

    Attributes:
      name: as the user named it, for messages and results.
      identity: changes when its metrics may: a digest of the code, or of the settings.
      score: ``score(tree, sources)``, where `sources` are the steps of the checkpoints averaged,
        oldest first.
    """

    name: str
    identity: str
    score: Callable[[dict[str, Any], tuple[int, ...]], Metrics]


def load_evaluator(reference: str, option: str = "--evaluator") -> Evaluator:
    """The function that ``file.py:function`` or ``module:function`` names.

    It is called with a nested dict of numpy arrays and returns a number, or a dict of numbers by
    metric name; a single number is named like the function. As in ``python file.py`` and ``python
    -m module``, modules beside the file and in the working directory can be imported. Messages call
    what named it `option`.

    Raises:
      ConfigError: no such file, module or function, or one that fails to import.
    """
    place, colon, attribute = reference.rpartition(":")
    if not (place and colon and attribute.isidentifier()):
        raise ConfigError(f"{option} {reference}: expected file.py:function or module:function")
    load = _from_file if place.endswith(".py") else _named
    module = load(place, reference, option)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(
            f"{option} {reference}: {place} has no function {attribute!r}; expected one that "
            "takes a tree and returns a number or a dict of numbers"
        )
    source = getattr(module, "__file__", None)
    code = Path(source).read_bytes() if source else b""
    return Evaluator(
        reference,
        hashlib.sha256(code).hexdigest(),
        lambda tree, sources: checked(function(tree), reference, attribute),
    )


def checked(value: Any, reference: str, name: str) -> Metrics:
    """What an evaluator returned, as floats by name; NaN and infinities are results, too.

    Raises:
      EvaluationError: it is neither a number nor a dict of numbers, or two of one name.
    """
    given = value if isinstance(value, Mapping) else {name: value}
    metrics: Metrics = {}
    for key, number in given.items():
        if str(key) in metrics:
            raise EvaluationError(
                f"{reference}: expected metrics by name, found two of {str(key)!r}"
            )
        try:
            # float() would read text as well.
            if isinstance(number, str | bytes | bytearray):
                raise TypeError
            metrics[str(key)] = float(number)
        except (TypeError, ValueError):
            raise EvaluationError(
                f"{reference}: expected a number or a dict of numbers by name, found "
                f"{type(number).__name__}" + (f" for {key!r}" if number is not value else "")
            ) from None
    if not metrics:
        raise EvaluationError(f"{reference}: expected at least one metric, found none")
    return metrics


def metric_of(metrics: Mapping[str, float], name: str | None, reference: str) -> float:
    """One metric; the only one there is by default.

    Raises:
      ConfigError: there is none of that name, or several to choose from; lists them.
    """
    if name is None and len(metrics) == 1:
        return next(iter(metrics.values()))
    if name is None or name not in metrics:
        asked = "several metrics" if name is None else f"no metric {name!r}"
        raise ConfigError(
            f"{reference} gives {asked}; choose one with --metric: {', '.join(metrics)}"
        )
    return metrics[name]


def describe(metrics: Mapping[str, float]) -> str:
    """Metrics for people: ``loss 0.1234, top1 0.9``."""
    return ", ".join(
        f"{name} {value:.6g}" if math.isfinite(value) else f"{name} {value}"
        for name, value in metrics.items()
    )


def _from_file(place: str, reference: str, option: str) -> ModuleType:
    file = Path(place)
    if not file.is_file():
        raise ConfigError(f"{option} {reference}: {place}: no such file")
    spec = importlib.util.spec_from_file_location(f"evaluator_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles in it look their module up.
    sys.modules[spec.name] = module
    _search(file.resolve().parent)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{option} {reference}: {type(error).__name__}: {error}") from error
    return module


def _named(place: str, reference: str, option: str) -> ModuleType:
    _search(Path.cwd())
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{option} {reference}: {type(error).__name__}: {error}; a file is named "
            "path/to/file.py:function"
        ) from error


def _search(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
