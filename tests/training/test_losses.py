import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lawa_jax.training.losses import (
    classification_metrics,
    in_top_k,
    softmax_cross_entropy,
)
from lawa_jax.training.metrics import total_of


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.asarray([[1.0, 3.0], [1.0, 1.0]]))
    labels = jnp.asarray([1, 0])
    np.testing.assert_allclose(
        softmax_cross_entropy(logits, labels), [np.log(4 / 3), np.log(2)], rtol=1e-6
    )
    # 0.9 of the label's, 0.1 of the mean over classes
    smoothed = 0.9 * np.log(4 / 3) + 0.1 * (np.log(4 / 3) + np.log(4)) / 2
    np.testing.assert_allclose(
        softmax_cross_entropy(logits, labels, 0.1), [smoothed, np.log(2)], rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\], found 1.5"):
        softmax_cross_entropy(logits, labels, 1.5)


def test_large_logits_do_not_overflow():
    loss = softmax_cross_entropy(jnp.asarray([[1e30, 0.0]]), jnp.asarray([0]))
    np.testing.assert_array_equal(loss, [0.0])


def test_ties_rank_the_lower_class_first():
    logits = jnp.zeros((3, 6))
    np.testing.assert_array_equal(in_top_k(logits, jnp.asarray([0, 1, 5]), 1), [1, 0, 0])
    np.testing.assert_array_equal(in_top_k(logits, jnp.asarray([0, 4, 5]), 5), [1, 1, 0])


def test_nan_is_in_no_top_k():
    assert not in_top_k(jnp.full((1, 6), jnp.nan), jnp.asarray([0]), 5).any()


@given(seed=st.integers(0, 1000), k=st.sampled_from([1, 5]))
def test_top_k_against_a_stable_sort(seed, k):
    random = np.random.default_rng(seed)
    logits = random.integers(0, 5, (7, 9)).astype(np.float32)
    labels = random.integers(0, 9, 7)
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    expected = (best == labels[:, None]).any(1)
    np.testing.assert_array_equal(in_top_k(logits, labels.astype(np.int32), k), expected)


def test_masked_samples_do_not_count_even_if_nan():
    logits = jnp.zeros((4, 10)).at[0, 3].set(5.0).at[2].set(jnp.nan)
    labels = jnp.asarray([3, 9, 0, 0])
    mask = jnp.asarray([True, True, False, False])
    masked = classification_metrics(logits, labels, mask)
    plain = classification_metrics(logits[:2], labels[:2])
    assert masked.keys() == {"loss", "top1", "top5"}
    assert total_of([masked]).means() == pytest.approx(total_of([plain]).means())
    assert masked["top1"] == (1.0, 2)


def test_top5_needs_more_than_five_classes():
    assert "top5" not in classification_metrics(jnp.zeros((1, 5)), jnp.asarray([0]))
    assert "top5" in classification_metrics(jnp.zeros((1, 6)), jnp.asarray([0]))


def test_sums_of_batches_are_the_whole():
    random = np.random.default_rng(0)
    logits = jnp.asarray(random.normal(size=(5, 10)), jnp.float32)
    labels = jnp.arange(5)
    parts = total_of(
        classification_metrics(logits[rows], labels[rows]) for rows in (slice(3), slice(3, None))
    )
    whole = classification_metrics(logits, labels)
    assert parts.means() == pytest.approx(total_of([whole]).means())
    assert np.isnan(total_of([{"x": (jnp.float32(0), jnp.int32(0))}]).means()["x"])
