"""One stored pytree, opened from its metadata alone and read leaf by leaf, block by block."""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lawa_jax.errors import CorruptCheckpointError, SelectionError, TreeMismatchError
from lawa_jax.trajectory.checksums import passed_on, stored_checksums
from lawa_jax.trajectory.formats import orbax_metadata, raw_chunks
from lawa_jax.trajectory.formats.tensorstore_reader import TensorStoreReader
from lawa_jax.trajectory.formats.zarr_header import ArrayHeader, parse_header
from lawa_jax.trajectory.partition import blocks
from lawa_jax.trajectory.selection import Selection, select
from lawa_jax.trajectory.storage import is_object_store, read_regular
from lawa_jax.trajectory.structure import kept_nodes, rebuilt, restored_as
from lawa_jax.tree import Index, LeafSpec, nested


class Located(NamedTuple):
    """One item of one step."""

    item: epath.Path  # the item directory
    step_dir: epath.Path  # where sibling items (metrics, checksums) are; may be the item itself
    step: int | None
    label: str  # "RUN@90"


def metrics_of(step_dir: epath.Path) -> dict[str, float]:
    """Numbers saved beside a step, by name; {} if none were."""
    return _numbers(orbax_metadata.read_json_item(step_dir / "metrics"))


def _numbers(tree: Any, prefix: str = "") -> dict[str, float]:
    if isinstance(tree, Mapping):
        found: dict[str, float] = {}
        for key, value in tree.items():
            found |= _numbers(value, f"{prefix}/{key}" if prefix else str(key))
        return found
    if isinstance(tree, int | float) and not isinstance(tree, bool):
        return {prefix: float(tree)}
    return {}


