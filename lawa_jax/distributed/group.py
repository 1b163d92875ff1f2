"""A group of processes that tell each other small things."""

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from lawa_jax import errors
from lawa_jax.errors import ConfigError, LawaError, PeerError

TIMEOUT_SECONDS = 600.0
"""How long to wait for the others where one of them may be writing a large checkpoint."""


class Group(Protocol):
    """Processes that run the same program.

    Attributes:
      index: of this process, from 0; process 0 leads: it logs and draws.
      count: number of processes.
    """

    index: int
    count: int

    def exchange(self, topic: str, value: Any = None) -> list[Any]:
        """Tell the others a JSON value; everybody's values in the order of processes.

        Every process calls it equally often for a topic; it returns when all have called.

        Raises:
          PeerError: some did not arrive in time; names them.
        """


class Alone:
    """The group of one process."""

    index = 0
    count = 1

    def exchange(self, topic: str, value: Any = None) -> list[Any]:
        """The value itself."""
        return [value]


ALONE = Alone()


class Processes:
    """The processes of `jax.distributed`, through its coordination service.

    Args:
      client: of the coordination service.
      index: of this process.
      count: number of processes.
      timeout: seconds to wait for the others.
    """

    def __init__(
        self,
        client: Any,
        index: int,
        count: int,
        *,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self.index, self.count = index, count
        self._client, self._timeout = client, timeout
        self._calls: dict[str, int] = {}
        self._lock = threading.Lock()

    def exchange(self, topic: str, value: Any = None) -> list[Any]:
        """See `Group`."""
        with self._lock:
            number = self._calls[topic] = self._calls.get(topic, 0) + 1
        folder = f"lawa/{topic}/{number}"
        self._client.key_value_set(f"{folder}/{self.index}", json.dumps(value))
        try:
            self._client.wait_at_barrier(folder, round(self._timeout * 1000))
        except RuntimeError as error:
            late = [str(i) for i in self._missing(folder)]
            raise PeerError(
                f"{topic}: process {self.index} waited {self._timeout:g} s for "
                + (f"process {', '.join(late)}" if late else "the others")
                + f" of {self.count}; look at the logs of those, then start all of them again"
                + ("" if late else f" ({error})")
            ) from error
        found = self._read(folder)
        if number > 1:
            # Everybody has read the one before, or could not have come here.
            self._client.key_value_delete(f"lawa/{topic}/{number - 1}/{self.index}")
        return [found[i] for i in range(self.count)]

    def _read(self, folder: str) -> dict[int, Any]:
        pairs = self._client.key_value_dir_get(f"{folder}/")
        return {int(key.rpartition("/")[2]): json.loads(text) for key, text in pairs}

    def _missing(self, folder: str) -> list[int]:
        try:
            here = set(self._read(folder))
        except RuntimeError:
            return []
        return [i for i in range(self.count) if i not in here]


def agree(group: Group, arguments: Mapping[str, Any]) -> None:
    """Check that all processes were asked to do the same.

    Args:
      group: the processes.
      arguments: JSON values by name.

    Raises:
      ConfigError: they differ; names the arguments, the processes and the values, in every process.
    """
    everybody = group.exchange("arguments", dict(arguments))
    first = everybody[0]
    found = [
        f"{name}: {first.get(name)!r} in process 0, {other.get(name)!r} in process {index}"
        for index, other in enumerate(everybody)
        for name in dict.fromkeys([*first, *other])
        if first.get(name) != other.get(name)
    ]
    if found:
        raise ConfigError(
            "the processes were started with different arguments; give all of them the same "
            f"({'; '.join(found[:5])}{f'; and {len(found) - 5} more' if len(found) > 5 else ''})"
        )


def together(group: Group, topic: str, work: Callable[[], Any]) -> list[Any]:
    """Call `work` in every process; all results, or the same kind of error everywhere.

    Without it, one process that fails leaves the others waiting.

    Args:
      group: the processes.
      topic: see `Group.exchange`.
      work: returns a JSON value.

    Raises:
      LawaError: `work` failed in one of the processes (any other exception is passed on where
        it arose, and is a `PeerError` elsewhere).
    """
    if group.count == 1:
        return [work()]
    try:
        result = {"ok": work()}
    except BaseException as error:
        text = str(error) or type(error).__name__
        group.exchange(topic, {"error": text, "kind": type(error).__name__})
        raise
    results = group.exchange(topic, result)
    for index, other in enumerate(results):
        if "error" in other:
            kind = getattr(errors, other["kind"], PeerError)
            kind = kind if issubclass(kind, LawaError) else PeerError
            text = f"process {index}: {other['error']}"
            # OSErrors take their text as strerror.
            raise kind(0, text) if issubclass(kind, errors.CheckpointWriteError) else kind(text)
    return [other["ok"] for other in results]
