"""Image files in one folder a class, in torchvision's order: ``root/<class>/**/*.jpg``."""

import os
from pathlib import Path

import numpy as np

from lawa_jax.errors import DataNotFoundError

# Those of torchvision's ImageFolder, in any case.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def class_names(root: str | Path) -> tuple[str, ...]:
    """Names of the class folders in `root`, sorted by code point as torchvision does."""
    return tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir()))


class ImageFolder:
    """The images under ``root/<class>/``; a label is the rank of its class's name.

    Args:
      root: folder of class folders.
      allow_empty: accept class folders without an image.

    Raises:
      DataNotFoundError: no class folders, or empty ones.
    """

    def __init__(self, root: str | Path, *, allow_empty: bool = False) -> None:
        self.root = str(root)
        self.classes = class_names(root)
        # Fixed-width bytes: a fifth of what a million str take, and quick to send to a worker.
        paths: list[bytes] = []
        labels: list[int] = []
        for label, name in enumerate(self.classes):
            found = _image_files(os.path.join(self.root, name), name)
            paths += found
            labels += [label] * len(found)
        self.paths = np.array(paths, dtype=np.bytes_)
        self.labels = np.array(labels, dtype=np.int32)
        counts = np.bincount(self.labels, minlength=len(self.classes))
        empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
        if not paths or (empty and not allow_empty):
            seen = f"{len(empty)} without one: {_some(empty)}" if empty else "no folder at all"
            raise DataNotFoundError(
                f"{root}: expected a folder of images for every class, found {seen}; images are "
                f"files that end in {' '.join(EXTENSIONS)}. Complete the folders or remove them."
            )

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path of an image."""
        return os.path.join(self.root, os.fsdecode(self.paths[index]))

    def read(self, index: int) -> tuple[bytes, int]:
        """The bytes of an image file, and its label."""
        return Path(self.name(index)).read_bytes(), int(self.labels[index])


def _image_files(folder: str, prefix: str) -> list[bytes]:
    """Image files under `folder`, their paths relative to it after `prefix`, sorted by folder."""
    files = []
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        inner = os.path.normpath(os.path.join(prefix, os.path.relpath(parent, folder)))
        files += [
            os.fsencode(os.path.join(inner, name))
            for name in sorted(names)
            if name.lower().endswith(EXTENSIONS)
        ]
    return files


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