class Checkpoint:
    """One pytree item of one step.

    Attributes:
      label: what messages call it: "RUN@90".
      path: the item directory.
      step_dir: the step directory, where sibling items are (the item itself where it has none).
      step: its step number, None if the directory names none.
      leaves: shape and dtype of every selected leaf by name.
      keys: key tuple of every selected leaf.
      key_types: how Orbax turns each key back into a container (`orbax_metadata.SEQUENCE`, `DICT`).
      kinds: what each leaf was saved as ("jax.Array", "np.ndarray", "scalar").
      empty: key tuples of empty nodes and their kind ("None", "Dict"), unselected ones too.
      nodes: empty nodes and strings that belong to the selected leaves.
      custom_metadata: what the writer has added to the tree's metadata.
      strings: values of string leaves by name; never averaged, not among `leaves`.
      selection: which leaves were chosen, which left out, and why.
      metrics: numbers saved beside it by name; {} if none were.
      checksums: digests of its leaves by name (`digest.py`), {} for foreign checkpoints.
    """

    def __init__(
        self,
        located: Located,
        include: Iterable[str],
        exclude: Iterable[str],
        *,
        in_place: bool = True,
    ) -> None:
        self.label = located.label
        self.path = located.item
        self.step = located.step
        self.step_dir = located.step_dir
        self._is_local = not is_object_store(located.item)
        tree = orbax_metadata.read_tree_metadata(located.item)
        self._elides = tree is not None and not tree.stores_fill_value
        self._reader = TensorStoreReader(located.item, self.label)
        if tree is not None and tree.uses_ocdbt and not self._reader.is_ocdbt:
            raise CorruptCheckpointError(
                f"{self.label}: {located.item / 'manifest.ocdbt'} is missing; all arrays are "
                "stored behind it; restore it from a copy"
            )
        if tree is None:
            tree = orbax_metadata.TreeMetadata(
                tuple(orbax_metadata.guessed_leaf(folder) for folder in self._folders()), True
            )
        stored = {e.name: e for e in tree.leaves if not e.is_empty and e.kind != "string"}
        if len(stored) != sum(not e.is_empty and e.kind != "string" for e in tree.leaves):
            raise TreeMismatchError(
                f"{self.label}: two leaves have the same name (a key holds '/'); leaves are "
                "paired by name, so this tree cannot be averaged"
            )
        self._all_names = frozenset(stored)
        self.empty = {e.keys: e.kind for e in tree.leaves if e.is_empty}
        self._string_leaves = tuple(e for e in tree.leaves if e.kind == "string")
        self.selection: Selection = select(
            {name: e.keys for name, e in stored.items()},
            include=include,
            exclude=exclude,
            label=self.label,
        )
        entries = {name: stored[name] for name in self.selection.names}
        self.nodes = kept_nodes(tree.leaves, entries.keys())
        self.custom_metadata = tree.custom_metadata
        for entry in entries.values():
            if not entry.has_safe_folder:
                raise CorruptCheckpointError(
                    f"{self.label}: leaf {entry.name!r} points outside of the checkpoint; its "
                    "_METADATA is damaged or hostile"
                )
        headers = self._headers([e.folder for e in entries.values()])
        self._headers_by_name = {name: headers[e.folder] for name, e in entries.items()}
        self._folder = {name: e.folder for name, e in entries.items()}
        # Paths once, and as text: a read of 2 MiB takes a fifth of a millisecond.
        root = os.fspath(located.item)
        self._folder_path = {name: f"{root}/{folder}" for name, folder in self._folder.items()}
        self._raw = frozenset(name for name in entries if in_place and self._reads_in_place(name))
        self.keys = {name: e.keys for name, e in entries.items()}
        self.key_types = {name: e.key_types for name, e in entries.items()}
        self.kinds = {name: e.kind for name, e in entries.items()}
        self.leaves = {
            name: LeafSpec(header.shape, header.dtype)
            for name, header in self._headers_by_name.items()
        }

    def _folders(self) -> list[str]:
        if self._reader.is_ocdbt or not self._is_local:
            return self._reader.folders()
        return sorted(
            entry.name
            for entry in os.scandir(self.path)
            if entry.is_dir()
            and any(
                os.path.exists(os.path.join(entry.path, name)) for name in (".zarray", "zarr.json")
            )
        )

    def _headers(self, folders: list[str]) -> dict[str, ArrayHeader]:
        if self._reader.is_ocdbt or not self._is_local:
            return self._reader.headers(folders)
        return {folder: self._local_header(folder) for folder in folders}

    def _local_header(self, folder: str) -> ArrayHeader:
        for name in (".zarray", "zarr.json"):
            path = os.path.join(self.path, folder, name)
            try:
                return parse_header(read_regular(path), f"{self.label}: {path}")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CorruptCheckpointError(
                    f"{self.label}: cannot read {path}: {error}"
                ) from error
        raise CorruptCheckpointError(
            f"{self.label}: array {folder!r} is missing: neither .zarray nor zarr.json is in "
            f"{os.path.join(self.path, folder)}"
        )

    @functools.cached_property
    def metrics(self) -> dict[str, float]:
        """Numbers saved beside the checkpoint, by name."""
        return metrics_of(self.step_dir)

    @functools.cached_property
    def checksums(self) -> dict[str, str]:
        """Digests of all leaves as they were saved, by name; {} for steps that others wrote.

        Raises:
          CorruptCheckpointError: they are due, and are missing, damaged or incomplete.
        """
        return stored_checksums(self.step_dir, self._all_names, self.leaves, self.label)

    @functools.cached_property
    def passed_on(self) -> dict[str, Any]:
        """What an average takes over from this step if it is its newest source, for a writer."""
        return passed_on(self.step_dir, self.custom_metadata)

    @functools.cached_property
    def strings(self) -> dict[str, str]:
        """String leaves by name."""
        path = self.path / orbax_metadata.STRINGS_FILE
        if not self._string_leaves or not path.exists():
            return {}
        stored = orbax_metadata.read_json(path)
        return {e.name: str(stored.get(e.folder, "")) for e in self._string_leaves}

    def __repr__(self) -> str:
        return f"Checkpoint({self.label!r}, {len(self.leaves)} leaves, {self.nbytes} bytes)"

    @property
    def nbytes(self) -> int:
        """Bytes of all selected leaves as dense arrays."""
        return sum(spec.nbytes for spec in self.leaves.values())

    def _header(self, name: str) -> ArrayHeader:
        try:
            return self._headers_by_name[name]
        except KeyError:
            raise SelectionError(f"{self.label} has no leaf {name!r} among those chosen") from None

    def is_raw(self, name: str) -> bool:
        """Whether the leaf is read in place rather than through TensorStore."""
        return name in self._raw

    def _reads_in_place(self, name: str) -> bool:
        if not self._is_local or self._reader.is_ocdbt or self.missing_reads_as_fill(name):
            return False
        return self._header(name).is_raw

    def missing_reads_as_fill(self, name: str) -> bool:
        """Whether a missing chunk of this leaf cannot be told from one of zeros.

        Older Orbax (0.6, for one) did not store zarr 3 chunks that equal the fill value.
        """
        return self._elides and self._header(name).has_fill_value

    def chunk_shape(self, name: str) -> tuple[int, ...]:
        """Storage chunk grid; reading a compressed leaf costs whole chunks."""
        return self._header(name).chunks

    def blocks(self, name: str, limit: int) -> Iterator[Index]:
        """Blocks that cover a leaf once and are cheap to read.

        Of at most `limit` bytes for leaves that are read in place; else whole chunks, however
        large, since reading any part of one costs all of it.
        """
        spec = self.leaves[name]
        return blocks(spec, self.chunk_shape(name), limit, whole_chunks=not self.is_raw(name))

    def read(self, name: str, index: Index, out: np.ndarray) -> None:
        """Fill `out` with one block of a leaf. Thread-safe.

        Args:
          name: of the leaf.
          index: one slice (step 1) a dimension.
          out: C-contiguous, the block's shape and the leaf's dtype.

        Raises:
          CorruptCheckpointError: stored bytes are missing or damaged; names leaf and file.
          ValueError: `index` or `out` does not fit the leaf.
        """
        header = self._header(name)
        bounds = bounds_of(index, header.shape, name)
        shape = tuple(stop - start for start, stop in bounds)
        if out.shape != shape or out.dtype != header.dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"{self.label}, leaf {name!r}: the buffer must be C-contiguous {header.dtype}"
                f"{list(shape)}, found {out.dtype}{list(out.shape)}"
            )
        if not out.size:
            return
        if name in self._raw:
            raw_chunks.read_block(
                self._folder_path[name],
                header,
                bounds,
                out,
                leaf=f"{self.label}, leaf {name!r}",
            )
        else:
            self._reader.read_block(
                self._folder[name],
                header,
                bounds,
                out,
                leaf=name,
                fill_missing=self.missing_reads_as_fill(name),
            )

    def read_leaf(self, name: str) -> np.ndarray:
        """A whole leaf."""
        spec = self.leaves[name] if name in self.leaves else self._header(name)
        out = np.empty(spec.shape, spec.dtype)
        self.read(name, tuple(slice(0, n) for n in spec.shape), out)
        return out

    def read_tree(self, names: Iterable[str] | None = None) -> dict[str, Any]:
        """Leaves (all by default) as nested dicts of numpy arrays."""
        chosen = list(self.leaves if names is None else names)
        leaves = {name: self.read_leaf(name) for name in chosen}
        return (
            self.tree_of(leaves)
            if names is None
            else nested({self.keys[name]: leaf for name, leaf in leaves.items()})
        )

    def tree_of(self, leaves: Mapping[str, Any]) -> Any:
        """The selected leaves' tree with other values: dicts and lists as they were saved."""
        values = {self.keys[name]: leaf for name, leaf in leaves.items()}
        types = {self.keys[name]: self.key_types[name] for name in leaves}
        for node in self.nodes:
            if node.is_empty:
                values[node.keys], types[node.keys] = restored_as(node), node.key_types
        return rebuilt(values, types)


def bounds_of(index: Index, shape: tuple[int, ...], name: str) -> tuple[tuple[int, int], ...]:
    """Start and stop of every slice of an index into an array of `shape`."""
    if len(index) != len(shape):
        raise ValueError(f"leaf {name!r}: expected {len(shape)} slices, found {len(index)}")
    bounds = []
    for part, size in zip(index, shape, strict=True):
        start, stop, step = part.indices(size)
        if step != 1:
            raise ValueError(f"leaf {name!r}: only slices of step 1 can be read, found {part}")
        bounds.append((start, max(start, stop)))
    return tuple(bounds)
