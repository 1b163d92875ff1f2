"""ImageNet, or any images in its layout: through TFDS, or as one folder of files a class."""

from pathlib import Path
from typing import Literal

from lawa_jax.data.datasets import ImageData
from lawa_jax.data.image_folder import ImageFolder, class_names
from lawa_jax.data.image_source import (
    CORRUPT_BUDGET,
    EncodedImages,
    EvaluationImages,
    TrainingImages,
)
from lawa_jax.data.tfds_images import DATASET, TfdsImages, find_builder
from lawa_jax.errors import DataNotFoundError

DIGITS_COMMAND = "python train/resnet_imagenet.py --config configs/resnet_digits.py --lawa_k 5"

_NOT_FOUND = """\
ImageNet was not found in {data_dir} ({state}). Looked for
  a TFDS directory:  {data_dir}/{dataset}/<version>/dataset_info.json
  an image folder:   {data_dir}/train/<class>/*.jpg and {data_dir}/val/<class>/*.jpg
To prepare ImageNet: register at https://image-net.org and download ILSVRC2012_img_train.tar and
ILSVRC2012_img_val.tar. Then either unpack them, one folder a class (the validation tar is flat: its
images must be sorted into the same class folders), or, with TensorFlow installed once,
  pip install 'lawa-jax[tfds-prepare]'
  tfds build {dataset} --file_format=array_record --manual_dir=<folder of the two tar files> \\
    --data_dir={data_dir}
(read back without TensorFlow: 'lawa-jax[tfds]'). Say where it is with --data_dir.
To try LAWA now, on small images that need no download:
  {command}"""

# ILSVRC 2012.
TRAIN_IMAGES = 1_281_167


def find(
    data_dir: str | Path,
    *,
    image_size: int = 224,
    resize: int | None = None,
    dtype: Literal["float32", "uint8"] = "float32",
    shrink: bool = True,
    corrupt_budget: int = CORRUPT_BUDGET,
) -> ImageData:
    """Training and validation images in `data_dir`, with the random crops for training.

    Args:
      data_dir: a TFDS directory with a prepared ``imagenet2012`` (or a prepared data set with the
        features image and label), or a folder with ``train/<class>/*`` and ``val/<class>/*``.
      image_size: pixels a side.
      resize: pixels of the shorter side before evaluation's centre crop; None: 256/224 of
        `image_size`, truncated.
      dtype: float32 (normalised), or uint8 for `images.normalize` on the device, a quarter of the
        bytes to move.
      shrink: decode large JPEGs at reduced size in training; see `images.training_pixels`.
      corrupt_budget: damaged images that are replaced or masked out, each logged by name, before
        it is an error; counted by split and process.

    Raises:
      DataNotFoundError: neither is there, or half of it; class folders that differ or are empty.
      MissingDependencyError: there is a TFDS directory and TFDS is not installed.
    """
    train, validation = open_splits(data_dir)
    training = TrainingImages(
        train, size=image_size, dtype=dtype, shrink=shrink, corrupt_budget=corrupt_budget
    )
    plain, evaluation = (
        EvaluationImages(
            split, size=image_size, resize=resize, dtype=dtype, corrupt_budget=corrupt_budget
        )
        for split in (train, validation)
    )
    return ImageData(training, evaluation, len(train.classes), training.augment, plain)


def open_splits(data_dir: str | Path) -> tuple[EncodedImages, EncodedImages]:
    """The image files of the training and the validation split; see `find`."""
    root = Path(data_dir).expanduser().absolute()  # messages say where it was looked for
    # A folder of classes is looked for first: it needs no other package.
    folders = root / "train", root / "val"
    present = [folder.is_dir() for folder in folders]
    if all(present):
        return _open_folders(*folders)
    if builder := find_builder(root):
        return TfdsImages(builder, "train"), TfdsImages(builder, "validation")
    if any(present):
        state = f"there is {folders[present.index(True)]}, but no {folders[present.index(False)]}"
    elif root.is_dir():
        state = "a directory that holds neither"
    else:
        state = "no such directory"
    raise DataNotFoundError(
        _NOT_FOUND.format(data_dir=root, state=state, dataset=DATASET, command=DIGITS_COMMAND)
    )


def _open_folders(train: Path, validation: Path) -> tuple[ImageFolder, ImageFolder]:
    here, there = set(class_names(train)), set(class_names(validation))
    if here != there:
        differences = [
            f"only in {folder}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
            for folder, names in ((train, sorted(here - there)), (validation, sorted(there - here)))
            if names
        ]
        raise DataNotFoundError(
            f"{train} and {validation} must have the same class folders, since labels are their "
            f"ranks; found {len(here)} and {len(there)}; {'; '.join(differences)}"
        )
    return ImageFolder(train), ImageFolder(validation, allow_empty=True)
