"""Ending all processes with one clear line when one of them has died or has given up.

A collective whose partner is dead never returns, in a thread that no exception reaches. So threads
beside it ask JAX's coordination service, whose heartbeats tell who is alive, and end the process.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from lawa_jax.distributed.standstill import STILL_SECONDS, Standstill
from lawa_jax.errors import EXIT_RUN_FAILED

_STOPPED, _HEARD, _LEFT = "lawa-roll/stopped", "lawa-roll/heard", "lawa-roll/left"
_STILL = "lawa-roll/still"
_INTERVAL = 1.0
# How long process 0, with which the service ends, waits for the others to hear the reason.
_FAREWELL = 5.0


class RollCall:
    """Asks who is alive, and hears why another process ends.

    Args:
      client: of the coordination service, which has to be a recoverable one: it then tells of dead
        processes rather than ending this one.
      index: of this process.
      count: number of processes.
      timeout: seconds without a heartbeat after which the service counts a process as dead.
      end: called with the reason when another process has ended; must end this one.
      still: seconds without progress after which a process is named on stderr.
    """

    def __init__(
        self,
        client: Any,
        index: int,
        count: int,
        *,
        timeout: float,
        end: Callable[[str], None],
        still: float = STILL_SECONDS,
    ) -> None:
        self._client, self._index, self._count = client, index, count
        self._timeout, self._end = timeout, end
        self._standstill = Standstill(still)
        self._parted = threading.Event()
        self._ending = threading.Lock()
        self.places = [""] * count
        """Host and process id of each, for messages."""
        self._threads = [
            threading.Thread(target=target, name="lawa-roll-call", daemon=True)
            for target in (self._ask, self._listen)
        ]
        for thread in self._threads:
            thread.start()

    def part(self) -> None:
        """Before the processes part, after all have arrived there: silence is no death now."""
        self._client.key_value_set(f"{_LEFT}/{self._index}", "")
        self._parted.set()
        # A thread that is within JAX while the interpreter ends would abort it.
        for thread in self._threads:
            thread.join()
        if self._index == 0:
            # The service ends with this process: the others leave first.
            end = time.monotonic() + self._timeout
            while len(self._missing()) < self._count - 1 and time.monotonic() < end:
                time.sleep(0.05)

    def tell(self, reason: str) -> None:
        """Tell the others that this process ends, and why."""
        self._parted.set()
        self._announce(f"{self.name(self._index)} stopped: {reason}")

    def lost(self) -> None:
        """The connection to process 0 has ended."""
        if not self._parted.is_set():
            with self._ending:
                self._end(f"{self.name(0)}, which coordinates the others, is gone")

    @property
    def patience(self) -> float:
        """Seconds within which the death of a process is found and told."""
        return self._timeout + 2 * _FAREWELL

    def name(self, index: int) -> str:
        """``process 2 (host, pid 17)``."""
        return f"process {index}" + (f" ({self.places[index]})" if self.places[index] else "")

    def _ask(self) -> None:
        while not self._parted.wait(_INTERVAL):
            try:
                dead = {i for i in self._missing() if self._get(f"{_LEFT}/{i}") is None}
            except RuntimeError:
                # The service answers as long as process 0 lives, and its end is noticed.
                continue
            if dead:
                names = ", ".join(map(self.name, sorted(dead)))
                has = "has" if len(dead) == 1 else "have"
                self._finish(f"{names} {has} given no sign of life for {self._timeout:g} s", dead)

    def _missing(self) -> set[int]:
        """The processes that are dead or have left."""
        everybody = list(range(self._count))
        # Returns when all that are alive have asked the same.
        return set(everybody) - set(self._client.get_live_nodes(everybody))

    def _listen(self) -> None:
        while not self._parted.is_set():
            try:
                reason = self._client.blocking_key_value_get(_STOPPED, round(1000 * _INTERVAL))
            except RuntimeError:
                with contextlib.suppress(RuntimeError):
                    self._look()
                self._parted.wait(_INTERVAL / 20)
                continue
            # A process that is about to end by the same error says so itself.
            self._parted.wait(_INTERVAL)
            self._finish(reason)

    def _look(self) -> None:
        """Publish where this process stands still; process 0 names those the others wait for."""
        now = time.monotonic()
        if (change := self._standstill.look(now)) is not None:
            self._client.key_value_set(
                f"{_STILL}/{self._index}", json.dumps(change), allow_overwrite=True
            )
        if self._index == 0 and self._standstill.due(now):
            pairs = self._client.key_value_dir_get(f"{_STILL}/")
            still = {int(key.rpartition("/")[2]): json.loads(text) for key, text in pairs}
            if all(still.get(i) for i in range(self._count)):
                for index, found in sorted(still.items()):
                    if not found["waits"]:
                        print(
                            f"warning: {self.name(index)} is alive but has made no progress for "
                            f"{self._standstill.seconds:g} s, and the others wait for it; it is at "
                            f"{found['place']}",
                            file=sys.stderr,
                            flush=True,
                        )

    def _get(self, key: str) -> str | None:
        try:
            return str(self._client.key_value_try_get(key))
        except RuntimeError:
            return None

    def _announce(self, reason: str, dead: Collection[int] = ()) -> None:
        """Give the reason to the others; where an earlier one was given, that is what they hear."""
        for key, value in ((_STOPPED, reason), (f"{_HEARD}/{self._index}", "")):
            with contextlib.suppress(RuntimeError):
                self._client.key_value_set(key, value)
        if self._index == 0:
            # The service ends with this process.
            end = time.monotonic() + _FAREWELL
            waiting = set(range(1, self._count)) - set(dead)
            while waiting and time.monotonic() < end:
                waiting = {i for i in waiting if self._get(f"{_HEARD}/{i}") is None}
                time.sleep(0.05)

    def _finish(self, reason: str, dead: Collection[int] = ()) -> None:
        with self._ending:
            if not self._parted.is_set():
                self._announce(reason, dead)
                self._end(reason)


def end_process(reason: str, advice: str = "") -> None:
    """Print why and exit with the code of a failed run, whatever the other threads wait for."""
    print(
        f"error: {reason}; stopping, since the processes work in step. Start all of them again"
        f"{advice}",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(EXIT_RUN_FAILED)
