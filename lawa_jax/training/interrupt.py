"""SIGTERM and Ctrl-C during training: finish the update, save, then leave."""

import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn

from lawa_jax.distributed import Group
from lawa_jax.script import Terminated


class Interrupt:
    """Within the ``with`` block SIGTERM and SIGINT only set `requested`; a second SIGINT stops."""

    def __init__(self) -> None:
        self.requested: int = 0
        """The signal that arrived, 0 if none."""
        self._previous: dict[int, Any] = {}

    def stop(self) -> NoReturn:
        """Leave with the exception of the signal that arrived."""
        if self.requested == signal.SIGTERM:
            raise Terminated
        raise KeyboardInterrupt

    def __enter__(self) -> "Interrupt":
        # Python delivers signals to the main thread alone, and only there may handlers be set.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number


# How often processes ask each other, in seconds; a preempted machine has 30 left.
_ASK_EVERY = 2.0


class Agreement:
    """Stopping after the same update in all processes, when a signal reached any of them.

    They ask each other after a number of updates that takes about two seconds, as measured by
    process 0, so that all ask after the same ones.
    """

    def __init__(self, interrupt: Interrupt, group: Group) -> None:
        self._interrupt, self._group = interrupt, group
        self.requested: int = 0
        """The signal that was agreed on, 0 if none."""
        self._last: tuple[int, float] | None = None
        self._next = 0

    def agreed(self, step: int | None = None) -> bool:
        """Whether to stop now; every process calls this alike.

        Args:
          step: updates done; without it (at the end of an epoch) they ask in any case.
        """
        if self._group.count == 1:
            self.requested = self._interrupt.requested
        elif step is None or step >= self._next:
            now = time.perf_counter()
            seconds = 0.0
            if step is not None and self._last is not None:
                seconds = (now - self._last[1]) / max(1, step - self._last[0])
            answers = self._group.exchange("stop", [self._interrupt.requested, seconds])
            self.requested = max(answer[0] for answer in answers)
            if step is not None:
                pace = answers[0][1]
                self._next = step + (max(1, int(_ASK_EVERY / pace)) if pace > 0 else 1)
                self._last = step, now
        return bool(self.requested)

    def now(self) -> NoReturn:
        """Leave with the exception of the signal."""
        self._interrupt.requested = self.requested
        self._interrupt.stop()
