"""Noticing that this process stands still, and where in the code.

Which is no fault by itself: the others stand still, too, when they wait for one that hangs.
"""

import os
import sys
import threading
import traceback
from typing import Any

STILL_SECONDS = 60.0
"""Seconds at one place of the code after which a process counts as making no progress."""


class Standstill:
    """Compares where the threads of this process are, from one look to the next.

    Args:
      seconds: at the same places, after which the process stands still.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._places: Any = None
        self._since = 0.0
        self._published = False
        self._said = 0.0

    def look(self, now: float) -> dict[str, Any] | None:
        """What has changed: ``place`` and ``waits`` of the main thread when the process has come
        to a standstill, an empty dict when it moves again, and None otherwise.
        """
        frames = sys._current_frames()
        main = threading.main_thread()
        places = {
            thread.ident: (id(frame), frame.f_lasti)
            for thread in threading.enumerate()
            if thread is not threading.current_thread()
            and not thread.name.startswith("lawa-r")
            and (frame := frames.get(thread.ident or 0)) is not None
            # A thread that waits is idle, and so is one that wakes only to wait again (of tqdm).
            and (thread is main or frame.f_code.co_filename != threading.__file__)
        }
        if places != self._places:
            self._places, self._since = places, now
        still = now - self._since >= self.seconds
        if still == self._published:
            return None
        self._published, self._said = still, now - self.seconds
        return _main_thread() if still else {}

    def due(self, now: float) -> bool:
        """Whether to say so: when this process stands still, every `seconds`."""
        if not self._published or now - self._said < self.seconds:
            return False
        self._said = now
        return True


def _main_thread() -> dict[str, Any]:
    """Innermost, and the last calls within this project."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = traceback.extract_stack(frame)[::-1]
    places = [*stack[:1], *[f for f in stack[1:] if "lawa_jax" in f.filename][:3]]
    return {
        "place": " < ".join(f"{os.path.basename(f.filename)}:{f.lineno} {f.name}" for f in places),
        "waits": any(map(_waits_for_others, stack[:6])),
    }


def _waits_for_others(call: traceback.FrameSummary) -> bool:
    """Whether a call is of JAX, for the others' part of a compiled step, or an exchange."""
    jax = sys.modules.get("jax")
    within_jax = jax is not None and call.filename.startswith(os.path.dirname(str(jax.__file__)))
    return within_jax or call.name == "exchange"
