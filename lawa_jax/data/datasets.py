"""Image data sets by name: what the ResNet trainer trains on."""

from typing import NamedTuple

from lawa_jax.data import digits
from lawa_jax.data.loader import Source, Transform
from lawa_jax.data.synthetic import SyntheticImages
from lawa_jax.errors import ConfigError


class ImageData(NamedTuple):
    """A data set for classification.

    Attributes:
      train: training examples ``{"image": [H, W, C], "label": int32}``.
      validation: the same shapes.
      num_classes: number of labels.
      augment: random transformation of a training example; None for none.
      plain_train: training examples prepared as for evaluation; None where `train` is that.
    """

    train: Source
    validation: Source
    num_classes: int
    augment: Transform | None
    plain_train: Source | None = None

    @property
    def image_shape(self) -> tuple[int, ...]:
        """[H, W, C] of an example."""
        return tuple(self.validation[0]["image"].shape)

    def split(self, name: str) -> Source:
        """What to evaluate on: ``"val"``, or ``"train"`` without augmentation.

        Raises:
          ConfigError: another name.
        """
        if name == "val":
            return self.validation
        if name == "train":
            return self.plain_train or self.train
        raise ConfigError(f"there is no split {name!r} to evaluate; expected val or train")


def load_digits(*, label_noise: float = 0.0) -> ImageData:
    """scikit-learn's digits, moved by up to a pixel in training."""
    train, validation = digits.load(label_noise=label_noise)
    return ImageData(train, validation, digits.NUM_CLASSES, digits.shift)


def load_dummy(examples: int, *, num_classes: int, image_size: int) -> ImageData:
    """Synthetic images; an eighth as many for validation."""

    def images(length: int, seed: int) -> SyntheticImages:
        return SyntheticImages(length, num_classes=num_classes, image_size=image_size, seed=seed)

    return ImageData(images(examples, 0), images(max(1, examples // 8), 1), num_classes, None)
