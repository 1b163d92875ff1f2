"""Images of every kind, made here."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def _picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth waves and noise, so that both edges and flat regions occur."""
    rng = np.random.default_rng([seed, width, height])
    y, x = np.mgrid[:height, :width][..., None]
    waves = np.sin(x / rng.uniform(3, 40, 3) + y / rng.uniform(3, 40, 3) + rng.uniform(0, 6, 3))
    pixels = np.clip(128 + 90 * waves + rng.normal(0, 15, waves.shape), 0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 3)
    image = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(pixels[..., 1]))
    return image.convert(mode)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """``picture(width, height, mode="RGB", seed=0)``."""
    return _picture


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """``encoded(width, height, mode="RGB", format="JPEG", seed=0, **options)``: a file's bytes."""

    def encode(
        width: int,
        height: int,
        mode: str = "RGB",
        format: str = "JPEG",
        seed: int = 0,
        **options: object,
    ) -> bytes:
        buffer = io.BytesIO()
        _picture(width, height, mode, seed).save(buffer, format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def image_folder(tmp_path: Path, encoded: Callable[..., bytes]) -> Path:
    """train/ with 3 classes of 8 images and val/ with 3 of 3, all sizes different."""
    for split, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(("ant", "bee", "cat")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                data = encoded(20 + 3 * index, 40 - 2 * index, seed=10 * label + index)
                (folder / f"{index}.JPEG").write_bytes(data)
    return tmp_path
