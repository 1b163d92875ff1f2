"""Everything that is not a raw local chunk: OCDBT, zarr 3, compression, object stores.

TensorStore is imported here, when first needed.
"""

import functools
import os
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
from etils import epath

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.trajectory.formats.zarr_header import ArrayHeader, parse_header
from lawa_jax.trajectory.storage import is_object_store

HEADER_FILES = (".zarray", "zarr.json")


@functools.cache
def _context() -> Any:
    import tensorstore as ts

    # No cache: every byte is wanted once, and memory is the caller's to bound.
    return ts.Context({"cache_pool": {"total_bytes_limit": 0}})


def directory_spec(item: epath.Path) -> dict[str, Any] | str:
    """A directory as TensorStore names it."""
    if is_object_store(item):
        return str(item).rstrip("/") + "/"
    return {"driver": "file", "path": os.path.abspath(str(item)) + "/"}


class TensorStoreReader:
    """Arrays of one item directory; thread-safe."""

    def __init__(self, item: epath.Path, label: str) -> None:
        self._label = label
        self._item = item
        self.is_ocdbt = (item / "manifest.ocdbt").exists()
        base = directory_spec(item)
        self._base: Any = {"driver": "ocdbt", "base": base} if self.is_ocdbt else base
        self._open: dict[str, Any] = {}
        self._lock = threading.Lock()

    @functools.cached_property
    def _kvstore(self) -> Any:
        import tensorstore as ts

        try:
            return ts.KvStore.open(self._base, context=_context()).result()
        except ValueError as error:
            raise self._corrupt(f"{self._item} cannot be opened", error) from error

    def _corrupt(self, what: str, error: Exception) -> CorruptCheckpointError:
        return CorruptCheckpointError(
            f"{self._label}: {what}; the stored files are missing or damaged: {error}"
        )

    def folders(self) -> list[str]:
        """Every stored array, by its folder; reads the whole listing."""
        try:
            keys = [key.decode() for key in self._kvstore.list().result()]
        except ValueError as error:
            raise self._corrupt(f"{self._item} cannot be listed", error) from error
        ends = tuple("/" + name for name in HEADER_FILES)
        return sorted(key.rpartition("/")[0] for key in keys if key.endswith(ends))

    def headers(self, folders: Iterable[str]) -> dict[str, ArrayHeader]:
        """Headers by folder, read concurrently.

        Raises:
          CorruptCheckpointError: names the array whose header is missing.
        """
        pending = {
            folder: [(name, self._kvstore.read(f"{folder}/{name}")) for name in HEADER_FILES]
            for folder in folders
        }
        found = {}
        for folder, reads in pending.items():
            where = f"{self._label}, array {folder!r} in {self._item}"
            try:
                stored = [
                    (name, result.value)
                    for name, result in ((name, read.result()) for name, read in reads)
                    if result.state == "value"
                ]
            except ValueError as error:
                raise self._corrupt(f"array {folder!r} has no readable header", error) from error
            if not stored:
                raise CorruptCheckpointError(
                    f"{where} is missing: neither {' nor '.join(HEADER_FILES)} is stored"
                )
            found[folder] = parse_header(stored[0][1], where)
        return found

    def _array(self, folder: str, header: ArrayHeader, leaf: str, fill_missing: bool) -> Any:
        import tensorstore as ts

        with self._lock:
            store = self._open.get(folder)
        if store is not None:
            return store
        base = self._base
        if self.is_ocdbt:
            kvstore: Any = {**base, "path": folder + "/"}
        elif isinstance(base, str):
            kvstore = base + folder + "/"
        else:
            kvstore = {**base, "path": base["path"] + folder + "/"}
        spec = {
            "driver": header.driver,
            "kvstore": kvstore,
            # The default would read a missing chunk as zeros.
            "fill_missing_data_reads": fill_missing,
        }
        try:
            store = ts.open(spec, open=True, read=True, context=_context()).result()
        except ValueError as error:
            raise self._corrupt(f"leaf {leaf!r} cannot be opened", error) from error
        with self._lock:
            self._open[folder] = store
        return store

    def read_block(
        self,
        folder: str,
        header: ArrayHeader,
        bounds: tuple[tuple[int, int], ...],
        out: np.ndarray,
        *,
        leaf: str,
        fill_missing: bool = False,
    ) -> None:
        """Fill `out` with a block; see `raw_reader.read_block`."""
        import tensorstore as ts

        store = self._array(folder, header, leaf, fill_missing)
        block = store[tuple(slice(start, stop) for start, stop in bounds)]
        try:
            if bounds:
                # Straight into the caller's memory, without an array in between.
                ts.array(out, context=_context()).write(
                    block.translate_to[(0,) * len(bounds)]
                ).result()
            else:
                out[...] = block.read().result()
        except ValueError as error:
            raise self._corrupt(f"leaf {leaf!r} cannot be read", error) from error
