import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawa_jax.training.optim import cosine, sgd, warmup_cosine


def test_sgd_by_hand():
    """p = 2, g = 1, decay 0.5: b = 1 + 1 = 2; then p = 1.8, g = 1: b = 0.9 * 2 + 1.9 = 3.7."""
    optimizer = sgd(momentum=0.9, weight_decay=0.5)
    params, grads = {"bias": jnp.asarray([2.0])}, {"bias": jnp.asarray([1.0])}
    state = optimizer.init(params)
    direction, state = optimizer.update(grads, state, params)
    np.testing.assert_allclose(direction["bias"], [2.0])
    direction, state = optimizer.update(grads, state, {"bias": jnp.asarray([1.8])})
    np.testing.assert_allclose(direction["bias"], [3.7], rtol=1e-6)
    np.testing.assert_allclose(state[1].trace["bias"], [3.7], rtol=1e-6)


def test_nesterov_by_hand():
    optimizer = sgd(momentum=0.9, nesterov=True)
    params = {"w": jnp.asarray([0.0])}
    direction, state = optimizer.update({"w": jnp.asarray([1.0])}, optimizer.init(params))
    np.testing.assert_allclose(direction["w"], [1.9], rtol=1e-6)
    np.testing.assert_allclose(state[1].trace["w"], [1.0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_keeps_dtypes(dtype):
    optimizer = sgd(weight_decay=1e-4, nesterov=True)
    params = {"w": jnp.ones(3, dtype)}
    direction, state = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    assert direction["w"].dtype == state[1].trace["w"].dtype == dtype


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-4])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_sgd_has_the_bits_of_its_formula_over_200_steps(dtype, weight_decay, nesterov):
    optimizer = sgd(0.9, weight_decay, nesterov)
    target = jax.random.normal(jax.random.key(1), (257,), dtype)

    def by_formula(grad, buffer, params):
        grad = grad + weight_decay * params if weight_decay else grad
        buffer = 0.9 * buffer + grad
        return (grad + 0.9 * buffer if nesterov else buffer), buffer

    ours = theirs = jax.random.normal(jax.random.key(0), (257,), dtype)
    state, buffer = optimizer.init(ours), jnp.zeros_like(ours)
    update, by_formula = jax.jit(optimizer.update), jax.jit(by_formula)
    for step in range(200):
        rate = jnp.asarray(0.02 / (1 + step), dtype)
        direction, state = update(ours - target, state, ours)
        expected, buffer = by_formula(theirs - target, buffer, theirs)
        ours, theirs = ours - rate * direction, theirs - rate * expected
        assert np.asarray(direction).tobytes() == np.asarray(expected).tobytes()
    assert np.asarray(state[1].trace).tobytes() == np.asarray(buffer).tobytes()


def test_sgd_errors():
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        sgd(weight_decay=0.1).update({"w": jnp.ones(1)}, sgd().init({"w": jnp.ones(1)}))
    with pytest.raises(ValueError, match="positive momentum"):
        sgd(momentum=0.0, nesterov=True)


def test_cosine():
    assert cosine(0, base=0.1, epochs=90) == 0.1
    assert cosine(45, base=0.1, epochs=90) == pytest.approx(0.05)
    assert cosine(90, base=0.1, epochs=90) == 0.0


def test_warmup():
    def rate(epoch):
        return warmup_cosine(epoch, base=0.4, epochs=10, warmup=2, start=0.2)

    assert [rate(e) for e in (0, 0.5, 1, 2)] == pytest.approx([0.2, 0.25, 0.3, 0.4])
    assert rate(6) == pytest.approx(0.2)
    assert rate(10) == 0.0
    with pytest.raises(ValueError, match=r"warmup must be in \[0, 10\) epochs, found 10"):
        warmup_cosine(0, base=0.1, epochs=10, warmup=10)
