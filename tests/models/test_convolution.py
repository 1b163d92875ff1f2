import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawa_jax.models import convolution

NHWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}


@pytest.mark.parametrize(
    ("size", "stride", "window"), [(2, 1, 3), (1, 1, 3), (3, 2, 3), (4, 2, 3), (5, 2, 7), (3, 1, 3)]
)
def test_values_and_gradients_are_those_of_xla(size, stride, window):
    keys = jax.random.split(jax.random.key(size))
    images = jax.random.normal(keys[0], (2, size, size + 1, 3))
    kernel = jax.random.normal(keys[1], (window, window, 3, 5))
    arguments = (stride, stride), ((window // 2, window // 2),) * 2

    def total(function, images, kernel):
        return jnp.sum(jnp.square(function(images, kernel, *arguments, **NHWC)))

    for function in (convolution.convolution, total):
        if function is total:
            ours, theirs = (
                jax.jit(jax.grad(total, argnums=(1, 2)), static_argnums=0)(f, images, kernel)
                for f in (convolution.convolution, jax.lax.conv_general_dilated)
            )
        else:
            ours, theirs = (
                f(images, kernel, *arguments, **NHWC)
                for f in (convolution.convolution, jax.lax.conv_general_dilated)
            )
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "convolved"), [(2, False), (3, True)])
def test_the_matrix_product_is_for_cpus_and_small_outputs_alone(size, convolved):
    def apply(images, kernel):
        return convolution.convolution(images, kernel, (1, 1), ((1, 1), (1, 1)), **NHWC)

    shapes = jnp.zeros((1, size, size, 2)), jnp.zeros((3, 3, 2, 2))
    for platform in ("cpu", "tpu"):
        text = jax.jit(apply).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) == (convolved or platform == "tpu")
