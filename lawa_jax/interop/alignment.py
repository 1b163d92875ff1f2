"""Files of one model that differ in wrappers' prefixes or in which equal tensors they share."""

from dataclasses import replace
from pathlib import Path

from lawa_jax.errors import TreeMismatchError
from lawa_jax.interop.names import Entry, Names
from lawa_jax.interop.rules import common_prefix
from lawa_jax.trajectory.bits import same_bits
from lawa_jax.trajectory.formats.state_dict import StateDict
from lawa_jax.tree import LeafSpec, check_compatible


def aligned(expected: Names, found: Names, state: StateDict, first: Path) -> Names:
    """The record of a later file for the leaves of the first one.

    ``module.`` or ``_orig_mod.`` may come and go, the order may differ, and a tensor that shares
    its values with another may be stored with it or apart, as long as the values are equal.

    Args:
      expected: names of the first file.
      found: names of this file.
      state: this file.
      first: the first file, for messages.

    Raises:
      TreeMismatchError: other leaves, shapes or dtypes; names the first leaf and both files.
    """
    if found == expected:
        return found
    entries = {entry.leaf: entry for entry in found.entries}
    theirs = _by_plain_name(found)
    ours = _by_plain_name(expected)
    kept: dict[str, Entry] = {}
    for entry in expected.entries:
        plain = _plain(entry.name, expected)
        if entry.leaf in entries:
            kept[entry.leaf] = entries.pop(entry.leaf)
        elif theirs.get(plain) in found.shared:
            kept[entry.leaf] = entry._replace(name=found.shared[theirs[plain]])
    for leaf, entry in list(entries.items()):
        name = ours.get(_plain(entry.name, found), "")
        twin = expected.shared.get(name)
        if twin is None:
            continue
        other = theirs.get(_plain(twin, expected), "")
        if other not in state.specs or not same_bits(state.read(entry.name), state.read(other)):
            raise TreeMismatchError(
                f"{state.label}: {entry.name!r} shares its values with {twin!r} in {first} and "
                "differs here; convert them into runs of their own"
            )
        del entries[leaf]
    specs: dict[str, dict[str, LeafSpec]] = {
        str(first): expected.specs,
        state.label: {leaf: e.spec for leaf, e in {**kept, **entries}.items()},
    }
    check_compatible(specs)
    return replace(found, entries=tuple(kept.values()))


def _plain(name: str, names: Names) -> str:
    return name.removeprefix(_prefix(names))


def _prefix(names: Names) -> str:
    return common_prefix([*(entry.name for entry in names.entries), *names.shared])


def _by_plain_name(names: Names) -> dict[str, str]:
    prefix = _prefix(names)
    every = [*(entry.name for entry in names.entries), *names.shared]
    return {name.removeprefix(prefix): name for name in every}
