"""safetensors files: a JSON header, then raw little-endian arrays; no code, so nothing to fear.

Format: 8 bytes header length, the header ``{name: {dtype, shape, data_offsets}}`` with an optional
``__metadata__`` of strings, then the data. (github.com/huggingface/safetensors)
"""

import json
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.trajectory.formats.state_dict import StateDict
from lawa_jax.tree import LeafSpec

_HEADER_LIMIT = 100 << 20  # of the format itself
_METADATA = "__metadata__"
_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
    "C64": np.dtype("<c8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read(path: Path) -> StateDict:
    """Open a safetensors file; arrays are views of the mapped file.

    Raises:
      CorruptCheckpointError: no safetensors file, or a truncated one; names the tensor.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        header, start = _header(file, size, path)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    metadata = header.pop(_METADATA, {})
    specs, offsets = {}, {}
    for name, entry in header.items():
        specs[name], offsets[name] = _entry(name, entry, size - start, path)

    def array(name: str) -> np.ndarray:
        spec = specs[name]
        flat = np.frombuffer(mapped, spec.dtype, spec.size, start + offsets[name])
        return flat.reshape(spec.shape)

    facts: dict[str, Any] = {}
    for key in ("epoch", "step"):
        text = metadata.get(key, "") if isinstance(metadata, dict) else ""
        if isinstance(text, str) and text.isascii() and text.isdigit():
            facts[key] = int(text)
    return StateDict(path, specs, array, facts=facts)


def _header(file: Any, size: int, path: Path) -> tuple[dict[str, Any], int]:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
        raise CorruptCheckpointError(
            f"{path}: not a safetensors file, or a truncated one ({size} bytes); copy it again"
        )
    try:
        header = json.loads(file.read(length))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path}: its safetensors header is no JSON") from error
    if not isinstance(header, dict):
        raise CorruptCheckpointError(f"{path}: its safetensors header is no JSON object")
    return header, 8 + length


def _entry(name: str, entry: Any, available: int, path: Path) -> tuple[LeafSpec, int]:
    try:
        spec = LeafSpec(tuple(int(n) for n in entry["shape"]), _DTYPES[entry["dtype"]])
        begin, end = (int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(
            f"{path}: tensor {name!r}: expected dtype, shape and data_offsets of the safetensors "
            f"format, found {str(entry)[:120]}"
        ) from error
    if min(spec.shape, default=0) < 0 or begin < 0 or end - begin != spec.nbytes:
        raise CorruptCheckpointError(
            f"{path}: tensor {name!r}: {spec} takes {spec.nbytes} bytes, found {end - begin}"
        )
    if end > available:
        raise CorruptCheckpointError(
            f"{path}: truncated: tensor {name!r} ends at byte {end} of {available}; copy it again"
        )
    return spec, begin


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays in their order.

    The data of every tensor starts at a multiple of its item size only if the widest come first,
    which readers expect, so they are laid out by size; the header keeps the order of names.

    Args:
      path: the file; overwritten.
      arrays: by name, one copy each.
      metadata: strings.
    """
    offset, places = 0, {}
    layout = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    for name in layout:
        places[name] = [offset, offset + arrays[name].nbytes]
        offset += arrays[name].nbytes
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    for name, array in arrays.items():
        header[name] = {
            "dtype": _NAMES[array.dtype.newbyteorder("=")],
            "shape": list(array.shape),
            "data_offsets": places[name],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in layout:
            flat = np.ascontiguousarray(arrays[name]).reshape(-1)
            file.write(cast(Any, flat.view(np.uint8)))
