"""From the bytes of an image file to pixels, as torchvision's PIL backend makes them.

Evaluation gives torchvision's uint8 pixels exactly: ``Resize(256)`` (bilinear, antialiased),
``CenterCrop(224)``. Training follows ``RandomResizedCrop(224)`` and ``RandomHorizontalFlip()``.
As torchvision's loader, decoding keeps the stored orientation (EXIF is not applied), drops alpha
and clips 16-bit grey at 255 instead of scaling it.

Normalising on the device (`normalize`) moves a quarter of the bytes there.
"""

import io
import math
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from lawa_jax.data import jpeg
from lawa_jax.errors import CorruptDataError, reason_of

# Of ImageNet, in units of the full range; red, green, blue.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# An image as thin as a hair would be resized to gigabytes.
MAX_PIXELS = 1 << 27


def open_image(data: bytes) -> Image.Image:
    """The image whose file holds `data`, header read and pixels not yet.

    Raises:
      CorruptDataError: no image in a format that Pillow knows.
    """
    if not data:
        raise CorruptDataError("the file is empty")
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise CorruptDataError("not an image that Pillow can open") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers meet
        raise CorruptDataError(f"not an image that Pillow can open ({reason_of(error)})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """All pixels of `image`, decoded, as RGB.

    Raises:
      CorruptDataError: the pixels are truncated or damaged.
    """
    try:
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # the same
        raise CorruptDataError(f"the pixels cannot be decoded ({reason_of(error)})") from error


def evaluation_pixels(data: bytes, *, size: int = 224, resize: int = 256) -> np.ndarray:
    """Pixels for evaluation, uint8 [size, size, 3]: the shorter side resized, the centre cut out.

    Equal to torchvision's ``CenterCrop(size)(Resize(resize)(image))``, roundings included. A
    resized image smaller than `size` is padded with black.

    Args:
      data: an image file's bytes.
      size: pixels a side of the result.
      resize: pixels of the shorter side before the crop.

    Raises:
      CorruptDataError: no image, or a damaged one.
    """
    image = to_rgb(open_image(data))
    width, height = image.size
    short, long = min(width, height), max(width, height)
    # Truncated, not rounded.
    new_long = int(resize * long / short)
    if resize * new_long > MAX_PIXELS:
        raise CorruptDataError(f"{width}x{height} pixels: too thin to be resized to {resize}")
    new = (resize, new_long) if width <= height else (new_long, resize)
    if new != image.size:
        image = image.resize(new, Image.Resampling.BILINEAR)
    left, top = (_crop_offset(extent, size) for extent in new)
    # Outside of the image crop() fills with black, as torchvision's padding does.
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _crop_offset(extent: int, size: int) -> int:
    """Where a centred crop begins; negative where padding comes first."""
    if extent < size:
        return -((size - extent) // 2)
    return round((extent - size) / 2)  # half to even, as Python's round and so torchvision


def random_crop_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """The (left, top, width, height) that torchvision's ``RandomResizedCrop`` would choose from.

    Area uniform in [0.08, 1] times the image's, aspect ratio log-uniform in [3/4, 4/3], position
    uniform; after 10 boxes that did not fit, the largest centred one within these ratios.

    Source: Szegedy et al. 2015, "Going deeper with convolutions", section 6.
    """
    ratio = (3 / 4, 4 / 3)
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return left, top, w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


def training_pixels(
    data: bytes, rng: np.random.Generator, *, size: int = 224, shrink: bool = True
) -> np.ndarray:
    """Pixels for training, uint8 [size, size, 3]: a random box, resized, mirrored half the time.

    Of a JPEG no more rows are decoded than the box needs, so that damage below it is not noticed.

    Args:
      data: an image file's bytes.
      rng: all randomness.
      size: pixels a side of the result.
      shrink: decode a JPEG at a half, quarter or eighth of its size when the box is still no
        smaller than the result, which is faster. On 120 photographs of ImageNet the pixels then
        differ by 3.9 levels (root mean square) at the threshold and 1.9 at 1.5 times it, about
        as much as moving the box by half a pixel does (3.6 and 2.6), and keep their sharpness to
        7 %; below the threshold they would blur. False: exactly torchvision's pixels for the box.

    Raises:
      CorruptDataError: no image, or a damaged one.
    """
    frame = jpeg.find_frame(data)
    if frame is None:
        image = open_image(data)
        extent, scalable = image.size, image.format == "JPEG"
    else:
        extent, scalable = (frame.width, frame.height), True
    left, top, width, height = random_crop_box(*extent, rng)
    mirrored = rng.random() < 0.5
    factor = 1
    if shrink and scalable:
        factor = next((f for f in (8, 4, 2) if min(width, height) >= f * size), 1)
    if frame is not None:
        image = jpeg.decode(data, frame, top + height, factor)
    elif factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))
    image = to_rgb(image)
    # Cut out before resizing, so that nothing outside of the box bleeds in.
    outer = (
        left // factor,
        top // factor,
        -(-(left + width) // factor),
        -(-(top + height) // factor),
    )
    inner = (
        left / factor - outer[0],
        top / factor - outer[1],
        (left + width) / factor - outer[0],
        (top + height) / factor - outer[1],
    )
    image = image.crop(outer).resize((size, size), Image.Resampling.BILINEAR, box=inner)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def normalize(images: Any) -> Any:
    """uint8 images [..., W, 3] as float32 ``(x / 255 - MEAN) / STD``; floats come back unchanged.

    For numpy and JAX arrays alike, so that it can be the first operation of a jitted step.
    """
    if images.dtype.kind == "f":
        return images
    # Rows of W * 3: numpy's inner loop over 3 channels alone takes five times as long.
    rows = images.reshape((*images.shape[:-2], -1)).astype(np.float32)
    shape = (1,) * (rows.ndim - 1) + (-1,)
    mean, std = (
        np.tile(np.asarray(constant, np.float32), images.shape[-2]).reshape(shape)
        for constant in (MEAN, STD)
    )
    # In place, for numpy: fresh memory would cost more than the arithmetic.
    rows /= np.float32(255)
    rows -= mean
    rows /= std
    return rows.reshape(images.shape)
