"""The containers around chosen leaves: hand-written trees, and what Orbax itself restores."""

import numpy as np
import pytest

from lawa_jax.errors import CorruptCheckpointError, TreeMismatchError
from lawa_jax.trajectory.formats.orbax_metadata import DICT, SEQUENCE, StoredLeaf
from lawa_jax.trajectory.structure import kept_nodes, rebuilt


def leaf(*keys, kind="jax.Array", empty=False):
    types = tuple(SEQUENCE if key.isdigit() else DICT for key in keys)
    return StoredLeaf(keys, types, kind, empty)


def test_nodes_of_branches_chosen_whole_are_kept_and_others_are_not():
    entries = [
        leaf("params", "w"),
        leaf("params", "act", kind="Dict", empty=True),
        leaf("params", "note", kind="string"),
        leaf("opt", "mu"),
        leaf("opt", "none", kind="None", empty=True),
        leaf("rest", kind="None", empty=True),
    ]
    kept = {node.name for node in kept_nodes(entries, {"params/w"})}
    assert kept == {"params/act", "params/note"}


def test_a_list_of_which_places_were_left_out_keeps_its_order():
    entries = [leaf("layers", "0"), leaf("layers", "1"), leaf("layers", "2"), leaf("layers", "3")]
    (first, third) = kept_nodes(entries, {"layers/1", "layers/3"})
    assert [first.keys, third.keys] == [("layers", "0"), ("layers", "2")]
    assert first.is_empty
    assert third.is_empty


def test_a_list_with_a_hundred_million_places_is_damage_not_memory():
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        kept_nodes([leaf("layers", "99999999")], {"layers/99999999"})


def test_lists_and_dicts_come_back_in_order():
    values = {("a", "10"): 10, **{("a", str(i)): i for i in range(10)}, ("b", "x"): {}}
    types = {keys: leaf(*keys).key_types for keys in values}
    assert rebuilt(values, types) == {"a": list(range(11)), "b": {"x": {}}}


def test_digits_that_were_saved_as_keys_of_a_dict_stay_keys():
    assert rebuilt({("a", "0"): 1}, {("a", "0"): (DICT, DICT)}) == {"a": {"0": 1}}


def test_a_bare_array_is_its_own_tree():
    np.testing.assert_array_equal(rebuilt({(): np.ones(2)}, {(): ()}), np.ones(2))


@pytest.mark.parametrize(
    "values",
    [{("a",): 1, ("a", "b"): 2}, {("a", "b"): 2, ("a",): 1}, {("a", "1"): 1}],
    ids=["leaf then branch", "branch then leaf", "hole"],
)
def test_what_is_no_tree_is_refused(values):
    with pytest.raises(TreeMismatchError):
        rebuilt(values, {keys: leaf(*keys).key_types for keys in values})
