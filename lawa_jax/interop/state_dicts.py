"""Any state dict as a nested tree, and back, without knowing the model.

Dots become levels: ``layers.0.weight`` is the leaf ``params/layers/0/weight``. Names that Orbax
could not store are escaped (``/`` as ``%2F``, an empty part as ``%0``), and a name that is also the
beginning of others gets the last key ``%=``.
"""

from collections.abc import Iterable

from lawa_jax.errors import TreeMismatchError
from lawa_jax.interop.names import Conversion, Entry, Names
from lawa_jax.interop.rules import common_prefix
from lawa_jax.trajectory.formats.state_dict import StateDict

ROOT = "params"
_EMPTY = "%0"
_ITSELF = "%="
_ESCAPES = (("%", "%25"), ("/", "%2F"), ("\0", "%00"))


def _escaped(part: str) -> str:
    for plain, escape in _ESCAPES:
        part = part.replace(plain, escape)
    return part or _EMPTY


def keys_of(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Key tuples of dotted names; all different, and none the beginning of another.

    Example: ``["a.weight", "a.0.b"]`` gives ``("params", "a", "weight")`` and
    ``("params", "a", "0", "b")``.
    """
    keys = {name: (ROOT, *map(_escaped, name.split("."))) for name in names}
    branches = {path[:depth] for path in keys.values() for depth in range(1, len(path))}
    return {n: (*path, _ITSELF) if path in branches else path for n, path in keys.items()}


def convert(state: StateDict) -> Conversion:
    """Every tensor under its own name; only prefixes of wrappers are taken off.

    Raises:
      TreeMismatchError: there is no tensor in it.
    """
    if not state.specs:
        raise TreeMismatchError(f"{state.label}: there is no tensor in it")
    unique = [name for name in state.specs if name not in state.shared]
    prefix = common_prefix(state.specs)
    keys = keys_of(name.removeprefix(prefix) for name in unique)
    entries = tuple(
        Entry(
            name,
            keys[name.removeprefix(prefix)],
            "same",
            state.specs[name].shape,
            state.specs[name].dtype.name,
        )
        for name in unique
    )
    names = Names(
        entries,
        (*state.specs, *state.objects),
        dict(state.shared),
        ignored=state.skipped,
        wrapper=state.wrapper,
        nested=state.nested,
    )
    return Conversion(names, {"kind": "state_dict"})
