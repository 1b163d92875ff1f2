"""The log beside a run: JSON lines, readable while the run goes on and after it was killed."""

import json
from collections.abc import Iterator
from typing import Any

from etils import epath


class JsonLog:
    """Appends events to ``log.jsonl``; each line is one JSON object with an ``"event"``.

    Args:
      path: of the file.
      writes: false in all processes but one: they only read.
    """

    def __init__(self, path: epath.Path, *, writes: bool = True) -> None:
        self._path, self._writes = path, writes
        if writes and path.exists():
            text = path.read_text()
            # A kill in mid-write leaves half a line; the next one must not be glued to it.
            if text and not text.endswith("\n"):
                path.write_text(text[: text.rfind("\n") + 1])

    def write(self, event: str, **fields: Any) -> None:
        """Append one event."""
        if not self._writes:
            return
        line = json.dumps({"event": event, **fields}, allow_nan=True) + "\n"
        with self._path.open("a") as file:
            file.write(line)

    def events(self, event: str) -> list[dict[str, Any]]:
        """All events of one kind, in order."""
        return [line for line in read_log(self._path) if line["event"] == event]

    def by(self, event: str, *keys: str) -> dict[Any, dict[str, Any]]:
        """Events of one kind by one or several of their fields; the last of equals counts.

        A resumed run repeats what was logged after the state it started from.
        """
        found: dict[Any, dict[str, Any]] = {}
        for line in self.events(event):
            found[line[keys[0]] if len(keys) == 1 else tuple(line[k] for k in keys)] = line
        return found


def read_log(path: epath.Path) -> Iterator[dict[str, Any]]:
    """Events of a log; a last line cut off by a kill is left out."""
    if not path.exists():
        return
    # A byte that is no text damages its own line alone.
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and "event" in event:
            yield event
