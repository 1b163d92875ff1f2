import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawa_jax.models.functional import Functional
from lawa_jax.training.mlm import masked_lm_loss

LN2 = np.log(2.0)


def fixed_logits():
    """A network whose logits at every position are its parameters, [1, 1, 8]."""

    def apply(model, tokens, positions, *, train, key):
        shape = (*positions.shape, 8)
        return jnp.broadcast_to(model["params"]["logits"], shape), {}

    return Functional(lambda seed: {}, apply)


def batch(targets, **more):
    targets = jnp.asarray(targets, jnp.int32)
    return {
        "tokens": jnp.zeros((targets.shape[0], 5), jnp.int32),
        "masked_positions": jnp.zeros_like(targets),
        "targets": targets,
        **more,
    }


@pytest.fixture
def loss_fn():
    return masked_lm_loss(fixed_logits())


UNIFORM = {"params": {"logits": jnp.zeros((1, 1, 8))}}
# Probability 2^-1 for symbol 4 and 2^-3.8 for each of the other seven.
HALF = {"params": {"logits": jnp.zeros((1, 1, 8)).at[0, 0, 4].set(jnp.log(7.0))}}


def test_knowing_nothing_of_8_symbols_costs_3_bits(loss_fn):
    mean, (stats, metrics) = loss_fn(UNIFORM, batch([[5, 6], [7, 1]]), None, False)
    np.testing.assert_allclose(mean, 3 * LN2, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"][0], 9.0, rtol=1e-6)
    assert int(metrics["loss"][1]) == 3
    assert stats == {}


def test_padding_targets_and_masked_rows_do_not_count(loss_fn):
    mask = jnp.asarray([True, False])
    _, (_, metrics) = loss_fn(HALF, batch([[4, 4, 5, 1], [5, 5, 5, 5]], mask=mask), None, False)
    np.testing.assert_allclose(metrics["loss"][0], 1 + 1 + np.log2(14), rtol=1e-6)
    assert int(metrics["loss"][1]) == 3
    np.testing.assert_allclose(metrics["accuracy"][0], 2.0)


def test_a_batch_without_targets_has_no_loss_and_no_gradient(loss_fn):
    empty = batch([[1, 1]])
    (mean, (_, metrics)), gradient = jax.value_and_grad(
        lambda model: loss_fn(model, empty, None, True), has_aux=True
    )(HALF)
    assert float(mean) == 0.0
    assert int(metrics["loss"][1]) == 0
    assert not np.asarray(gradient["params"]["logits"]).any()


def test_infinite_logits_of_padding_rows_stay_out(loss_fn):
    broken = {"params": {"logits": jnp.full((1, 1, 8), jnp.nan)}}
    mean, _ = loss_fn(broken, batch([[1, 1]]), None, False)
    assert float(mean) == 0.0
