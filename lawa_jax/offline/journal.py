"""The book an interruptible pass keeps: which blocks are done, and which outputs published.

One entry a finished block, made after the block is in all outputs. A pass that is killed repeats
at most the blocks its workers were at: one a thread.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from etils import epath

from lawa_jax.errors import OutputExistsError
from lawa_jax.offline.ledger import Ledger, LedgerEntry
from lawa_jax.offline.streaming import Done
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
        self._directory = directory
        text = json.dumps(identity, sort_keys=True)
        heading = {"pass": hashlib.sha256(text.encode()).hexdigest()}
        self.finished: dict[tuple[str, int], Done] = {}
        """Blocks that are in all their outputs, as far as the journal knows."""
        self._publishing: set[str] = set()
        self._published: set[str] = set()
        self._ledger = Ledger(directory / "journal.jsonl")
        try:
            found, entries = self._ledger.read()
            if found != heading:
                entries = []
                self._refuse_strangers(found)
                for path in directory.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            for entry in entries:
                # Damaged in part, it says nothing.
                with contextlib.suppress(KeyError, TypeError, ValueError, OverflowError):
                    self._take(entry)
            self._ledger.begin(heading, entries)
        except BaseException:
            self._ledger.close()
            raise

    def _refuse_strangers(self, heading: LedgerEntry | None) -> None:
        """What is thrown away has to be ours."""
        own = (self._ledger.path, self._ledger.aside)
        others = [p.name for p in self._directory.iterdir() if p not in own]
        if others and "pass" not in (heading or {}):
            raise OutputExistsError(
                f"{self._directory} is for unfinished averages, but holds {others[0]} and no "
                "journal of them; move it away, or choose another output directory"
            )

    def _take(self, entry: LedgerEntry) -> None:
        if "block" in entry:
            name, number = entry["block"]
            read, written = tuple(map(int, entry["read"])), tuple(entry["written"])
            self.finished[str(name), int(number)] = Done(str(name), int(number), read, written)
        elif "publishing" in entry:
            self._publishing.add(str(entry["publishing"]))
        elif "published" in entry:
            self._published.add(str(entry["published"]))

    def staging(self, out: epath.Path) -> Path:
        """Where an output is in the making."""
        return self._directory / f"{out.name}{TMP_MARKER}"

    def append(self, done: Done) -> None:
        """Note a finished block.

        Neither the block nor this is synced: whoever takes the pass up compares what is staged
        with the digests noted here.
        """
        entry = {
            "block": [done.name, done.number],
            "read": list(done.digests),
            "written": list(done.written),
        }
        self._ledger.append(entry, sync=False)

    def publishing(self, out: epath.Path) -> None:
        """Note that an output is about to be published."""
        self._ledger.append({"publishing": out.name})

    def published(self, out: epath.Path) -> None:
        """Note that an output was published."""
        self._ledger.append({"published": out.name})

    def is_published(self, out: epath.Path) -> bool:
        """Whether this pass has published an output, even if it was killed in that very moment."""
        renamed = out.name in self._publishing and not self.staging(out).exists() and out.exists()
        return out.name in self._published or renamed

    def complete(self) -> None:
        """The pass is complete: nothing needs to be remembered."""
        # The ledger last: until it is gone, the same command finds all outputs published.
        for path in self._directory.iterdir():
            if path != self._ledger.path:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self._ledger.path.unlink()
        self._directory.rmdir()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Put the book down; another `Journal` can take it up."""
        self._ledger.close()
