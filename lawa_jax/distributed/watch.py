"""Noticing that another process has died, and stopping with a message that says which.

A collective whose partner is dead never returns, in a thread that no exception reaches. So a thread
beside it counts signs of life through the coordination service, and ends the process.
"""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lawa_jax.distributed.lifeline import Door, hold
from lawa_jax.errors import EXIT_RUN_FAILED

_BEATS, _VERDICT, _DOOR = "lawa-watch/beat", "lawa-watch/verdict", "lawa-watch/door"
_GONE = "process 0, which coordinates the others, is gone"


class Watch:
    """Signs of life, sent and watched in the background.

    Every process counts up its own key; process 0 looks at all of them and, when one stands still
    for `timeout` seconds, writes a verdict that the others find at their next beat. When process 0
    dies, the others can no longer reach the service; where `host` is known, a connection that
    breaks tells them at once.

    Args:
      client: of the coordination service.
      index: of this process.
      count: number of processes.
      timeout: seconds.
      host: where the others find process 0; None leaves the connections out.
      end: called with the message in the end; by default it is printed and the process exits 1.
    """

    def __init__(
        self,
        client: Any,
        index: int,
        count: int,
        *,
        timeout: float,
        host: str | None = None,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._client, self._index, self._count = client, index, count
        self._timeout, self._end = timeout, end or _end
        self._stopped = threading.Event()
        self._where = f"{socket.gethostname()}, pid {os.getpid()}"
        self._seen: dict[int, tuple[int, float, str]] = {}
        self._started = time.monotonic()
        self._host = host
        self._door: Door | None = None
        if index == 0 and host is not None:
            self._door = Door()
            self._set(_DOOR, self._door.port)
        self._thread = threading.Thread(target=self._run, name="lawa-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Before the processes part; the others are told that silence is meant."""
        self._stopped.set()
        self._thread.join()
        self._set(f"{_BEATS}/{self._index}", [-1, self._where])
        self._part()

    def _part(self) -> None:
        if self._door is not None:
            self._door.close()

    def tell(self, reason: str) -> None:
        """Tell the others that this process ends, and why; give them time to hear it."""
        self._stopped.set()
        try:
            if self._client.key_value_try_get(_VERDICT):
                return
        except RuntimeError:
            pass
        self._verdict(f"process {self._index} ({self._where}) stopped: {reason}")
        if self._index == 0:
            # The service ends with this process.
            time.sleep(2.5 * self._interval)
        self._part()

    @property
    def _interval(self) -> float:
        return min(1.0, self._timeout / 10)

    def _run(self) -> None:
        beat = 0
        failing = 0.0
        self._hold_on()
        while not self._stopped.wait(self._interval if beat else 0):
            beat += 1
            try:
                self._set(f"{_BEATS}/{self._index}", [beat, self._where])
                verdict = self._look()
                failing = 0.0
            except RuntimeError:
                # The service answers in milliseconds; a moment's trouble is forgiven.
                failing = failing or time.monotonic()
                if time.monotonic() - failing < min(3.0, self._timeout):
                    continue
                verdict = _GONE
            if verdict and not self._stopped.is_set():
                if self._index == 0:
                    # The others must read it before the service ends with this process.
                    time.sleep(2.5 * self._interval)
                    self._part()
                self._end(verdict)
                return

    def _hold_on(self) -> None:
        if self._index == 0 or self._host is None:
            return
        wait = round(1000 * self._timeout)
        try:
            port = int(self._client.blocking_key_value_get(_DOOR, wait))
        except RuntimeError:
            return

        def gone() -> None:
            if not self._stopped.is_set():
                self._end(_GONE)

        hold(self._host, port, gone)

    def _look(self) -> str | None:
        if self._index == 0 and (dead := self._dead()):
            self._verdict(dead)
            return dead
        try:
            return str(self._client.key_value_try_get(_VERDICT))
        except RuntimeError as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def _dead(self) -> str | None:
        now = time.monotonic()
        for key, text in self._client.key_value_dir_get(_BEATS + "/"):
            index = int(key.rpartition("/")[2])
            beat, where = json.loads(text)
            if self._seen.get(index, (0, now, ""))[0] != beat or index not in self._seen:
                self._seen[index] = (beat, now, where)
        for index in range(self._count):
            beat, since, where = self._seen.get(index, (0, self._started, "never heard of"))
            if beat >= 0 and now - since > self._timeout:
                return (
                    f"process {index} ({where}) has given no sign of life for {self._timeout:g} s"
                )
        return None

    def _verdict(self, text: str) -> None:
        self._client.key_value_set(_VERDICT, text, allow_overwrite=True)

    def _set(self, key: str, value: Any) -> None:
        self._client.key_value_set(key, json.dumps(value), allow_overwrite=True)


def _end(reason: str) -> None:
    print(
        f"error: {reason}; stopping, since the processes work in step. Start all of them again "
        "with --resume, on as many hosts as there are",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(EXIT_RUN_FAILED)
