"""Pure functions of modules refuse weights of another model."""

import jax.numpy as jnp
import pytest
from flax import nnx

from lawa_jax.errors import TreeMismatchError
from lawa_jax.models.functional import functional


class Layer(nnx.Module):
    def __init__(self, outputs, rngs):
        self.fc = nnx.Linear(3, outputs, rngs=rngs)

    def __call__(self, x, train):
        return self.fc(x)


def layer(outputs):
    return functional(lambda rngs: Layer(outputs, rngs))


def test_an_output_layer_for_other_classes_is_refused():
    # 39 classes in the data, 40 in the weights: a table of wrong labels; 41: NaN.
    model = layer(40).init(0)
    outputs, _ = layer(40).apply(model, jnp.ones((2, 3)))
    assert outputs.shape == (2, 40)
    for classes in (39, 41):
        with pytest.raises(
            TreeMismatchError, match=rf"'fc/\w+' has shape .*40.*expected .*{classes}"
        ):
            layer(classes).apply(model, jnp.ones((2, 3)))


def test_leaves_of_another_model_are_refused():
    model = layer(4).init(0)
    renamed = {"params": {"head": model["params"]["fc"]}}
    with pytest.raises(
        TreeMismatchError, match="differ in 4 leaves, first 'fc/bias', which only the module"
    ):
        layer(4).apply(renamed, jnp.ones((2, 3)))
    more = {"params": {**model["params"], "a": {"b": jnp.ones(2)}}}
    with pytest.raises(
        TreeMismatchError, match="differ in 1 leaves, first 'a/b', which only the weights"
    ):
        layer(4).apply(more, jnp.ones((2, 3)))
