"""Stand-ins for classes that checkpoints mention: they hold plain data and do nothing.

A stand-in is made here, under the name that the file asks for; the named class itself is never
looked up. Which names get one is a short list; everything else is refused by the caller.
"""

import struct
import sys
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

# Configuration classes that fairseq, PyTorch Lightning, Hydra and plain scripts leave behind.
_CONFIGURATION = ("omegaconf.", "fairseq.", "fairseq_cli.", "pathlib.")
# Losses, activations and optimizer classes among the hyperparameters; nothing of them is needed.
_TORCH = ("torch.nn.", "torch.optim.", "torch._C._nn.")
_CLASSES = frozenset(
    {
        "argparse.Namespace",
        "typing.Any",
        "enum.Enum",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.WindowsPath",
        "types.SimpleNamespace",
        "datetime.timedelta",
        "datetime.datetime",
        "datetime.date",
        "datetime.time",
        "datetime.timezone",
        "uuid.UUID",
        "uuid.SafeUUID",
        "decimal.Decimal",
        "fractions.Fraction",
        "functools.partial",
        "builtins.frozenset",
        "numpy.ndarray",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "builtins.dict",
        "builtins.list",
        "builtins.int",
        "builtins.float",
        "builtins.str",
        "builtins.bool",
        "builtins.tuple",
    }
)
_NEVER = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "jax"}


class Inert(dict):
    """Accepts any construction and any plain state; attributes of the original become entries."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if type(part) is dict:
                self.update(part)


class NumpyDtype(Inert):
    """Keeps a dtype's letter code (``f8``)."""

    def __init__(self, code: Any = "", *args: Any) -> None:
        super().__init__()
        self["code"] = code if isinstance(code, str) else ""


_FORMATS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b"}
_FORMATS |= {"u8": "Q", "u4": "I", "u2": "H", "u1": "B", "b1": "?"}


def numpy_scalar(dtype: Any = None, raw: Any = None) -> Any:
    """The Python number of a pickled numpy scalar; None if it is something else."""
    code = dtype.get("code", "") if isinstance(dtype, NumpyDtype) else ""
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    form = _FORMATS.get(code)
    if form is None or not isinstance(raw, bytes) or len(raw) != struct.calcsize(f"<{form}"):
        return None
    return struct.unpack(f"<{form}", raw)[0]


def ordered_dict(*args: Any) -> OrderedDict[Any, Any]:
    """What a pickled defaultdict becomes; its factory is dropped."""
    return OrderedDict()


def empty_list(*args: Any) -> list[Any]:
    """What a pickled deque becomes before its items are appended."""
    return []


_FUNCTIONS = {
    "numpy.core.multiarray.scalar": numpy_scalar,
    "numpy._core.multiarray.scalar": numpy_scalar,
    "collections.defaultdict": ordered_dict,
    "collections.deque": empty_list,
}


def stand_in(name: str, stubs: Iterable[str] = ()) -> Any:
    """What to use for the global `name`, or None if it is to be refused.

    Args:
      name: full name in the pickle, e.g. ``argparse.Namespace``.
      stubs: further full names, or packages ending in ``.``; never of the standard library.
    """
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    if name == "numpy.dtype" or name.startswith("numpy.dtypes."):
        return _class(name, NumpyDtype)
    if name in _CLASSES or name.startswith(_CONFIGURATION + _TORCH):
        return _class(name, Inert)
    chosen = any(name == s or (s.endswith(".") and name.startswith(s)) for s in stubs)
    if chosen and may_be_chosen(name):
        return _class(name, Inert)
    return None


def may_be_chosen(name: str) -> bool:
    """Whether a user may ask for a stand-in: never for Python itself, torch, numpy or jax."""
    return name.partition(".")[0] not in _NEVER


def _class(name: str, base: type) -> type:
    return type(name.rpartition(".")[2], (base,), {})
