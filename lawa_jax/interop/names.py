"""The record that makes a conversion reversible: how every tensor of a file became a leaf.

It is kept as ``names.json`` in the run. With it any checkpoint of that model, an average included,
goes back under its original names, order, layouts and sharing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.interop.rules import Layout, shape_as_ours
from lawa_jax.trajectory.formats.state_dict import StateDict
from lawa_jax.tree import LeafSpec, dtype_named
from lawa_jax.untrusted import parse

FILE = "names.json"
_FORMAT = "lawa-names-v1"
_CONSTANT_BYTES = 16384


class Entry(NamedTuple):
    """One tensor: its name there, its keys here, and what happens to its axes."""

    name: str
    keys: tuple[str, ...]
    layout: Layout
    shape: tuple[int, ...]  # there
    dtype: str

    @property
    def leaf(self) -> str:
        """Our leaf name."""
        return "/".join(self.keys)

    @property
    def spec(self) -> LeafSpec:
        """Shape and dtype here."""
        return LeafSpec(shape_as_ours(self.shape, self.layout), np.dtype(self.dtype))


class Constant(NamedTuple):
    """A small buffer that is no weight (fairseq's ``version``), kept bit for bit."""

    shape: tuple[int, ...]
    dtype: str
    data: str  # hexadecimal

    def array(self) -> np.ndarray:
        """Its value."""
        return np.frombuffer(bytes.fromhex(self.data), self.dtype).reshape(self.shape).copy()


@dataclass(frozen=True)
class Names:
    """All names of one model.

    Attributes:
      entries: every tensor that became a leaf, in the file's order.
      order: all names of the file that are restored, shared and constant ones included.
      shared: names that are the very tensor of another name; stored once.
      constants: small buffers kept in this record.
      ignored: names that are not converted.
      wrapper: the keys around the state dict.
      nested: keys of tensors in dicts inside the state dict, by name.
    """

    entries: tuple[Entry, ...]
    order: tuple[str, ...]
    shared: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Constant] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    wrapper: tuple[str, ...] = ()
    nested: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def specs(self) -> dict[str, LeafSpec]:
        """Shape and dtype of every leaf by our name."""
        return {entry.leaf: entry.spec for entry in self.entries}

    @property
    def keys(self) -> dict[str, tuple[str, ...]]:
        """Key tuple of every leaf by our name."""
        return {entry.leaf: entry.keys for entry in self.entries}

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves."""
        return sum(entry.spec.nbytes for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "format": _FORMAT,
            "tensors": [
                {
                    "name": e.name,
                    "keys": list(e.keys),
                    "layout": e.layout,
                    "shape": list(e.shape),
                    "dtype": e.dtype,
                }
                for e in self.entries
            ],
            "order": list(self.order),
            "shared": dict(self.shared),
            "constants": {
                n: {**c._asdict(), "shape": list(c.shape)} for n, c in self.constants.items()
            },
            "ignored": list(self.ignored),
            "wrapper": list(self.wrapper),
            "nested": {name: list(keys) for name, keys in self.nested.items()},
        }


def constant(state: StateDict, name: str) -> Constant | None:
    """A buffer as a record; None if it is too large for one."""
    if state.specs[name].nbytes > _CONSTANT_BYTES:
        return None
    array = np.ascontiguousarray(state.read(name))
    spec = state.specs[name]
    return Constant(spec.shape, spec.dtype.name, array.tobytes().hex())


def from_json(content: Any, label: str) -> Names:
    """The record from JSON.

    Raises:
      CorruptCheckpointError: it is none, or of an unknown format.
    """
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CorruptCheckpointError(f"{label}: expected a record of names ({_FORMAT})")
    try:
        entries = tuple(
            Entry(
                str(e["name"]),
                tuple(map(str, e["keys"])),
                e["layout"],
                tuple(map(int, e["shape"])),
                dtype_named(str(e["dtype"])).name,
            )
            for e in content["tensors"]
        )
        if any(e.layout not in get_args(Layout) for e in entries):
            raise ValueError("unknown layout")
        return Names(
            entries,
            tuple(map(str, content["order"])),
            {str(k): str(v) for k, v in content["shared"].items()},
            {
                str(n): Constant(
                    tuple(map(int, c["shape"])), dtype_named(str(c["dtype"])).name, str(c["data"])
                )
                for n, c in content["constants"].items()
            },
            tuple(map(str, content["ignored"])),
            tuple(map(str, content["wrapper"])),
            {str(n): tuple(map(str, keys)) for n, keys in content.get("nested", {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptCheckpointError(f"{label}: damaged record of names: {error!r}") from error


def load(path: Path) -> Names:
    """Read a ``names.json``.

    Raises:
      CorruptCheckpointError: it is no such record.
    """
    return from_json(parse(path.read_bytes(), dict[str, Any], str(path)), str(path))


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


Converter = Callable[[StateDict], Conversion]
