"""The digests saved beside a checkpoint of ours, and whether they are there as they ought to be.

Orbax loads a flipped bit as a number. Steps of ours carry a digest of every leaf, in the item
``checksums``; the step's metadata lists that item, so that its loss does not go unnoticed. Damage
to the digests is damage: a check that switches itself off would let wrong numbers pass.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from etils import epath

from lawa_jax.errors import CorruptCheckpointError
from lawa_jax.trajectory.digest import ALGORITHM
from lawa_jax.trajectory.formats.orbax_metadata import read_json, read_json_item
from lawa_jax.tree import LeafSpec
from lawa_jax.untrusted import Length, checked

ITEM = "checksums"
STEP_METADATA = "_CHECKPOINT_METADATA"


class _Leaf(msgspec.Struct):
    digest: str
    shape: tuple[Length, ...]
    dtype: str


class _StoredDigests(msgspec.Struct):
    algorithm: str
    leaves: dict[str, _Leaf]


def stored_checksums(
    step_dir: epath.Path, names: Iterable[str], specs: Mapping[str, LeafSpec], label: str
) -> dict[str, str]:
    """Digests of the leaves of a step, as they were saved, by name.

    Args:
      step_dir: the step directory.
      names: of all its leaves.
      specs: what the leaves are that are read: their bits may be the same in another dtype.
      label: the checkpoint, for messages.

    Returns:
      {} for steps that others wrote: nothing protects these.

    Raises:
      CorruptCheckpointError: the digests are due, and are missing, damaged or incomplete.
    """
    item = step_dir / ITEM
    if not item.is_dir():
        if ITEM in _part(_described(step_dir), "item_handlers"):
            raise CorruptCheckpointError(
                f"{label}: its checksums ({item}) are gone, so damage could not be noticed; "
                "restore them from a copy"
            )
        return {}
    stored = checked(read_json_item(item), _StoredDigests, f"{label}: its checksums are damaged")
    if stored.algorithm != ALGORITHM:
        raise CorruptCheckpointError(
            f"{label}: its checksums are of algorithm {stored.algorithm!r}, expected "
            f"{ALGORITHM!r}; they are damaged, or want the version of lawa-jax that wrote them"
        )
    odd = sorted(set(names) ^ stored.leaves.keys())
    if odd:
        lone = odd[0] in stored.leaves
        where = "has a checksum but is not stored" if lone else "is stored without a checksum"
        raise CorruptCheckpointError(
            f"{label}: leaf {odd[0]!r} {where} ({len(odd)} such leaves); the checksums or the "
            "tree's metadata are damaged, restore them from a copy"
        )
    for name, spec in specs.items():
        saved = stored.leaves[name]
        if (saved.shape, saved.dtype) != (spec.shape, spec.dtype.name):
            raise CorruptCheckpointError(
                f"{label}, leaf {name!r}: expected {saved.dtype}{list(saved.shape)} as it was "
                f"saved, found {spec}; its array metadata are damaged, restore them from a copy"
            )
    return {name: leaf.digest for name, leaf in stored.leaves.items()}


def passed_on(step_dir: epath.Path, of_tree: Any) -> dict[str, Any]:
    """What an average takes over from the step of its newest source, as a writer's keywords.

    Its JSON items (but for those that are about its own leaves), and the custom metadata of step
    and tree: MaxText, for one, keeps there how a model is to be restored.
    """
    own = ("metrics", ITEM, "record", "source")
    described = _described(step_dir)
    items = {
        name: read_json_item(step_dir / name)
        for name, handler in _part(described, "item_handlers").items()
        if name not in own and isinstance(handler, str) and "JsonCheckpointHandler" in handler
    }
    return {
        "json_items": items,
        "custom_metadata": (_part(described, "custom_metadata"), of_tree),
    }


def _described(step_dir: epath.Path) -> Any:
    """The step's metadata; None for steps without."""
    path = step_dir / STEP_METADATA
    return read_json(path) if path.exists() else None


def _part(described: Any, name: str) -> dict[str, Any]:
    part = described.get(name) if isinstance(described, dict) else None
    return part if isinstance(part, dict) else {}
