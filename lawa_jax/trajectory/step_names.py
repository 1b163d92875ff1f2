"""Which step a directory name stands for, and which step an address names."""

import re

from etils import epath

from lawa_jax.errors import SelectionError
from lawa_jax.trajectory.storage import TMP_MARKER

_MOST_DIGITS = 18
_STEP_NAME = re.compile(r"^(?:.+_)?([0-9]+)$")


def step_of(name: str) -> int | None:
    """The step a directory name stands for: ``90``, ``000090``, ``checkpoint_90``."""
    if TMP_MARKER in name or name.startswith("."):
        return None
    match = _STEP_NAME.match(name)
    # Longer ones are no counters but dates, hashes and the like.
    return int(match.group(1)) if match and len(match.group(1)) <= _MOST_DIGITS else None


def prefix_of(name: str) -> str:
    """How a step's directory is named besides its number: ``checkpoint_`` of ``checkpoint_90``.

    Further numbers do not count: ``epoch_1_step_`` and ``epoch_2_step_`` are one manner.
    """
    return re.sub("[0-9]+", "#", name.rstrip("0123456789"))


def parse_address(text: str) -> tuple[str, int | None]:
    """``RUN@90`` is step 90 of RUN, ``RUN`` all of it.

    Raises:
      SelectionError: what follows the last ``@`` is no step number, and no such path exists.
    """
    path, at, step = text.rpartition("@")
    if not at:
        return text, None
    if path and step.isascii() and step.isdigit():
        return path, int(step)
    if "@" in step or "/" in step or epath.Path(text).exists():
        return text, None
    raise SelectionError(f"{text!r}: expected RUN@STEP with a whole number, found step {step!r}")
