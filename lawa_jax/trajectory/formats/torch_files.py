"""PyTorch files, the only place that knows torch: safe, memory-mapped reading; writing.

Files are only ever loaded with ``weights_only=True``. Classes that training frameworks leave in
their checkpoints (an `argparse.Namespace`, OmegaConf, numpy scalars) are replaced by inert stubs:
nothing that a file names is imported or run. Any other global is refused by name.
"""

import errno
import pickle
import re
import tarfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lawa_jax.errors import (
    CheckpointWriteError,
    CorruptCheckpointError,
    MissingDependencyError,
    UnsafePickleError,
    reason_of,
)
from lawa_jax.trajectory.formats import facts, inert
from lawa_jax.trajectory.formats.state_dict import StateDict, find_tensors
from lawa_jax.tree import LeafSpec

# Allow-lists are global in torch.
_lock = threading.Lock()
_GLOBAL = re.compile(r"(?:GLOBAL|global) ([\w.]+)")


def import_torch() -> Any:
    """The torch module.

    Raises:
      MissingDependencyError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            "PyTorch files need torch; install it with: pip install 'lawa-jax[convert]'"
        ) from error
    return torch


def _numpy_dtypes(torch: Any) -> dict[Any, np.dtype]:
    plain = (
        *("float64", "float32", "float16", "complex64", "complex128", "bool"),
        *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"),
    )
    found = {getattr(torch, name): np.dtype(name) for name in plain if hasattr(torch, name)}
    for name in (
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
    ):
        if hasattr(torch, name) and hasattr(ml_dtypes, name):
            found[getattr(torch, name)] = np.dtype(getattr(ml_dtypes, name))
    return found


def read(path: Path, *, wrapper: str | None = None, stubs: Iterable[str] = ()) -> StateDict:
    """Open a ``torch.save`` file. Tensors of zip files stay on disk until they are read.

    Args:
      path: the file.
      wrapper: key of the state dict, see `find_tensors`.
      stubs: further classes, or packages ending in ``.``, to replace by inert stubs.

    Raises:
      UnsafePickleError: it wants a global that is neither known nor in `stubs`.
      CorruptCheckpointError: it is truncated or no PyTorch file.
      TreeMismatchError: it holds no dict of tensors.
      MissingDependencyError: torch is not installed.
    """
    torch = import_torch()
    content = load(path, stubs=stubs)
    is_tensor = lambda x: isinstance(x, torch.Tensor)  # noqa: E731
    tensors, keys, nested, left_out = find_tensors(content, is_tensor, str(path), wrapper)
    dtypes = _numpy_dtypes(torch)
    specs: dict[str, LeafSpec] = {}
    shared: dict[str, str] = {}
    objects, skipped = {}, []
    seen: dict[Any, str] = {}
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            if value is None or isinstance(value, bool | int | float | str):
                objects[name] = value
            else:
                skipped.append(name)
            continue
        if value.layout != torch.strided or value.dtype not in dtypes:
            raise CorruptCheckpointError(
                f"{path}: tensor {name!r} is {value.dtype}, {value.layout}: only dense numbers can "
                "be converted; save it dequantised and dense"
            )
        specs[name] = LeafSpec(tuple(value.shape), dtypes[value.dtype])
        place = (value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and place in seen:
            shared[name] = seen[place]
        seen.setdefault(place, name)

    intact = _Checksums(path)

    def array(name: str) -> np.ndarray:
        intact.check(tensors[name], name)
        tensor = tensors[name].detach().resolve_conj().resolve_neg()
        target = specs[name].dtype
        if target.kind != "V" and target.name not in ml_dtypes.__dict__:
            return tensor.numpy()
        # torch refuses to hand bfloat16 and float8 to numpy: as integers of their size.
        bits = torch.int16 if target.itemsize == 2 else torch.uint8
        return tensor.view(bits).numpy().view(target)

    found = facts.collect(content) if keys else {}
    return StateDict(
        path,
        specs,
        array,
        shared,
        keys,
        objects,
        tuple(skipped),
        left_out,
        nested,
        found,
    )


class _Checksums:
    """Checks the storages of a zip file against the checksums that it keeps of them.

    PyTorch itself does not: a bit that flipped on disk is loaded as another number.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._known = path, frozenset(zip_checksums(path) or ())
        self._checked: set[int] = set()

    def check(self, tensor: Any, name: str) -> None:
        storage = tensor.untyped_storage()
        if not self._known or not storage.nbytes() or storage.data_ptr() in self._checked:
            return
        torch = import_torch()
        data = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        if (storage.nbytes(), zlib.crc32(data)) not in self._known:
            raise CorruptCheckpointError(
                f"{self._path}: tensor {name!r}: its bytes changed since they were saved (the "
                "archive's checksum differs); copy the file again"
            )
        self._checked.add(storage.data_ptr())


