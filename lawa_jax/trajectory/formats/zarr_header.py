"""Shape, dtype and chunk grid of a stored array: ``.zarray`` (zarr 2) and ``zarr.json`` (3)."""

import math
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.tree import dtype_named
from lawa_jax.untrusted import Length, Positive, parse

_MOST_AXES = 64  # of numpy
_Shape = Annotated[tuple[Length, ...], msgspec.Meta(max_length=_MOST_AXES)]
_Chunks = Annotated[tuple[Positive, ...], msgspec.Meta(max_length=_MOST_AXES)]


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


class _Zarr2(msgspec.Struct):
    shape: _Shape
    chunks: _Chunks
    dtype: str
    compressor: Any = None
    filters: Any = None
    order: str = "C"
    fill_value: Any = None
    dimension_separator: Literal[".", "/"] = "."

    def header(self) -> ArrayHeader:
        dtype = dtype_named(self.dtype)
        is_raw = (
            self.compressor is None
            and not self.filters
            and self.order == "C"
            and dtype.byteorder != ">"
        )
        return ArrayHeader(
            self.shape,
            dtype.newbyteorder("="),
            self.chunks,
            "zarr",
            is_raw,
            self.dimension_separator,
            self.fill_value is not None,
        )


class _Grid(msgspec.Struct):
    chunk_shape: _Chunks


class _ChunkGrid(msgspec.Struct):
    configuration: _Grid


class _Codec(msgspec.Struct):
    name: str
    configuration: dict[str, Any] = {}


class _Zarr3(msgspec.Struct):
    shape: _Shape
    data_type: str
    chunk_grid: _ChunkGrid
    codecs: list[_Codec]

    def header(self) -> ArrayHeader:
        chunks = self.chunk_grid.configuration.chunk_shape
        for codec in self.codecs:
            if codec.name == "sharding_indexed":
                chunks = msgspec.convert(codec.configuration, _Grid).chunk_shape
        dtype = dtype_named(self.data_type)
        return ArrayHeader(self.shape, dtype, chunks, "zarr3", False, "/", True)


class _Version(msgspec.Struct):
    zarr_format: int = 2


def parse_header(text: bytes, where: str) -> ArrayHeader:
    """The header in a ``.zarray`` or ``zarr.json``; `where` is named in errors.

    Raises:
      CorruptCheckpointError: not such a file.
    """
    problem = f"{where} does not describe an array"
    version = parse(text, _Version, problem).zarr_format
    stored = parse(text, _Zarr3, problem) if version == 3 else parse(text, _Zarr2, problem)
    try:
        header = stored.header()
    except (ValueError, msgspec.MsgspecError) as error:
        raise CorruptCheckpointError(f"{problem}: {error}") from error
    if len(header.shape) != len(header.chunks):
        raise CorruptCheckpointError(
            f"{where}: chunks {header.chunks} do not fit the shape {header.shape}"
        )
    if max(math.prod(header.shape), math.prod(header.chunks)) * header.dtype.itemsize >= 1 << 62:
        raise CorruptCheckpointError(
            f"{where}: no array of {header.dtype} has the shape {header.shape} in chunks "
            f"{header.chunks}"
        )
    return header
