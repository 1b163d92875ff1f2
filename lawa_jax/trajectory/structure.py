"""The containers of a stored tree: what belongs to chosen leaves, and the tree rebuilt from names.

Orbax stores lists, tuples, empty nodes and strings as entries of their own. An average has to keep
those that belong to its leaves, or what restores its source does not restore it.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lawa_jax.errors import CorruptCheckpointError, TreeMismatchError
from lawa_jax.trajectory.formats.orbax_metadata import SEQUENCE, StoredLeaf
from lawa_jax.trajectory.selection import Keys
from lawa_jax.tree import nested

# What empty nodes are restored as; others (of optax's states, for instance) as None.
_EMPTY: dict[str, type] = {"Dict": dict, "List": list, "Tuple": tuple}
# More holes between the places of a list than any selection leaves: damaged or hostile.
_MOST_HOLES = 100_000


def kept_nodes(entries: Iterable[StoredLeaf], chosen: Collection[str]) -> tuple[StoredLeaf, ...]:
    """Empty nodes and strings in branches that were chosen whole, and what keeps lists in order.

    A list of which some places were left out gets an empty node for each of these: without it Orbax
    could not load the list.

    Args:
      entries: the whole stored tree.
      chosen: names of the chosen leaves.
    """
    leaves: list[StoredLeaf] = []
    others: list[StoredLeaf] = []
    for entry in entries:
        (others if entry.is_empty or entry.kind == "string" else leaves).append(entry)
    alive = {e.keys[:d] for e in leaves if e.name in chosen for d in range(len(e.keys))}
    broken = {e.keys[:d] for e in leaves if e.name not in chosen for d in range(len(e.keys))}
    nodes = [
        node
        for node in others
        if any(node.keys[:d] in alive - broken for d in range(len(node.keys)))
    ]
    kept = [*(e for e in leaves if e.name in chosen), *nodes]
    return (*nodes, *_fillers(kept))


def _fillers(kept: Iterable[StoredLeaf]) -> list[StoredLeaf]:
    places: dict[Keys, tuple[tuple[int, ...], set[int]]] = {}
    for entry in kept:
        for depth, (key, kind) in enumerate(zip(entry.keys, entry.key_types, strict=True)):
            if kind == SEQUENCE and key.isdigit() and len(key) < 10:
                at = places.setdefault(entry.keys[:depth], (entry.key_types[:depth], set()))
                at[1].add(int(key))
    fillers = []
    for prefix, (types, there) in places.items():
        if max(there) - len(there) > _MOST_HOLES:
            raise CorruptCheckpointError(
                f"the list {'/'.join(prefix) or '.'} has {len(there)} of {max(there) + 1} places; "
                "its _METADATA is damaged"
            )
        fillers += [
            StoredLeaf((*prefix, str(place)), (*types, SEQUENCE), "None", True)
            for place in range(max(there))
            if place not in there
        ]
    return fillers


def rebuilt(values: Mapping[Keys, Any], types: Mapping[Keys, tuple[int, ...]]) -> Any:
    """The tree that leaves and nodes make: dicts and lists, as Orbax restores it without a target.

    Args:
      values: leaves (and what empty nodes are restored as) by their keys.
      types: what turns each key back into a container; dicts by default.

    Raises:
      TreeMismatchError: there is no such tree: a key is a leaf and a branch at once, or a place of
        a list is missing.
    """
    if set(values) == {()}:
        return values[()]
    sequences = {
        keys[:depth]
        for keys in values
        for depth, kind in enumerate(types.get(keys, ()))
        if kind == SEQUENCE
    }
    tree = nested({keys: _Value(value) for keys, value in values.items()})
    return _container(tree, (), sequences)


class _Value:
    """A value that may itself be a dict."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _container(node: Any, at: Keys, sequences: set[Keys]) -> Any:
    if isinstance(node, _Value):
        return node.value
    built = {key: _container(inner, (*at, key), sequences) for key, inner in node.items()}
    if at not in sequences:
        return built
    if set(built) != {str(place) for place in range(len(built))}:
        raise TreeMismatchError(
            f"{'/'.join(at) or '.'}: expected a list of {len(built)} places, found places "
            f"{', '.join(sorted(built)[:8])}"
        )
    return [built[str(place)] for place in range(len(built))]


def restored_as(node: StoredLeaf) -> Any:
    """What Orbax restores an empty node as."""
    return _EMPTY.get(node.kind, type(None))()
