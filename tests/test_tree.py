import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawa_jax import tree
from lawa_jax.errors import TreeMismatchError


def spec(*shape, dtype="float32"):
    return tree.LeafSpec(shape, np.dtype(dtype))


def test_leaves_are_named_by_their_keys_through_dicts_and_sequences():
    named = tree.named_leaves({"layers": [{"w": 1.0}, {"w": 2.0}], "b": (3.0,)})
    assert named == {"b/0": 3.0, "layers/0/w": 1.0, "layers/1/w": 2.0}


def test_a_bare_array_has_a_name():
    assert list(tree.named_leaves(np.zeros(2))) == ["."]


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(TreeMismatchError, match="both named 'a/b'"):
        tree.named_leaves({"a/b": 1.0, "a": {"b": 2.0}})


def test_nested_is_the_inverse_of_flattening():
    assert tree.nested({("a", "b"): 1, ("a", "c"): 2, ("d",): 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
    with pytest.raises(TreeMismatchError, match="a/b"):
        tree.nested({("a",): 1, ("a", "b"): 2})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_floats_are_averaged(dtype):
    assert tree.is_averaged(np.dtype(dtype))


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint32", "bool"])
def test_integers_are_not(dtype):
    assert not tree.is_averaged(np.dtype(dtype))


def test_prng_keys_are_not():
    assert not tree.is_averaged(jax.random.key(0).dtype)


def test_spec_of_arrays_structs_and_numbers():
    assert tree.spec_of(jnp.zeros((2, 3))) == spec(2, 3)
    assert tree.spec_of(jax.ShapeDtypeStruct((2,), jnp.int32)) == spec(2, dtype="int32")
    assert tree.spec_of(1.5) == spec(dtype="float64")
    assert str(spec(2, 3)) == "float32[2,3]"


def test_equal_trees_are_compatible():
    tree.check_compatible({"a": {"w": spec(2)}, "b": {"w": spec(2)}})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({}, "leaf 'w' is in epoch 1 but not in epoch 2"),
        ({"w": spec(2), "v": spec(2)}, "leaf 'v' is in epoch 2 but not in epoch 1"),
        ({"w": spec(3)}, r"leaf 'w': expected float32\[2\] as in epoch 1, found float32\[3\]"),
        ({"w": spec(2, dtype="float16")}, r"found float16\[2\] in epoch 2"),
    ],
)
def test_differences_are_named(other, message):
    with pytest.raises(TreeMismatchError, match=message):
        tree.check_compatible({"epoch 1": {"w": spec(2)}, "epoch 2": other})
