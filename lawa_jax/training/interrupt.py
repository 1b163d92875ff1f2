"""SIGTERM and Ctrl-C during training: finish the update, save, then leave."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number
