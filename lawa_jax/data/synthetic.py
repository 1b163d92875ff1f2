"""Synthetic ImageNet-shaped data: nothing to download, every shape as the real thing.

Each class has a coarse colour pattern of its own under heavy noise, so that a model can learn
something and a loss curve means something; the figures say nothing about ImageNet.
"""

from typing import Any

import numpy as np


class SyntheticImages:
    """Examples ``{"image": float32 [S, S, 3], "label": int32}``, each a pure function of its index.

    Args:
      length: number of examples.
      num_classes: labels are spread evenly.
      image_size: S in pixels.
      seed: of the noise; class patterns are the same for every seed, so that a training and a
        validation set differ in noise alone.
    """

    def __init__(
        self, length: int, *, num_classes: int = 1000, image_size: int = 224, seed: int = 0
    ) -> None:
        self.num_classes, self.image_size = num_classes, image_size
        self._length, self._seed = length, seed

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
        label = int(index) % self.num_classes
        size = self.image_size
        pattern = np.random.default_rng([7, label]).standard_normal((4, 4, 3), dtype=np.float32)
        noise = np.random.default_rng([self._seed, int(index)])
        cells = np.arange(size) * 4 // size
        image = pattern[cells][:, cells] + noise.standard_normal((size, size, 3), dtype=np.float32)
        return {"image": image, "label": np.asarray(label, np.int32)}
