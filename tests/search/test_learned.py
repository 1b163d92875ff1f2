"""Learned coefficients, where the best ones are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from lawa_jax.errors import SelectionError, TrainingFailedError, TreeMismatchError
from lawa_jax.search.learned import learn_coefficients

TREES = [
    {"w": np.float32([0.0, 1.0]), "n": np.int32(1)},
    {"w": np.float32([4.0, 0.0]), "n": np.int32(2)},
    {"w": np.float32([0.0, 0.0]), "n": np.int32(3)},
]


def loss_to(*target):
    def loss(tree, scale):
        return scale * jnp.sum((tree["w"] - jnp.float32(target)) ** 2)

    return loss


def test_inside_the_triangle_the_target_is_reached():
    learned = learn_coefficients(
        TREES, loss_to(1.0, 0.5), [jnp.float32(1), jnp.float32(2)], passes=400
    )
    np.testing.assert_allclose(learned.coefficients, [0.5, 0.25, 0.25], atol=2e-3)
    assert learned.coefficients.sum() == pytest.approx(1, abs=1e-15)
    assert learned.losses[0] == pytest.approx((4 / 3 - 1) ** 2 + (1 / 3 - 0.5) ** 2)
    assert len(learned.losses) == 800


def test_outside_only_affine_coefficients_reach_it():
    batches = [jnp.float32(1)]
    affine = learn_coefficients(
        TREES, loss_to(-2.0, 1.0), batches, passes=600, constraint="affine", learning_rate=0.02
    )
    np.testing.assert_allclose(affine.coefficients, [1.0, -0.5, 0.5], atol=5e-3)
    convex = learn_coefficients(TREES, loss_to(-2.0, 1.0), batches, passes=400)
    assert convex.coefficients.min() > 0
    assert convex.losses[-1] > 3.9


def test_complex_leaves_keep_their_imaginary_parts():
    trees = [{"w": np.complex64([1j])}, {"w": np.complex64([3j + 2])}]

    def loss(tree, scale):
        assert tree["w"].dtype == np.complex64
        return scale * jnp.sum(jnp.abs(tree["w"] - jnp.complex64(0.5 + 1.5j)) ** 2)

    learned = learn_coefficients(trees, loss, [jnp.float32(1)], passes=400)
    assert learned.losses[0] == pytest.approx(0.5)
    np.testing.assert_allclose(learned.coefficients, [0.75, 0.25], atol=2e-3)


def test_a_loss_that_exits_is_no_success():
    def leaving(tree, batch):
        raise SystemExit(0)

    with pytest.raises(TrainingFailedError, match=r"sys.exit\(0\) at step 1"):
        learn_coefficients(TREES, leaving, [1.0])


def test_wrong_use_is_explained():
    with pytest.raises(SelectionError, match="found 3 and 0"):
        learn_coefficients(TREES, loss_to(0.0, 0.0), [])
    with pytest.raises(SelectionError, match="expected 'convex'"):
        learn_coefficients(TREES, loss_to(0.0, 0.0), [1.0], constraint="free")
    with pytest.raises(TreeMismatchError):
        learn_coefficients([TREES[0], {"w": np.float32([1])}], loss_to(0.0, 0.0), [1.0])
    with pytest.raises(TrainingFailedError, match="nan at step 1"):
        learn_coefficients(TREES, loss_to(0.0, 0.0), [jnp.float32("nan")])
