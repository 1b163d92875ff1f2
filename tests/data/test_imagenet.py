import shutil

import numpy as np
import pytest

from lawa_jax.data import imagenet
from lawa_jax.data.loader import eval_batches, train_batches
from lawa_jax.errors import DataNotFoundError


def test_nothing_there_says_what_to_do(tmp_path):
    with pytest.raises(DataNotFoundError) as caught:
        imagenet.find(tmp_path / "nowhere")
    message = str(caught.value)
    for part in (
        f"not found in {tmp_path}/nowhere (no such directory)",
        f"{tmp_path}/nowhere/imagenet2012/<version>/dataset_info.json",
        f"{tmp_path}/nowhere/train/<class>/*.jpg and {tmp_path}/nowhere/val/<class>/*.jpg",
        "tfds build imagenet2012 --file_format=array_record",
        "pip install 'lawa-jax[tfds-prepare]'",
        "python train/resnet_imagenet.py --config configs/resnet_digits.py --lawa_k 5",
    ):
        assert part in message
    assert caught.value.exit_code == 2


def test_half_of_it(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataNotFoundError, match=rf"there is {tmp_path}/train, but no {tmp_path}/v"):
        imagenet.find(tmp_path)
    (tmp_path / "train").rename(tmp_path / "other")
    with pytest.raises(DataNotFoundError, match="a directory that holds neither"):
        imagenet.find(tmp_path)


def test_folder(image_folder):
    data = imagenet.find(image_folder, image_size=16)
    assert data.num_classes == 3
    assert data.image_shape == (16, 16, 3)
    assert (len(data.train), len(data.validation)) == (24, 9)
    batches = list(train_batches(data.train, batch_size=8, seed=0, epoch=1, transform=data.augment))
    assert [batch["image"].shape for batch in batches] == [(8, 16, 16, 3)] * 3
    labels = np.concatenate([batch["label"] for batch in batches])
    assert np.bincount(labels).tolist() == [8, 8, 8]
    [batch] = eval_batches(data.validation, batch_size=9)
    assert batch["label"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert batch["image"].dtype == np.float32
    assert imagenet.find(image_folder, image_size=8, dtype="uint8").validation[0][
        "image"
    ].dtype == (np.uint8)


def test_home_is_expanded(image_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(image_folder.parent))
    assert imagenet.find(f"~/{image_folder.name}").num_classes == 3


def test_class_lists_must_agree(image_folder):
    shutil.move(image_folder / "val" / "bee", image_folder / "val" / "wasp")
    with pytest.raises(
        DataNotFoundError,
        match=r"same class folders.*found 3 and 3; only in .*/train: bee; only in .*/val: wasp",
    ):
        imagenet.find(image_folder)


def test_empty_class_folder_in_training_alone(image_folder):
    shutil.rmtree(image_folder / "val" / "cat")
    (image_folder / "val" / "cat").mkdir()
    assert len(imagenet.find(image_folder).validation) == 6
    shutil.rmtree(image_folder / "train" / "cat")
    (image_folder / "train" / "cat").mkdir()
    with pytest.raises(DataNotFoundError, match="found 1 without one: cat"):
        imagenet.find(image_folder)
