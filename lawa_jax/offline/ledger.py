"""What a long command has done so far, kept so that a killed one goes on where it was.

A JSON-lines file: the first line says of what the entries are, every other line is one entry. It is
how both kinds of sweeps are taken up again, those that write averages and those that evaluate them.
"""

import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from lawa_jax.errors import CheckpointWriteError, OutputExistsError
from lawa_jax.output.staging import Lock
from lawa_jax.trajectory.storage import TMP_MARKER

LedgerEntry = Mapping[str, Any]


class Ledger:
    """A ledger that this process alone may write, from `open` to `close`.

    Args:
      path: the file; its directory is made and locked.

    Raises:
      OutputExistsError: another process is writing into the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # What a crash or an error in `begin` may leave behind, for the next `begin` to replace.
        self.aside = path.with_name(path.name + TMP_MARKER)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = Lock(path.parent)
        except BlockingIOError:
            raise OutputExistsError(
                f"another process is writing into {path.parent}; wait for it, or choose another "
                "output directory"
            ) from None
        self._file: Any = None

    def read(self) -> tuple[LedgerEntry | None, list[LedgerEntry]]:
        """The heading and the entries that are there; None and [] where there is no ledger.

        A line that a kill cut short or that was damaged says nothing: what it stood for is done
        again.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return None, []
        heading, *entries = (_object(line) for line in lines)
        return heading, [entry for entry in entries if entry is not None]

    def begin(self, heading: LedgerEntry, entries: Iterable[LedgerEntry] = ()) -> Self:
        """Write heading and entries anew, all at once, and be ready for more."""
        with self.aside.open("wb") as file:
            file.write(b"".join(_line(entry) for entry in (heading, *entries)))
            file.flush()
            os.fsync(file.fileno())
        self.aside.replace(self.path)
        self._file = self.path.open("ab", buffering=0)
        return self

    def append(self, entry: LedgerEntry, *, sync: bool = True) -> None:
        """Add an entry; it is on disk when this returns, unless `sync` is false.

        Raises:
          CheckpointWriteError: it cannot be written.
        """
        line = _line(entry)
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise CheckpointWriteError(
                error.errno,
                f"cannot write {self.path}: {error.strerror}; what is done so far is kept: the "
                "same command goes on from there",
            ) from error

    def close(self) -> None:
        """Let others write; may be called again."""
        if self._file is not None:
            self._file.close()
        self._lock.release()


def _line(entry: LedgerEntry) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _object(line: bytes) -> LedgerEntry | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
