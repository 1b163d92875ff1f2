import pickle

import numpy as np

from lawa_jax.data.synthetic import SyntheticImages


def test_shapes_and_purity():
    source = SyntheticImages(20, num_classes=6, image_size=30, seed=1)
    assert len(source) == 20
    example = source[np.int64(13)]
    assert example["image"].shape == (30, 30, 3)
    assert example["image"].dtype == np.float32
    assert example["label"].dtype == np.int32
    assert example["label"] == 1
    copy = pickle.loads(pickle.dumps(source))[13]
    np.testing.assert_array_equal(copy["image"], example["image"])
    assert np.bincount([source[i]["label"] for i in range(18)]).tolist() == [3] * 6


def test_classes_share_a_pattern_under_their_own_noise():
    train = SyntheticImages(400, num_classes=2, image_size=16, seed=0)
    validation = SyntheticImages(400, num_classes=2, image_size=16, seed=1)
    assert (train[0]["image"] != validation[0]["image"]).any()

    def pattern(source, label):
        return np.mean([source[i]["image"] for i in range(label, 400, 2)], axis=0)

    for label in (0, 1):
        # 200 images of unit noise each: the means differ by 0.1 a pixel.
        difference = pattern(train, label) - pattern(validation, label)
        assert difference.std() < 0.13
    assert np.std(pattern(train, 0) - pattern(train, 1)) > 0.5
