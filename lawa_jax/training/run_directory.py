"""A run on disk: ``config.json``, ``log.jsonl``, ``epochs/<e>``, ``resume/<step>``, ``report/``.

Runs are data. They are resumed and evaluated from JSON; nothing in them is ever imported.
"""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from lawa_jax.errors import (
    CheckpointNotFoundError,
    ConfigError,
    OutputExistsError,
)
from lawa_jax.training.session_lock import HOLDER
from lawa_jax.trajectory import list_steps
from lawa_jax.untrusted import parse

CONFIG = "config.json"


def log_path(run: epath.Path) -> epath.Path:
    """Where a run's log is."""
    return run / "log.jsonl"


def check_new(run: epath.Path) -> None:
    """Check that a new run would replace nothing.

    Raises:
      OutputExistsError: a run, or anything else, is there already.
    """
    if run.exists() and any(path.name != HOLDER for path in run.iterdir()):
        epochs = list_steps(run)
        what = f"a run with {len(epochs)} epochs" if (run / CONFIG).exists() else "files"
        raise OutputExistsError(
            f"{run} already holds {what}; go on with --resume, or choose another --run_dir"
        )


def create(run: epath.Path, config: Mapping[str, Any]) -> None:
    """Make a run directory holding its resolved configuration.

    Raises:
      OutputExistsError: see `check_new`.
    """
    check_new(run)
    run.mkdir(parents=True, exist_ok=True)
    # Renamed into place, so that a run directory never holds half a configuration.
    aside = run / (CONFIG + ".tmp")
    aside.write_text(json.dumps(config, indent=2) + "\n")
    aside.rename(run / CONFIG)


def read_config(run: epath.Path) -> dict[str, Any]:
    """The configuration a run was started with.

    Raises:
      CheckpointNotFoundError: there is no run.
      CorruptCheckpointError: its configuration is no JSON object.
    """
    path = run / CONFIG
    if not path.exists():
        raise CheckpointNotFoundError(
            f"{run} holds no run: expected {CONFIG} in it, found "
            f"{'a directory without one' if run.exists() else 'nothing'}"
        )
    return parse(path.read_bytes(), dict[str, Any], str(path))


def check_resumable(run: epath.Path, config: Mapping[str, Any], changeable: frozenset[str]) -> None:
    """Check that `config` goes on with the trajectory of the run, not with another one.

    Args:
      run: the run directory.
      config: the configuration asked for now.
      changeable: fields that do not alter the trajectory.

    Raises:
      ConfigError: another field differs; names field, old and new value.
    """
    old = read_config(run)
    differing = [
        f"{name} was {old.get(name)!r}, now {config.get(name)!r}"
        for name in sorted(old.keys() | config.keys())
        if name not in changeable and old.get(name) != config.get(name)
    ]
    if differing:
        raise ConfigError(
            f"{run} was started with another configuration: {'; '.join(differing)}. Resume with "
            "the old values, or start a new run with another --run_dir"
        )
