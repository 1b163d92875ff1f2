"""One session a run: a second one is refused, and told who holds it.

Schedulers start a job again while the first still lives, and two sessions in one directory would
replace each other's checkpoints. The lock is the system's, on the directory: it is free as soon as
its holder is gone, ``kill -9`` included.
"""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from lawa_jax.distributed import Group, together
from lawa_jax.errors import OutputExistsError
from lawa_jax.output.staging import Lock
from lawa_jax.trajectory.storage import is_object_store

HOLDER = ".session"
"""The file in a run that says who trains in it, or did last."""


@contextlib.contextmanager
def held(run: epath.Path, group: Group) -> Iterator[None]:
    """Hold a run for this session; its directory is made if missing.

    On object stores, and on file systems that know no locks, there is nothing to hold.

    Args:
      run: the run directory.
      group: the processes of this session; all call this.

    Raises:
      OutputExistsError: another session holds it, in every process; nothing was changed.
    """
    with contextlib.ExitStack() as stack:

        def take() -> None:
            if group.index == 0 and not is_object_store(run):
                stack.enter_context(_locked(Path(os.fspath(run))))

        together(group, "session", take)
        yield


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    is_new = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    try:
        lock = Lock(run)
    except BlockingIOError:
        raise OutputExistsError(
            f"{run}: another session is training in it ({_holder(run)}); wait for it to end, or "
            "stop it. This one has changed nothing"
        ) from None
    try:
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        (run / HOLDER).write_text(json.dumps(holder) + "\n")
        yield
    finally:
        with contextlib.suppress(OSError):
            if is_new and [path.name for path in run.iterdir()] == [HOLDER]:
                # The session ended before it began: it leaves nothing behind.
                (run / HOLDER).unlink()
                run.rmdir()
        lock.release()


def _holder(run: Path) -> str:
    try:
        found = json.loads((run / HOLDER).read_text())
        return f"process {found['pid']} on {found['host']}, since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it does not say which"
