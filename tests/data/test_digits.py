import numpy as np
import pytest

from lawa_jax.data import digits


def test_split():
    train, validation = digits.load()
    assert (len(train), len(validation)) == (1437, 360)
    for source in (train, validation):
        assert source.arrays["image"].shape[1:] == (8, 8, 1)
        assert source.arrays["image"].dtype == np.float32
        assert source.arrays["label"].dtype == np.int32
        assert set(source.arrays["label"].tolist()) == set(range(10))
    images = np.concatenate([train.arrays["image"], validation.arrays["image"]])
    assert len(np.unique(images.reshape(1797, -1), axis=0)) == 1797
    assert abs(images.mean()) < 0.01
    assert abs(images.std() - 1) < 0.01
    again, _ = digits.load(100)
    assert len(again) == 1697
    np.testing.assert_array_equal(again.arrays["label"][260:], train.arrays["label"])


def test_label_noise_hits_training_alone():
    clean, validation = digits.load()
    noisy, same = digits.load(label_noise=0.2)
    np.testing.assert_array_equal(validation.arrays["label"], same.arrays["label"])
    np.testing.assert_array_equal(clean.arrays["image"], noisy.arrays["image"])
    changed = np.mean(clean.arrays["label"] != noisy.arrays["label"])
    # A tenth of the random labels are right by chance.
    assert changed == pytest.approx(0.18, abs=0.03)


def test_shift_moves_by_a_pixel_at_most():
    image = np.arange(64, dtype=np.float32).reshape(8, 8, 1)
    seen = set()
    for seed in range(100):
        moved = digits.shift({"image": image, "label": 3}, np.random.default_rng(seed))
        assert moved["label"] == 3
        assert moved["image"].shape == (8, 8, 1)
        dy, dx = divmod(int(moved["image"][4, 4, 0]) - int(image[3, 3, 0]), 8)
        seen.add((dy, dx))
        rows, columns = (np.clip(np.arange(8) + d - 1, 0, 7) for d in (dy, dx))
        np.testing.assert_array_equal(moved["image"], image[rows][:, columns])
    assert seen == {(dy, dx) for dy in range(3) for dx in range(3)}
    np.testing.assert_array_equal(image.ravel(), np.arange(64))
