"""What a converter decides about one file: names, layouts, and the model's architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lawa_jax.interop.names import Names
from lawa_jax.interop.state import State


@dataclass(frozen=True)
class Conversion:
    """A plan for one file.

    Attributes:
      names: how every tensor becomes a leaf.
      model: the architecture's arguments, for ``config.json``.
      notes: what the user should know: what was ignored, what was guessed.
    """

    names: Names
    model: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())


Converter = Callable[[State], Conversion]
