"""Shape, dtype and chunk grid of a stored array: ``.zarray`` (zarr 2) and ``zarr.json`` (3)."""

import json
import math
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lawa_jax.errors import CorruptCheckpointError


class ArrayHeader(NamedTuple):
    """How an array is stored."""

    shape: tuple[int, ...]
    dtype: np.dtype
    chunks: tuple[int, ...]  # what reading costs: always whole chunks
    driver: str  # TensorStore's name: "zarr" or "zarr3"
    is_raw: bool  # chunk files are the bytes of C-order arrays, and nothing else
    separator: str
    has_fill_value: bool  # if so, old writers left out chunks that equal it

    @property
    def chunk_nbytes(self) -> int:
        """Bytes of one raw chunk; those at the edges are padded to the same size."""
        return math.prod(self.chunks) * self.dtype.itemsize

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each dimension."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))


def _dtype(text: Any) -> np.dtype:
    if not isinstance(text, str):
        raise ValueError(f"unsupported dtype {text!r}")
    if hasattr(ml_dtypes, text):
        return np.dtype(getattr(ml_dtypes, text))
    return np.dtype(text)


def _zarr2(raw: dict[str, Any]) -> ArrayHeader:
    dtype = _dtype(raw["dtype"])
    is_raw = (
        raw.get("compressor") is None
        and not raw.get("filters")
        and raw.get("order", "C") == "C"
        and dtype.byteorder != ">"
    )
    return ArrayHeader(
        tuple(raw["shape"]),
        dtype.newbyteorder("="),
        tuple(raw["chunks"]),
        "zarr",
        is_raw,
        raw.get("dimension_separator", "."),
        raw.get("fill_value") is not None,
    )


def _zarr3(raw: dict[str, Any]) -> ArrayHeader:
    chunks = raw["chunk_grid"]["configuration"]["chunk_shape"]
    for codec in raw["codecs"]:
        if codec["name"] == "sharding_indexed":
            chunks = codec["configuration"]["chunk_shape"]
    dtype = _dtype(raw["data_type"])
    return ArrayHeader(tuple(raw["shape"]), dtype, tuple(chunks), "zarr3", False, "/", True)


def parse_header(text: bytes | str, where: str) -> ArrayHeader:
    """The header in a ``.zarray`` or ``zarr.json``; `where` is named in errors.

    Raises:
      CorruptCheckpointError: not such a file.
    """
    try:
        raw = json.loads(text)
        header = _zarr3(raw) if raw.get("zarr_format") == 3 else _zarr2(raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(f"{where} does not describe an array: {error!r}") from error
    if len(header.shape) != len(header.chunks) or any(c < 1 for c in header.chunks):
        raise CorruptCheckpointError(
            f"{where}: chunks {header.chunks} do not fit the shape {header.shape}"
        )
    return header
