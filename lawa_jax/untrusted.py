"""JSON from files that nobody vouches for, checked against a type at the door.

Checkpoints, records and logs come from other people and from damaged disks. What is read here has
the types and bounds that its `msgspec.Struct` declares, or is an error that names the file.
"""

import json
from typing import Annotated, Any, TypeVar

import msgspec

from lawa_jax.errors import CorruptCheckpointError, LawaError

T = TypeVar("T")

# More than the metadata of a million leaves take.
_MOST_BYTES = 512 << 20

Length = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
"""A length, offset or number of bytes: sums and products of a few fit into 64 bits of Python."""
Positive = Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]


def parse(
    text: bytes,
    kind: type[T],
    where: str,
    *,
    unique: bool = False,
    error: type[LawaError] = CorruptCheckpointError,
) -> T:
    """The value of a JSON document.

    Args:
      text: the document.
      kind: what it has to be: a `msgspec.Struct`, ``dict[str, int]``, ...
      where: the file, for messages.
      unique: refuse objects with the same key twice, of which readers disagree which one counts.
      error: what is raised.

    Raises:
      LawaError: of the kind asked for: no JSON, other types, out of bounds, nested too deeply.
    """
    try:
        if len(text) > _MOST_BYTES:
            raise ValueError(f"{len(text)} bytes are more than such a file can have")
        if unique:
            return msgspec.convert(json.loads(text, object_pairs_hook=_unique), kind)
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as problem:
        raise error(f"{where}: {_told(problem)}") from problem


def checked(value: Any, kind: type[T], where: str) -> T:
    """A value that is parsed already, as `kind`.

    Raises:
      CorruptCheckpointError: it has other types, or is out of bounds.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.MsgspecError, RecursionError) as problem:
        raise CorruptCheckpointError(f"{where}: {_told(problem)}") from problem


def _told(problem: Exception) -> str:
    if isinstance(problem, msgspec.ValidationError):
        # "Expected `int`, got `str` - at `$.shape[0]`"
        text = str(problem)
        return text[:1].lower() + text[1:]
    if isinstance(problem, RecursionError):
        return "it is nested too deeply"
    return f"it cannot be read as JSON: {problem}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return found
