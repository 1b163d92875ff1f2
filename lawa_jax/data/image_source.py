"""Encoded images as examples for the loader, damaged ones replaced and reported by name.

A damaged image is replaced by the next good one (in training) or masked out (in evaluation): a pure
function of the files, whatever worker meets it. Its index travels with the batch to the process
that consumes it, which logs its name once and stops when there are more than the budget allows.
"""

import logging
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np

from lawa_jax.data import images
from lawa_jax.errors import CorruptDataError

log = logging.getLogger(__name__)

CORRUPT_BUDGET = 20
_NOT_REPLACED = -1


class EncodedImages(Protocol):
    """Image files of one split by index."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, int]:
        """The bytes of an image file, and its label."""

    def name(self, index: int) -> str:
        """Where the image is, for messages."""


class _Images:
    """What training and evaluation share: the budget and the reports."""

    def __init__(
        self,
        encoded: EncodedImages,
        *,
        size: int = 224,
        dtype: Literal["float32", "uint8"] = "float32",
        corrupt_budget: int = CORRUPT_BUDGET,
    ) -> None:
        self.encoded, self.size, self.dtype = encoded, size, dtype
        self.corrupt_budget = corrupt_budget
        self._reported: set[int] = set()

    def __len__(self) -> int:
        return len(self.encoded)

    def _example(self, index: int, pixels: Callable[[bytes], np.ndarray]) -> dict[str, np.ndarray]:
        """Example `index`, or the next good one."""
        for step in range(min(len(self), self.corrupt_budget + 1)):
            try:
                data, label = self.encoded.read((index + step) % len(self))
                image = pixels(data)
            except (CorruptDataError, OSError):
                continue
            return {
                "image": images.normalize(image) if self.dtype == "float32" else image,
                "label": np.asarray(label, np.int32),
                "replaced": np.asarray(index if step else _NOT_REPLACED, np.int64),
            }
        raise self._exhausted([(index + step) % len(self) for step in range(step + 1)])

    def inspect(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Note the damaged images of a batch, in the process that consumes it.

        Raises:
          CorruptDataError: more of them by now than `corrupt_budget`.
        """
        batch = dict(batch)
        replaced = batch.pop("replaced")
        if "mask" in batch:
            batch["mask"] = batch["mask"] & (replaced == _NOT_REPLACED)
        for index in np.unique(replaced[replaced != _NOT_REPLACED]).tolist():
            if index not in self._reported:
                self._reported.add(index)
                log.warning("%s: %s", self.encoded.name(index), self.problem(index))
        if len(self._reported) > self.corrupt_budget:
            raise self._exhausted(sorted(self._reported))
        return batch

    def problem(self, index: int) -> str:
        """What is wrong with image `index`."""
        try:
            images.to_rgb(images.open_image(self.encoded.read(index)[0]))
        except CorruptDataError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)
        return "could not be used, but can be read now"

    def _exhausted(self, indices: list[int]) -> CorruptDataError:
        shown = [f"  {self.encoded.name(i)}: {self.problem(i)}" for i in indices[:10]]
        more = [f"  and {len(indices) - 10} more"] if len(indices) > 10 else []
        lines = "\n".join(shown + more)
        return CorruptDataError(
            f"damaged images: {len(indices)}, more than corrupt_budget={self.corrupt_budget}:\n"
            f"{lines}\nRestore or remove them, or raise corrupt_budget."
        )


class EvaluationImages(_Images):
    """Examples ``{"image": [size, size, 3], "label": int32}`` cut out of the centre.

    Args:
      encoded: image files of a split.
      size: pixels a side.
      resize: pixels of the shorter side before the crop; None: 256/224 of `size`, truncated.
      dtype: float32 (normalised) or uint8 (for `images.normalize` on the device).
      corrupt_budget: damaged images that are masked out before it is an error.
    """

    def __init__(
        self, encoded: EncodedImages, *, size: int = 224, resize: int | None = None, **options: Any
    ) -> None:
        super().__init__(encoded, size=size, **options)
        self.resize = size * 256 // 224 if resize is None else resize

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        return self._example(
            int(index),
            lambda data: images.evaluation_pixels(data, size=self.size, resize=self.resize),
        )


class TrainingImages(_Images):
    """Examples by index, made into random crops by `augment`, the loader's `transform`.

    Only the transformation reads the file, because what is decoded depends on the crop.

    Args:
      encoded: image files of a split.
      size: pixels a side.
      shrink: see `images.training_pixels`.
      dtype: as for `EvaluationImages`.
      corrupt_budget: damaged images that are replaced before it is an error.
    """

    def __init__(self, encoded: EncodedImages, *, shrink: bool = True, **options: Any) -> None:
        super().__init__(encoded, **options)
        self.shrink = shrink

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        return {"index": np.asarray(index, np.int64)}

    def augment(
        self, example: dict[str, np.ndarray], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """A random crop of the example, mirrored half the time."""
        return self._example(
            int(example["index"]),
            lambda data: images.training_pixels(data, rng, size=self.size, shrink=self.shrink),
        )
