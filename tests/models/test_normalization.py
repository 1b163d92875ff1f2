import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lawa_jax.models.normalization import BatchNorm

X = jnp.asarray([[1.0], [3.0], [5.0], [7.0]])


def test_hand_computed():
    """Mean 4, biased variance 5, unbiased 20/3; running 0.9 * (0, 1) + 0.1 * (4, 20/3)."""
    norm = BatchNorm(1)
    y = norm(X, train=True)
    np.testing.assert_allclose(y, (X - 4) / np.sqrt(5 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(norm.mean[...], [0.4], rtol=1e-6)
    np.testing.assert_allclose(norm.var[...], [0.9 + 2 / 3], rtol=1e-6)
    y = norm(X, train=False)
    np.testing.assert_allclose(y, (X - 0.4) / np.sqrt(0.9 + 2 / 3 + 1e-5), rtol=1e-6)


def test_scale_bias_momentum_and_eps():
    norm = BatchNorm(1, momentum=0.5, eps=1.0)
    norm.scale[...], norm.bias[...] = jnp.asarray([2.0]), jnp.asarray([-1.0])
    y = norm(X, train=True)
    np.testing.assert_allclose(y, 2 * (X - 4) / np.sqrt(6) - 1, rtol=1e-6)
    np.testing.assert_allclose(norm.mean[...], [2.0], rtol=1e-6)


def test_moments_replace_statistics():
    norm = BatchNorm(1, groups=2)
    norm(X, train=True, moments=True)
    np.testing.assert_allclose(norm.mean[...], [4.0])
    np.testing.assert_allclose(norm.var[...], [5.0], rtol=1e-6)
    assert int(norm.count[...]) == 4


def test_groups_normalise_apart_and_the_first_moves_the_statistics():
    norm, half = BatchNorm(1, groups=2), BatchNorm(1)
    y = norm(X, train=True)
    first, second = half(X[:2], train=True), BatchNorm(1)(X[2:], train=True)
    np.testing.assert_allclose(y, jnp.concatenate([first, second]))
    np.testing.assert_array_equal(norm.mean[...], half.mean[...])
    np.testing.assert_array_equal(norm.var[...], half.var[...])


def test_large_mean_does_not_cancel():
    x = 3000 + jax.random.normal(jax.random.key(0), (64, 4, 4, 3))
    norm = BatchNorm(3, momentum=1.0)
    norm(x, train=True)
    expected = np.asarray(x, np.float64).reshape(-1, 3).var(0, ddof=1)
    np.testing.assert_allclose(norm.var[...], expected, rtol=1e-3)


def test_bfloat16_computes_statistics_in_float32():
    x = (100 + jax.random.normal(jax.random.key(0), (512, 3))).astype(jnp.bfloat16)
    norm = BatchNorm(3, momentum=1.0, dtype=jnp.bfloat16)
    assert norm(x, train=True).dtype == jnp.bfloat16
    assert norm.mean.dtype == norm.scale.dtype == jnp.float32
    np.testing.assert_allclose(norm.mean[...], np.asarray(x, np.float64).mean(0), rtol=1e-6)


def test_float64_parameters_keep_float64_statistics():
    with jax.enable_x64(True):
        norm = BatchNorm(1, dtype=jnp.float64, param_dtype=jnp.float64)
        assert norm(X.astype(jnp.float64), train=True).dtype == jnp.float64
        assert norm.var.dtype == jnp.float64
        np.testing.assert_allclose(norm.var[...], [0.9 + 2 / 3], rtol=1e-15)


def test_errors():
    with pytest.raises(ValueError, match="batch of 4 does not split into 3 equal BatchNorm groups"):
        BatchNorm(1, groups=3)(X, train=True)
    with pytest.raises(ValueError, match="more than one value per channel, found 1"):
        BatchNorm(1)(X[:1], train=True)
    with pytest.raises(ValueError, match="groups must be at least 1"):
        BatchNorm(1, groups=0)


def test_state_is_params_and_batch_statistics_only():
    _, params, stats, rest = nnx.split(BatchNorm(1), nnx.Param, nnx.BatchStat, ...)
    assert set(nnx.to_pure_dict(params)) == {"scale", "bias"}
    assert set(nnx.to_pure_dict(stats)) == {"mean", "var"}
    assert not nnx.to_pure_dict(rest)
