"""What Orbax says about a stored pytree: ``_METADATA``, read as plain JSON.

Orbax itself takes seconds to import and a millisecond a leaf; names, kinds and places of leaves
are all here, in every layout since 0.5.
"""

import json
from typing import Any, NamedTuple

from etils import epath

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.trajectory.storage import read_regular

# Orbax's KeyType: how a key is turned back into a container.
SEQUENCE, DICT = 1, 2
STRINGS_FILE = "_strings.json"


class StoredLeaf(NamedTuple):
    """One entry of a stored tree."""

    keys: tuple[str, ...]
    key_types: tuple[int, ...]
    kind: str  # "jax.Array", "np.ndarray", "scalar", "string", "None", "Dict", ...
    is_empty: bool  # an empty node (None, {}, optax.EmptyState): nothing is stored

    @property
    def name(self) -> str:
        """The leaf's name."""
        return "/".join(self.keys) or "."

    @property
    def folder(self) -> str:
        """Where Orbax stores it, relative to the item."""
        return ".".join(self.keys)

    @property
    def has_safe_folder(self) -> bool:
        """Whether the folder stays below the item; a key that holds ``/`` makes subfolders."""
        parts = self.folder.split("/")
        return "\0" not in self.folder and not {"", ".", ".."} & set(parts)


class TreeMetadata(NamedTuple):
    """The tree of an item."""

    leaves: tuple[StoredLeaf, ...]
    stores_fill_value: bool  # False: such chunks may be missing rightly (older Orbax)
    uses_ocdbt: bool = False
    custom_metadata: Any = None


def read_json(path: epath.Path) -> Any:
    """The content of a JSON file of a checkpoint.

    Raises:
      CorruptCheckpointError: not JSON, or unreadable.
    """
    try:
        return json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} cannot be read as JSON: {error}") from error


def _entry(raw: dict[str, Any]) -> StoredLeaf:
    value = raw["value_metadata"]
    return StoredLeaf(
        keys=tuple(str(key["key"]) for key in raw["key_metadata"]),
        key_types=tuple(int(key.get("key_type", DICT)) for key in raw["key_metadata"]),
        kind=str(value["value_type"]),
        is_empty=bool(value.get("skip_deserialize", False)),
    )


def read_tree_metadata(item: epath.Path) -> TreeMetadata | None:
    """The tree of an item directory; None if it has no ``_METADATA``.

    Raises:
      CorruptCheckpointError: the file is there but damaged.
    """
    path = item / "_METADATA"
    if not path.exists():
        return None
    raw = read_json(path)
    try:
        leaves = tuple(_entry(entry) for entry in raw["tree_metadata"].values())
        return TreeMetadata(
            leaves,
            bool(raw.get("store_array_data_equal_to_fill_value", False)),
            bool(raw.get("use_ocdbt", False)),
            raw.get("custom_metadata"),
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise CorruptCheckpointError(
            f"{path} is not the tree metadata of an Orbax checkpoint: {error!r}"
        ) from error


def guessed_leaf(folder: str) -> StoredLeaf:
    """A leaf known only by its folder (``_METADATA`` is lost): dots separate the keys."""
    keys = tuple(folder.split("."))
    return StoredLeaf(keys, (DICT,) * len(keys), "jax.Array", False)


def read_json_item(directory: epath.Path) -> dict[str, Any]:
    """A JSON item (metrics, checksums) of a step; {} if it is not there."""
    # The names that Orbax has given the one file in it; others are looked for.
    for name in (directory.name, "metadata"):
        if (directory / name).exists():
            return _json_object(directory / name)
    if not directory.is_dir():
        return {}
    for path in sorted(directory.iterdir()):
        if path.name != "commit_success.txt" and not path.name.startswith("_"):
            return _json_object(path)
    return {}


def _json_object(path: epath.Path) -> dict[str, Any]:
    content = read_json(path)
    return content if isinstance(content, dict) else {}
