"""The book an interruptible pass keeps: which blocks are done, and which outputs published.

One JSON line a finished block, appended after the block is in all outputs. A pass that is killed
repeats at most the blocks its workers were at: one a thread.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from lawa_jax.errors import CheckpointWriteError, OutputExistsError
from lawa_jax.offline.streaming import Done
from lawa_jax.output.staging import Lock
from lawa_jax.trajectory.storage import TMP_MARKER


class Journal:
    """The journal in a directory of its own, which also holds the outputs in the making.

    A journal of another pass (other recipes, options or sources) is thrown away with what it
    staged, unless that pass is still running.

    Args:
      directory: its place, on the outputs' file system.
      identity: JSON that must be equal for the pass to be taken up again.

    Raises:
      OutputExistsError: another process is at it.
    """

    def __init__(self, directory: Path, identity: Mapping[str, Any]) -> None:
        self._directory, self._path = directory, directory / "journal.jsonl"
        text = json.dumps(identity, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        self.finished: dict[tuple[str, int], Done] = {}
        """Blocks that are in all their outputs."""
        self._publishing: set[str] = set()
        self._published: set[str] = set()
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = Lock(directory)
        except BlockingIOError:
            raise OutputExistsError(
                f"another process is writing averages there (it holds {directory}); wait for it, "
                "or choose another output directory"
            ) from None
        if not self._load(key):
            for path in directory.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            self._file = self._path.open("wb", buffering=0)
            self._line({"pass": key})
        else:
            self._file = self._path.open("ab", buffering=0)

    def _load(self, key: str) -> bool:
        if not self._path.exists():
            return False
        # A line that a kill cut short says nothing; the rewritten file goes on after it.
        lines = [line for line in self._path.read_text().split("\n")[:-1] if line]
        entries = [json.loads(line) for line in lines]
        if not entries or entries[0].get("pass") != key:
            return False
        self._path.write_text("".join(line + "\n" for line in lines))
        for entry in entries[1:]:
            if "block" in entry:
                name, number = entry["block"]
                self.finished[name, number] = Done(
                    name, number, tuple(entry["read"]), tuple(entry["written"])
                )
            self._publishing |= {entry["publishing"]} if "publishing" in entry else set()
            self._published |= {entry["published"]} if "published" in entry else set()
        return True

    def staging(self, out: epath.Path) -> Path:
        """Where an output is in the making."""
        return self._directory / f"{out.name}{TMP_MARKER}"

    def append(self, done: Done) -> None:
        """Note a finished block."""
        self._line(
            {
                "block": [done.name, done.number],
                "read": list(done.digests),
                "written": list(done.written),
            }
        )

    def publishing(self, out: epath.Path) -> None:
        """Note that an output is about to be published."""
        self._line({"publishing": out.name})

    def published(self, out: epath.Path) -> None:
        """Note that an output was published."""
        self._line({"published": out.name})

    def is_published(self, out: epath.Path) -> bool:
        """Whether this pass has published an output, even if it was killed in that very moment."""
        renamed = out.name in self._publishing and not self.staging(out).exists() and out.exists()
        return out.name in self._published or renamed

    def complete(self) -> None:
        """The pass is complete: nothing needs to be remembered."""
        shutil.rmtree(self._directory)
        self.close()

    def close(self) -> None:
        """Put the book down; another `Journal` can take it up."""
        self._file.close()
        self._lock.release()

    def _line(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        try:
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise CheckpointWriteError(
                error.errno,
                f"cannot write {self._path}: {error.strerror}; what is done so far is kept: the "
                "same command goes on from there",
            ) from error
