"""Image data sets by name: what the ResNet trainer trains on."""

from typing import NamedTuple

from lawa_jax.data import digits
from lawa_jax.data.loader import Source, Transform
from lawa_jax.data.synthetic import SyntheticImages


class ImageData(NamedTuple):
    """A data set for classification.

    Attributes:
      train: training examples ``{"image": [H, W, C], "label": int32}``.
      validation: the same shapes.
      num_classes: number of labels.
      augment: random transformation of a training example; None for none.
    """

    train: Source
    validation: Source
    num_classes: int
    augment: Transform | None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """[H, W, C] of an example."""
        return tuple(self.validation[0]["image"].shape)


def load_digits(*, label_noise: float = 0.0) -> ImageData:
    """scikit-learn's digits, moved by up to a pixel in training."""
    train, validation = digits.load(label_noise=label_noise)
    return ImageData(train, validation, digits.NUM_CLASSES, digits.shift)


def load_dummy(examples: int, *, num_classes: int, image_size: int) -> ImageData:
    """Synthetic images; an eighth as many for validation."""

    def images(length: int, seed: int) -> SyntheticImages:
        return SyntheticImages(length, num_classes=num_classes, image_size=image_size, seed=seed)

    return ImageData(images(examples, 0), images(max(1, examples // 8), 1), num_classes, None)
