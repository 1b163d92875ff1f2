"""What lies in a converted run besides its epochs: configuration, names, and a lock."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lawa_jax.errors import CheckpointWriteError, CorruptCheckpointError, OutputExistsError
from lawa_jax.interop import names as names_record
from lawa_jax.interop.names import Conversion

CONFIG = "config.json"
_LOCK = ".convert.lock"
_UNFINISHED = ".orbax-checkpoint-tmp"


@contextmanager
def prepared(run: Path, plan: Conversion, source: Path) -> Iterator[None]:
    """A run directory that holds this conversion's configuration, locked for one process.

    Raises:
      OutputExistsError: it holds something else, or another process converts into it.
      CheckpointWriteError: it cannot be written.
    """
    _check_ours(run, plan)
    try:
        (run / "epochs").mkdir(parents=True, exist_ok=True)
        lock = open(run / _LOCK, "a")  # noqa: SIM115  (kept open as long as the lock is held)
    except OSError as error:
        raise CheckpointWriteError(
            error.errno, f"cannot write {run}: {error.strerror or error}; choose another run"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputExistsError(
                f"{run}: another process is converting into it; wait for it, or choose another run"
            ) from error
        _write_json(run / names_record.FILE, plan.names.to_json())
        config = {"model": dict(plan.model), "source": {"path": str(source), "format": "converted"}}
        _write_json(run / CONFIG, config)
        for left in (run / "epochs").glob(f"*{_UNFINISHED}*"):
            # A killed conversion left it; nobody else is writing, as we hold the lock.
            shutil.rmtree(left, ignore_errors=True)
        yield


def _check_ours(run: Path, plan: Conversion) -> None:
    path, epochs = run / CONFIG, run / "epochs"
    if run.exists() and not run.is_dir():
        raise OutputExistsError(f"{run} is a file; choose another name for the run")
    if not path.exists():
        others = [p.name for p in run.glob("*") if p.name not in (_LOCK, "epochs")]
        others += [p.name for p in epochs.glob("*") if _UNFINISHED not in p.name]
        if others:
            raise OutputExistsError(
                f"{run} already holds {others[0]!r} and is no converted run; choose another one"
            )
        return
    old = read_config(run)
    if "source" not in old:
        raise OutputExistsError(f"{run} is a run that was trained, not converted; choose another")
    if old.get("model") != dict(plan.model):
        raise OutputExistsError(
            f"{run} holds another model: {old.get('model')}, now {dict(plan.model)}; choose "
            "another run"
        )
    record = run / names_record.FILE
    if record.exists() and names_record.load(record) != plan.names:
        raise OutputExistsError(
            f"{run} was converted from files with other names or shapes ({names_record.FILE} "
            "differs); choose another run"
        )


def read_config(run: Path) -> dict[str, Any]:
    """The run's configuration.

    Raises:
      CorruptCheckpointError: it is no JSON object.
    """
    try:
        config = json.loads((run / CONFIG).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptCheckpointError(f"{run / CONFIG} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise CorruptCheckpointError(f"{run / CONFIG}: expected a JSON object")
    return config


def _write_json(path: Path, content: Any) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(aside, path)