def zip_checksums(path: Path) -> list[tuple[int, int]] | None:
    """Size and CRC-32 of each entry of a zip file; None if it is none, or has no checksums.

    PyTorch leaves them out after ``torch.serialization.set_crc32_options(False)``.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        entries = [(e.file_size, e.CRC) for e in archive.infolist()]
    return entries if any(crc for _, crc in entries) else None


def load(path: Path, *, stubs: Iterable[str] = (), mapped: bool = True) -> Any:
    """The content of a ``torch.save`` file, with inert stubs for known strangers.

    Args:
      path: the file.
      stubs: as `read`.
      mapped: leave the tensors of a zip file on disk.

    Raises:
      UnsafePickleError, CorruptCheckpointError: as `read`.
    """
    torch = import_torch()
    stubs = tuple(stubs)
    with _lock:
        try:
            if zipfile.is_zipfile(path):
                strangers = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
                return _load(torch, path, _stand_ins(strangers, stubs, path), mapped=mapped)
            return _load_legacy(torch, path, stubs)
        except (UnsafePickleError, FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except (pickle.UnpicklingError, EOFError, RuntimeError, ValueError) as error:
            wanted = _GLOBAL.search(str(error))
            if wanted:
                raise _refused(path, wanted.group(1)) from error
            raise CorruptCheckpointError(_damaged(path, error)) from error
        except Exception as error:  # a damaged pickle can raise anything, never run anything
            raise CorruptCheckpointError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    if f"Unsupported operand {pickle.FRAME[0]}" in str(error):
        return (
            f"{path}: pickled with protocol 4 or later, which PyTorch's safe reader does not know; "
            "save it again without pickle_protocol=, where you trust it"
        )
    if "Only persistent_load of storage is allowed" in str(error):
        return (
            f"{path}: it holds a pickled module with its source code, in the format before torch "
            "1.6; load it with the program that wrote it and save the state dict alone"
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename.partition("/")[2] for entry in archive.infolist()]
        if "constants.pkl" in names:
            return f"{path}: a TorchScript archive, no state dict; save model.state_dict() instead"
        if "data.pkl" not in names:
            return f"{path}: a zip archive, but none that torch.save wrote; unpack it first"
        return (
            f"{path}: the archive is whole, but PyTorch's safe reader cannot read it "
            f"({_first_line(error)}); save the state dict alone with the program that wrote it"
        )
    if tarfile.is_tarfile(path):
        return f"{path}: a tar archive, no PyTorch checkpoint; unpack it first"
    return (
        f"{path}: not a PyTorch checkpoint, or a truncated one "
        f"({path.stat().st_size} bytes; {_first_line(error)}); copy it again"
    )


def _load(torch: Any, path: Path, allowed: list[tuple[Any, str]], *, mapped: bool) -> Any:
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def _load_legacy(torch: Any, path: Path, stubs: tuple[str, ...]) -> Any:
    """Files before torch 1.6: neither listable nor mappable, so learn what they want by trying."""
    strangers: list[str] = []
    while True:
        try:
            return _load(torch, path, _stand_ins(strangers, stubs, path), mapped=False)
        except pickle.UnpicklingError as error:
            wanted = _GLOBAL.search(str(error))
            if wanted is None:
                raise
            name = wanted.group(1)
            # torch leaves "builtins." out of its message.
            name = name if "." in name else f"builtins.{name}"
            if name in strangers:
                raise
            strangers.append(name)


def _stand_ins(names: Iterable[str], stubs: tuple[str, ...], path: Path) -> list[tuple[Any, str]]:
    allowed = []
    for name in names:
        stub = inert.stand_in(name, stubs)
        if stub is None:
            raise _refused(path, name)
        allowed.append((stub, name))
    return allowed


def _refused(path: Path, name: str) -> UnsafePickleError:
    if inert.may_be_chosen(name):
        remedy = (
            f"If it is a harmless configuration class, --stub {name} replaces it by an inert one"
        )
    else:
        remedy = (
            "No stand-in can be used for it. Where you trust the file, load it with the program "
            "that wrote it and save the state dict alone"
        )
    return UnsafePickleError(
        f"{path}: refused, since its pickle asks for the global {name!r}, which weights do not "
        f"need; nothing was run. {remedy}"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {reason_of(error)[:160]}"


def to_tensor(array: np.ndarray) -> Any:
    """A torch tensor of the same bits; shares memory where it can."""
    torch = import_torch()
    by_dtype = {dtype: kind for kind, dtype in _numpy_dtypes(torch).items()}
    kind = by_dtype[array.dtype]
    array = np.ascontiguousarray(array).reshape(array.shape)
    if not array.flags.writeable:
        array = array.copy()
    if array.dtype.kind == "V" or array.dtype.name in ml_dtypes.__dict__:
        bits = np.int16 if array.itemsize == 2 else np.uint8
        return torch.from_numpy(array.view(bits)).view(kind)
    return torch.from_numpy(array)


def write(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    order: Iterable[str],
    shared: Mapping[str, str],
    objects: Mapping[str, Any],
    wrapper: tuple[str, ...],
    beside: Mapping[str, Any],
    nested: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Write a ``torch.save`` file that ``torch.load(weights_only=True)`` reads.

    Args:
      path: the file; overwritten.
      arrays: by name.
      order: all names, shared ones and `objects` included.
      shared: names that are the very tensor of another name.
      objects: plain entries by name.
      wrapper: keys around the state dict.
      beside: further entries at the top (``epoch``), only with a wrapper.
      nested: keys of tensors that go into dicts inside the state dict.

    Raises:
      CheckpointWriteError: disk full, permission denied.
    """
    torch = import_torch()
    tensors = {name: to_tensor(array) for name, array in arrays.items()}
    content: Any = OrderedDict()
    for name in order:
        *above, key = (nested or {}).get(name, (name,))
        place = content
        for step in above:
            place = place.setdefault(step, OrderedDict())
        place[key] = objects[name] if name in objects else tensors[shared.get(name, name)]
    for depth, key in enumerate(reversed(wrapper)):
        content = {**(beside if depth == len(wrapper) - 1 else {}), key: content}
    try:
        torch.save(content, path)
    except RuntimeError as error:  # what torch makes of a full disk or a missing permission
        text = f"{path} could not be written: {reason_of(error)}"
        raise CheckpointWriteError(errno.EIO, text) from error
