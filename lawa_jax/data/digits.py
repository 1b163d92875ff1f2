"""Handwritten digits that come with scikit-learn: 1,797 real 8x8 grey images, no download.

The test half of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998, UCI,
CC BY 4.0), written by 13 people.
"""

import numpy as np

from lawa_jax.data.loader import ArraySource

NUM_CLASSES = 10


def load(validation: int = 360, *, label_noise: float = 0.0) -> tuple[ArraySource, ArraySource]:
    """Training and validation sources; images float32 [8, 8, 1], standardised; labels int32.

    The split is fixed (a permutation of its own seed), so that runs with different seeds are
    evaluated on the same images.

    Args:
      validation: number of images held out.
      label_noise: share of the TRAINING labels replaced by uniformly random ones.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 16 grey levels; mean 4.88 and deviation 6.02 of the whole set.
    images = ((digits.images.astype(np.float32) - 4.88) / 6.02)[..., None]
    labels = digits.target.astype(np.int32)
    generator = np.random.default_rng(20220928)
    order = generator.permutation(len(labels))
    held_out, kept = order[:validation], order[validation:]
    train_labels = labels[kept].copy()
    noisy = generator.random(len(kept)) < label_noise
    train_labels[noisy] = generator.integers(0, NUM_CLASSES, int(noisy.sum()))
    return (
        ArraySource(image=images[kept], label=train_labels),
        ArraySource(image=images[held_out], label=labels[held_out]),
    )


def shift(example: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Augmentation: move the digit by up to one pixel each way, the border repeated."""
    dy, dx = rng.integers(0, 3, 2)
    padded = np.pad(example["image"], ((1, 1), (1, 1), (0, 0)), mode="edge")
    return {**example, "image": padded[dy : dy + 8, dx : dx + 8]}
