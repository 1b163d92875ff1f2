"""Damaged images: replaced or masked, named once, counted against the budget."""

import logging
import pickle

import numpy as np
import pytest

from lawa_jax.data import images
from lawa_jax.data.image_folder import ImageFolder
from lawa_jax.data.image_source import EvaluationImages, TrainingImages
from lawa_jax.data.loader import eval_batches, train_batches
from lawa_jax.errors import CorruptDataError

DAMAGED = (2, 3, 9, 23)


@pytest.fixture
def damaged_folder(image_folder):
    """Images 2 (truncated), 3 (text), 9 (empty) and 23 (gone after listing) cannot be used."""
    folder = ImageFolder(image_folder / "train")
    paths = [image_folder / "train" / folder.name(i) for i in DAMAGED]
    paths[0].write_bytes(paths[0].read_bytes()[:-60])
    paths[1].write_text("not an image")
    paths[2].write_bytes(b"")
    paths[3].unlink()
    return folder


def test_good_examples(image_folder):
    folder = ImageFolder(image_folder / "train")
    uint8 = EvaluationImages(folder, size=8, dtype="uint8")
    float32 = EvaluationImages(folder, size=8)
    assert float32.resize == 9  # 8 * 256 // 224
    assert EvaluationImages(folder).resize == 256
    for index in (0, 11, 23):
        data, label = folder.read(index)
        example = uint8[index]
        expected = images.evaluation_pixels(data, size=8, resize=9)
        np.testing.assert_array_equal(example["image"], expected)
        assert example["image"].dtype == np.uint8
        assert example["label"] == label
        assert example["label"].dtype == np.int32
        normal = float32[index]["image"]
        assert normal.dtype == np.float32
        np.testing.assert_array_equal(normal, images.normalize(expected))


def test_training_replaces_by_the_next_good_one(damaged_folder, caplog):
    source = TrainingImages(damaged_folder, size=8, dtype="uint8")
    good = [i for i in range(24) if i not in DAMAGED]

    def crop(index, seed):
        return source.augment(source[index], np.random.default_rng(seed))

    for index, follower in ((2, 4), (3, 4), (9, 10), (23, 0)):
        example = crop(index, 5)
        assert example["replaced"] == index
        assert example["label"] == damaged_folder.labels[follower]
        again = crop(index, 5)
        np.testing.assert_array_equal(example["image"], again["image"])
    for index in good:
        assert crop(index, 5)["replaced"] == -1
    # Text, empty and missing files cost no randomness: the follower's own crop.
    for index, follower in ((3, 4), (9, 10), (23, 0)):
        np.testing.assert_array_equal(crop(index, 6)["image"], crop(follower, 6)["image"])

    with caplog.at_level(logging.WARNING):
        for epoch in (1, 2):
            batches = train_batches(
                source, batch_size=8, seed=0, epoch=epoch, transform=source.augment
            )
            for batch in batches:
                assert set(batch) == {"image", "label"}
                assert batch["image"].shape == (8, 8, 8, 3)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 4
    for index, what in zip(DAMAGED, ("truncated", "not an image", "empty", "No such"), strict=True):
        [message] = [text for text in messages if text.startswith(damaged_folder.name(index))]
        assert what in message


def test_evaluation_masks(damaged_folder, caplog):
    source = EvaluationImages(damaged_folder, size=8)
    with caplog.at_level(logging.WARNING):
        batches = list(eval_batches(source, batch_size=10))
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert mask.tolist() == [i < 24 and i not in DAMAGED for i in range(30)]
    assert all(set(batch) == {"image", "label", "mask"} for batch in batches)
    assert len(caplog.records) == 4


def test_budget(damaged_folder):
    def run(budget):
        source = EvaluationImages(damaged_folder, size=8, corrupt_budget=budget)
        return len(list(eval_batches(source, batch_size=12)))

    assert run(4) == 2
    with pytest.raises(CorruptDataError) as caught:
        run(3)
    message = str(caught.value)
    assert message.startswith("damaged images: 4, more than corrupt_budget=3:")
    assert all(damaged_folder.name(index) in message for index in DAMAGED)
    assert "the file is empty" in message
    assert message.endswith("Restore or remove them, or raise corrupt_budget.")
    assert caught.value.exit_code == 3
    # None at all allowed: the first one met is one too many.
    with pytest.raises(CorruptDataError, match="damaged images: 1, more than corrupt_budget=0"):
        run(0)


def test_all_damaged_ends_soon(image_folder):
    folder = ImageFolder(image_folder / "train")
    for index in range(len(folder)):
        open(folder.name(index), "wb").close()
    source = TrainingImages(folder, size=8, corrupt_budget=1000)
    with pytest.raises(CorruptDataError, match=r"(?s)damaged images: 24.*and 14 more"):
        source.augment(source[0], np.random.default_rng(0))


def test_sources_travel_to_workers(image_folder):
    folder = ImageFolder(image_folder / "train")
    for source in (EvaluationImages(folder, size=8), TrainingImages(folder, size=8)):
        copy = pickle.loads(pickle.dumps(source))
        for name, value in source[5].items():
            np.testing.assert_array_equal(copy[5][name], value)
