"""Staging directories: held by the process that writes them, removed after it died.

A process that is killed (-9) cannot remove what it has staged. Readers ignore it by its name, but
it takes space; so the next writer of the same output removes it. Whether its writer still lives is
told by a lock on the directory, which the kernel releases with the process. Locks may mean nothing
between machines that share a disk, so that only leftovers of the own machine are touched.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import re
import shutil
import uuid
from pathlib import Path

from lawa_jax.trajectory.storage import TMP_MARKER


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


class Lock:
    """A lock on a directory, held until `release` or the end of the process.

    Where the file system knows no locks, it is simply free: then nothing is ever taken for dead.

    Raises:
      BlockingIOError: another process holds it.
      OSError: the directory cannot be opened, or is gone.
    """

    def __init__(self, path: Path) -> None:
        self._file: int | None = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.is_held = False
        """False where the file system knows no locks."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.is_held = True
            if not os.path.samestat(os.fstat(self._file), os.stat(path)):
                raise BlockingIOError(errno.EAGAIN, "replaced meanwhile", str(path))
        except OSError as error:
            if self.is_held or isinstance(error, BlockingIOError):
                self.release()
                raise

    def release(self) -> None:
        """Let others have it; may be called again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def new_staging(target: Path) -> tuple[Path, Lock]:
    """A new directory beside `target`, whose name every reader of Orbax checkpoints ignores.

    What killed writers of the same target have left is removed first.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_dead(target)
    while True:
        path = target.with_name(_prefix(target) + uuid.uuid4().hex[:12])
        path.mkdir()
        # Before it is locked, another process may take it for dead: then once more.
        try:
            return path, Lock(path)
        except (BlockingIOError, FileNotFoundError):
            continue
        except BaseException:
            path.rmdir()
            raise


def remove_dead(target: Path) -> None:
    """Remove what killed writers of `target` on this machine have left in staging."""
    pattern = re.compile(re.escape(_prefix(target)) + "[0-9a-f]{12}")
    for name in os.listdir(target.parent):
        path = target.with_name(name)
        if pattern.fullmatch(name) and not path.is_symlink():
            # Alive, of another user, or gone: leave it alone.
            with contextlib.suppress(OSError):
                lock = Lock(path)
                if lock.is_held:
                    shutil.rmtree(path, ignore_errors=True)
                lock.release()


def _prefix(target: Path) -> str:
    return f"{target.name}{TMP_MARKER}-lawa-{_machine()}-"
