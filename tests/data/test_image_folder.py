import os
import pickle

import numpy as np
import pytest

from lawa_jax.data.image_folder import ImageFolder
from lawa_jax.errors import DataNotFoundError


def write(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode())


def test_order_and_labels(tmp_path):
    # Classes by code point ("Z" before "a", "10" before "9"); then folders, then files.
    write(
        tmp_path,
        "9/x.png", "10/b.jpg", "10/a.JPEG", "10/a.txt", "10/.hidden", "Z/deep/er/1.webp",
        "Z/2.jpg", "a/3.tiff", "loose.jpg", "10/sub/0.bmp",
    )  # fmt: skip
    folder = ImageFolder(tmp_path)
    assert folder.classes == ("10", "9", "Z", "a")
    assert [os.path.relpath(folder.name(i), tmp_path) for i in range(len(folder))] == [
        "10/a.JPEG", "10/b.jpg", "10/sub/0.bmp", "9/x.png", "Z/2.jpg", "Z/deep/er/1.webp",
        "a/3.tiff",
    ]  # fmt: skip
    assert folder.labels.tolist() == [0, 0, 0, 1, 2, 2, 3]
    assert folder.read(5) == (b"Z/deep/er/1.webp", 2)


def test_names_that_are_not_utf8(tmp_path):
    (tmp_path / "c").mkdir()
    path = os.path.join(os.fsencode(tmp_path), b"c", b"caf\xe9.jpg")
    with open(path, "wb") as file:
        file.write(b"x")
    folder = pickle.loads(pickle.dumps(ImageFolder(tmp_path)))
    assert os.fsencode(folder.name(0)) == path
    assert folder.read(0) == (b"x", 0)


def test_linked_folders_are_followed(tmp_path):
    write(tmp_path / "elsewhere", "dog/1.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    assert len(ImageFolder(tmp_path / "root")) == 1


def test_empty_class_folders(tmp_path):
    write(tmp_path, "a/1.jpg", "c/notes.txt")
    (tmp_path / "b").mkdir()
    with pytest.raises(DataNotFoundError, match=r"found 2 without one: b, c; .* \.jpg"):
        ImageFolder(tmp_path)
    folder = ImageFolder(tmp_path, allow_empty=True)
    assert folder.classes == ("a", "b", "c")
    assert len(folder) == 1


def test_no_images_at_all(tmp_path):
    with pytest.raises(DataNotFoundError, match="found no folder at all"):
        ImageFolder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataNotFoundError, match="found 1 without one: a"):
        ImageFolder(tmp_path, allow_empty=True)


def test_a_million_paths_stay_small(tmp_path):
    write(tmp_path, *(f"{c}/{c}_{i}.JPEG" for c in ("n01440764", "n01443537") for i in range(50)))
    folder = ImageFolder(tmp_path)
    assert folder.paths.nbytes / len(folder) <= 32
    assert folder.labels.dtype == np.int32
