"""Running a command in a forked process in which the nth call of the file system fails, or kills.

Audit events tell of opening, listing, making, renaming and removing; writing, syncing and the
rename that replaces nothing have none and are wrapped.
"""

import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from lawa_jax import script
from lawa_jax.output import publish

_EVENTS = {
    "open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir",
    "os.truncate", "os.link", "os.symlink",
}  # fmt: skip
_CALLS = ("pwrite", "preadv", "write", "fsync", "ftruncate")
UNEXPECTED = 70
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EDQUOT, errno.EROFS)


class Outcome(NamedTuple):
    """How a command ended.

    Attributes:
      code: exit code; minus the signal that killed it.
      err: what it wrote to stderr.
      calls: of the file system, below the watched directory or by descriptor.
    """

    code: int
    err: str
    calls: int


class _Point:
    """Counts calls, and acts at one of them."""

    def __init__(self) -> None:
        self.root, self.at, self.error = "", 0, 0
        self.count, self.active = 0, False

    def hit(self, path: Any = None) -> None:
        if not self.active or (path is not None and not self._is_below(path)):
            return
        self.count += 1
        if self.count == self.at:
            self.active = False
            if not self.error:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(self.error, os.strerror(self.error), None if path is None else str(path))

    def _is_below(self, path: Any) -> bool:
        # What names no path is a descriptor, of a directory that was opened before.
        return not isinstance(path, str | os.PathLike) or os.path.abspath(path).startswith(
            self.root
        )


_point = _Point()


def install() -> None:
    """Watch this process and its children; once, before anything else is started."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS:
            _point.hit(args[0] if args else None)

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            _point.hit()
            return original(*args, **kwargs)

        return call

    sys.addaudithook(hook)
    for name in _CALLS:
        setattr(os, name, wrapped(getattr(os, name)))
    publish._rename_with = wrapped(publish._rename_with)


def run(argv: list[str], root: str, *, at: int = 0, error: int = 0) -> Outcome:
    """Run ``lawa ARGV`` in a child; at its `at`-th call it fails with `error`, or is killed.

    Args:
      argv: of `lawa`.
      root: only calls about paths below count.
      at: 0: never.
      error: an errno; 0: SIGKILL.
    """
    from lawa_jax.cli.main import execute

    read, write = os.pipe()
    with tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(err.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stderr, sys.stdout = os.fdopen(2, "w"), os.fdopen(1, "w")
            _point.root, _point.at, _point.error = root, at, error
            _point.count, _point.active = 0, True
            try:
                script.run(lambda: execute(argv))
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
                code = UNEXPECTED
            _point.active = False
            os.write(write, str(_point.count).encode())
            os._exit(code)
        os.close(write)
        _, status = os.waitpid(child, 0)
        counted = os.read(read, 32)
        os.close(read)
        err.seek(0)
        text = err.read().decode(errors="replace")
    return Outcome(os.waitstatus_to_exitcode(status), text, int(counted or 0))
