import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lawa_jax.training.adam import adam, polynomial_decay


def test_first_update_by_hand():
    # b1 0.5, b2 0.75, eps 1, g = 4: m = 2, v = 4; sqrt(0.25) / 0.5 * 2 / (2 + 1) = 2/3.
    optimizer = adam(0.5, 0.75, eps=1.0, weight_decay=0.1)
    params = {"w": jnp.asarray([10.0]), "b": jnp.asarray([0.0])}
    grads = {"w": jnp.asarray([4.0]), "b": jnp.asarray([-4.0])}
    direction, state = optimizer.update(grads, optimizer.init(params), params)
    # The decay is decoupled: 0.1 * 10 is added after everything else, biases are no exception.
    np.testing.assert_allclose(direction["w"], [2 / 3 + 1.0], rtol=1e-6)
    np.testing.assert_allclose(direction["b"], [-2 / 3], rtol=1e-6)
    np.testing.assert_allclose(state.mean["w"], [2.0])
    np.testing.assert_allclose(state.square["w"], [4.0])
    # Second, g = 0: m = 1, v = 3; sqrt(1 - 0.5625) / 0.75 * 1 / (sqrt(3) + 1).
    zero = jax.tree.map(jnp.zeros_like, grads)
    direction, state = optimizer.update(zero, state, params)
    expected = np.sqrt(0.4375) / 0.75 / (np.sqrt(3) + 1)
    np.testing.assert_allclose(direction["w"], [expected + 1.0], rtol=1e-6)
    assert int(state.step) == 2


def test_first_bias_correction_keeps_its_digits_in_float32():
    # 1 - 0.98 in float32 is off by 1e-6; a gradient of one gives exactly one.
    optimizer = adam(0.9, 0.98, eps=0.0, weight_decay=0.0)
    params = {"w": jnp.ones(1)}
    direction, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(direction["w"], [1.0], rtol=3e-7)


def test_eps_is_added_before_bias_correction_unlike_optax():
    """With a gradient as small as eps, fairseq's first step is 2 / 8.07 of optax's."""
    params, grads = {"w": jnp.zeros(1)}, {"w": jnp.full(1, 1e-6)}
    ours, theirs = adam(weight_decay=0.0), optax.scale_by_adam(0.9, 0.98, eps=1e-6)
    direction, _ = ours.update(grads, ours.init(params), params)
    with jax.numpy_dtype_promotion("standard"):
        other, _ = theirs.update(grads, theirs.init(params), params)
    np.testing.assert_allclose(other["w"], [0.5], rtol=1e-4)
    np.testing.assert_allclose(direction["w"], [1 / (1 + 1 / np.sqrt(0.02))], rtol=1e-4)


def test_bfloat16_gradients_meet_float32_moments():
    params = {"w": jnp.ones(3)}
    grads = {"w": jnp.full(3, 0.5, jnp.bfloat16)}
    optimizer = adam()
    direction, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    assert {x.dtype for x in jax.tree.leaves((direction, state.mean, state.square))} == {
        jnp.dtype("float32")
    }


def test_moments_are_buffers_of_their_own():
    state = adam().init({"w": jnp.zeros(3)})
    pointers = {x.unsafe_buffer_pointer() for x in (state.mean["w"], state.square["w"])}
    assert len(pointers) == 2


def test_adam_checks_its_arguments():
    with pytest.raises(ValueError, match=r"b1 and b2 must be in \[0, 1\), found 0.9 and 1.0"):
        adam(0.9, 1.0)
    optimizer, grads = adam(), {"w": jnp.ones(1)}
    with pytest.raises(ValueError, match="weight decay needs params"):
        optimizer.update(grads, optimizer.init(grads))


def test_polynomial_decay_by_hand():
    def rate(updates, **changes):
        return polynomial_decay(updates, **changes)

    assert rate(0) == 0.0
    assert rate(5_000) == pytest.approx(2.5e-4)
    assert rate(10_000) == pytest.approx(5e-4)
    assert rate(67_500) == pytest.approx(2.5e-4)
    # 200 epochs of 136 updates end at 85 % of the peak.
    assert rate(27_200) / 5e-4 == pytest.approx(0.8504, abs=1e-4)
    assert rate(125_000) == rate(1e6) == 0.0
    assert rate(5, peak=1.0, warmup=0, horizon=10, end=0.2, power=2.0) == pytest.approx(0.4)
    assert rate(0, peak=1.0, warmup=0, horizon=10) == 1.0
    with pytest.raises(ValueError, match="0 <= warmup < horizon, found 10 and 10"):
        rate(1, warmup=10, horizon=10)
