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
from pathlib import Path
from typing import Any, NamedTuple

from lawa_jax import script
from lawa_jax.output import publish
from lawa_jax.trajectory.storage import TMP_MARKER

_EVENTS = {
    "open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "os.rmdir",
    "os.truncate", "os.link", "os.symlink",
}  # fmt: skip
_CALLS = ("pwrite", "preadv", "write", "fsync", "ftruncate")
_ORIGINAL = {name: getattr(os, name) for name in _CALLS}
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
        self.short = False
        self.syncs: Syncs | None = None
        self.meanwhile: Callable[[], None] | None = None

    def hit(self, path: Any = None) -> None:
        if not self.active or (path is not None and not self._is_below(path)):
            return
        self.count += 1
        if self.count == self.at:
            self.active = False
            if self.meanwhile is not None:
                self.meanwhile()
                return
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

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            _point.hit()
            if _point.short and name in ("pwrite", "preadv"):
                args = _halved(name, *args)
            if _point.syncs is not None and name == "rename":
                _point.syncs.check(Path(args[0]), Path(args[1]))
            result = original(*args)
            if _point.syncs is not None and name == "fsync":
                _point.syncs.note(args[0])
            return result

        return call

    sys.addaudithook(hook)
    for name, original in _ORIGINAL.items():
        setattr(os, name, wrapped(name, original))
    publish._rename_with = wrapped("rename", publish._rename_with)


def _halved(name: str, fd: int, data: Any, offset: int) -> tuple[Any, ...]:
    """What a signal or a full buffer does: half of what was asked for, at least one byte."""
    view = memoryview(data[0] if name == "preadv" else data)
    half = view[: max(1, len(view) // 2)]
    return (fd, [half] if name == "preadv" else half, offset)


class Syncs:
    """What a power failure would leave: nothing may get its final name before all of it is synced.

    A file counts as synced as it was at its last fsync, a directory with the names it had then.
    Names and contents may reach the disk in any order; so at the moment of the rename everything
    below has to be there already.
    """

    def __init__(self) -> None:
        self._synced: dict[int, Any] = {}

    def note(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        self._synced[os.fstat(fd).st_ino] = _state(path)

    def check(self, source: Path, target: Path) -> None:
        if TMP_MARKER in target.name:
            return
        for path in (source, *source.rglob("*")):
            if self._synced.get(path.stat().st_ino) != _state(path):
                os.write(2, f"NOT SYNCED: {path.relative_to(source)} of {target}\n".encode())
                os._exit(UNEXPECTED)


def _state(path: Path) -> Any:
    if path.is_dir():
        return sorted(os.listdir(path))
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def run(
    argv: list[str],
    root: str,
    *,
    at: int = 0,
    error: int = 0,
    short: bool = False,
    syncs: bool = False,
    meanwhile: Callable[[], None] | None = None,
) -> Outcome:
    """Run ``lawa ARGV`` in a child; at its `at`-th call it fails with `error`, or is killed.

    Args:
      argv: of `lawa`.
      root: only calls about paths below count.
      at: 0: never.
      error: an errno; 0: SIGKILL.
      short: every read and write transfers half of what was asked for.
      syncs: check the order of syncs, see `Syncs`.
      meanwhile: called at that call instead of a failure.
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
            _point.short, _point.meanwhile = short, meanwhile
            _point.syncs = Syncs() if syncs else None
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
