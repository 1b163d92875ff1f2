"""Pixels against the same road written out step by step, as torchvision's PIL backend goes it."""

import contextlib
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, JpegImagePlugin
from scipy import stats

from lawa_jax.data import images
from lawa_jax.errors import CorruptDataError


def reference_evaluation(data, size, resize):
    """Load, Resize(resize), CenterCrop(size): each with its own copy, padding before cropping."""
    with io.BytesIO(data) as file:
        image = Image.open(file).convert("RGB")
    w, h = image.size
    target = (resize, int(resize * h / w)) if w <= h else (int(resize * w / h), resize)
    if target != (w, h):
        image = image.resize(target, Image.BILINEAR)
    w, h = image.size
    if size > w or size > h:
        missing_w, missing_h = max(0, size - w), max(0, size - h)
        border = (missing_w // 2, missing_h // 2, (missing_w + 1) // 2, (missing_h + 1) // 2)
        image = ImageOps.expand(image, border, fill=(0, 0, 0))
        w, h = image.size
    top, left = round((h - size) / 2.0), round((w - size) / 2.0)
    return np.array(image)[top : top + size, left : left + size]


SIZES = [
    (1, 1), (1, 2), (2, 1), (3, 7), (64, 64), (223, 225), (224, 224), (256, 256), (255, 257),
    (256, 300), (300, 256), (500, 375), (375, 500), (333, 500), (500, 334), (257, 600), (640, 100),
    (100, 777), (1000, 800), (37, 1400),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_evaluation_pixels_of_all_sizes(encoded, size):
    data = encoded(*size)
    pixels = images.evaluation_pixels(data)
    assert pixels.shape == (224, 224, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, reference_evaluation(data, 224, 256))


@pytest.mark.parametrize(("size", "resize"), [(64, 73), (64, 64), (32, 31), (65, 40), (64, 41)])
def test_evaluation_pixels_of_other_settings(encoded, size, resize):
    for width, height in [(64, 64), (31, 90), (91, 64), (200, 30)]:
        data = encoded(width, height)
        np.testing.assert_array_equal(
            images.evaluation_pixels(data, size=size, resize=resize),
            reference_evaluation(data, size, resize),
        )


@pytest.mark.parametrize(
    ("mode", "format"),
    [
        ("L", "JPEG"), ("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("P", "PNG"), ("1", "PNG"),
        ("L", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("I;16", "PNG"), ("P", "GIF"),
        ("RGB", "BMP"), ("F", "TIFF"), ("CMYK", "TIFF"),
        ("RGB", "WEBP"), ("RGBA", "WEBP"), ("RGB", "PPM"), ("I", "TIFF"),
    ],
)  # fmt: skip
def test_evaluation_pixels_of_all_modes(encoded, mode, format):
    data = encoded(300, 280, mode, format)
    pixels = images.evaluation_pixels(data)
    np.testing.assert_array_equal(pixels, reference_evaluation(data, 224, 256))
    assert images.training_pixels(data, np.random.default_rng(0)).shape == (224, 224, 3)


def test_orientation_is_left_as_stored(encoded):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    data = encoded(300, 260, exif=exif)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    np.testing.assert_array_equal(
        images.evaluation_pixels(data), images.evaluation_pixels(encoded(300, 260))
    )


def test_small_known_pixels():
    # 2x1 black and white to 4x2: the triangle filter mixes 1/4 and 3/4; the middle 2x2 is kept.
    buffer = io.BytesIO()
    Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8)).save(buffer, "PNG")
    pixels = images.evaluation_pixels(buffer.getvalue(), size=2, resize=2)
    np.testing.assert_array_equal(pixels[..., 0], [[64, 191]] * 2)


DAMAGED = {
    "empty": (lambda data: b"", "the file is empty"),
    "text": (lambda data: b"404 not found\n" * 9, "not an image that Pillow can open"),
    "header only": (lambda data: data[:2], "not an image that Pillow can open"),
    "truncated": (
        lambda data: data[: len(data) // 2],
        "cannot be decoded .*(truncated|not enough)",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_damaged_files(encoded, kind, format):
    damage, message = DAMAGED[kind]
    data = damage(encoded(300, 300, format=format))
    with pytest.raises(CorruptDataError, match=message):
        images.evaluation_pixels(data)
    with pytest.raises(CorruptDataError, match=message):
        images.training_pixels(data, np.random.default_rng(0))


def test_any_damage_is_one_kind_of_error(encoded):
    rng = np.random.default_rng(0)
    for format in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "PPM"):
        whole = np.frombuffer(encoded(40, 30, "L" if format == "GIF" else "RGB", format), np.uint8)
        for _ in range(40):
            data = whole.copy()
            places = rng.integers(0, min(len(data), 200), 6)
            data[places] = rng.integers(0, 256, 6)
            for pixels in (
                lambda data: images.evaluation_pixels(data, size=8, resize=8),
                lambda data: images.training_pixels(data, np.random.default_rng(0), size=8),
            ):
                with contextlib.suppress(CorruptDataError):
                    assert pixels(data.tobytes()).shape == (8, 8, 3)


def test_a_hair_is_refused_before_it_takes_gigabytes(encoded):
    data = encoded(1, 60_000, format="PNG")
    with pytest.raises(CorruptDataError, match="1x60000 pixels: too thin"):
        images.evaluation_pixels(data, resize=256)


def torch_box(width, height, generator):
    """Written from the description of RandomResizedCrop, with torch's generator."""
    log_ratio = torch.log(torch.tensor((3 / 4, 4 / 3)))
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(0.08, 1, generator=generator).item()
        uniform = torch.empty(1).uniform_(*log_ratio.tolist(), generator=generator)
        aspect = torch.exp(uniform).item()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,), generator=generator).item()
            left = torch.randint(0, width - w + 1, (1,), generator=generator).item()
            return left, top, w, h
    return None


@pytest.mark.parametrize("size", [(500, 375), (300, 640)])
def test_random_boxes_follow_torchvision(size):
    count = 3000
    rng = np.random.default_rng(1)
    ours = np.array([images.random_crop_box(*size, rng) for _ in range(count)], float)
    generator = torch.Generator().manual_seed(1)
    theirs = [torch_box(*size, generator) for _ in range(count)]
    theirs = np.array([box for box in theirs if box], float)

    def features(boxes):
        left, top, w, h = boxes.T
        jitter = np.random.default_rng(2).uniform(0, 1, (2, len(boxes)))
        # Position within the free space; ties of integers are broken at random.
        across = (left + jitter[0]) / (size[0] - w + 1)
        down = (top + jitter[1]) / (size[1] - h + 1)
        return {"area": w * h, "aspect": np.log(w / h), "across": across, "down": down}

    mine, reference = features(ours), features(theirs)
    for name in mine:
        assert stats.ks_2samp(mine[name], reference[name]).pvalue > 0.01, name
    left, top, w, h = ours.T
    assert (w > 0).all()
    assert (h > 0).all()
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + w <= size[0]).all()
    assert (top + h <= size[1]).all()


class Fixed:
    """A generator that always draws the largest area."""

    def uniform(self, low, high):
        return high


@pytest.mark.parametrize(
    ("size", "box"),
    [
        # Too wide: all of the height, 4/3 of it across, in the middle.
        ((1000, 30), (480, 0, 40, 30)),
        # Too tall: all of the width, 4/3 of it down.
        ((30, 1001), (0, 480, 30, 40)),
        # Within the ratios: all of it.
        ((100, 100), (0, 0, 100, 100)),
    ],
)
def test_box_after_ten_misses(size, box):
    assert images.random_crop_box(*size, Fixed()) == box


def test_training_pixels_are_the_box_resized(encoded):
    data = encoded(500, 375)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    mirrored = 0
    for seed in range(20):
        left, top, w, h = images.random_crop_box(500, 375, np.random.default_rng(seed))
        cut = whole.crop((left, top, left + w, top + h)).resize((224, 224), Image.BILINEAR)
        pixels = images.training_pixels(data, np.random.default_rng(seed), shrink=False)
        if not np.array_equal(pixels, np.asarray(cut)):
            mirrored += 1
            np.testing.assert_array_equal(pixels, np.asarray(cut)[:, ::-1])
    assert 4 <= mirrored <= 16


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        # Two pictures in one file: the first counts.
        {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (130, 700))]},
    ],
)
def test_rows_below_the_box_make_no_difference(encoded, monkeypatch, options):
    data = encoded(130, 700, **options)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    for top, height in ((0, 33), (5, 100), (77, 170), (300, 100)):
        monkeypatch.setattr(
            images, "random_crop_box", lambda *a, y=top, h=height, **k: (9, y, 99, h)
        )
        pixels = images.training_pixels(data, np.random.default_rng(0), size=48, shrink=False)
        cut = whole.crop((9, top, 108, top + height)).resize((48, 48), Image.BILINEAR)
        if np.random.default_rng(0).random() < 0.5:
            cut = cut.transpose(Image.FLIP_LEFT_RIGHT)
        np.testing.assert_array_equal(pixels, np.asarray(cut))


@pytest.mark.parametrize("progressive", [False, True])
def test_shrinking_on_load(encoded, monkeypatch, progressive):
    data = encoded(800, 600, quality=95, progressive=progressive)
    factors = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def spy_draft(self, mode, size):
        factors.append(round(self.width / size[0]))
        return draft(self, mode, size)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", spy_draft)
    for size, factor in (
        (600, 1),
        (301, 1),
        (300, 2),
        (151, 2),
        (150, 4),
        (76, 4),
        (75, 8),
        (9, 8),
    ):
        factors.clear()
        monkeypatch.setattr(images, "random_crop_box", lambda *a, **k: (100, 0, 700, 600))
        small = images.training_pixels(data, np.random.default_rng(0), size=size)
        assert factors == ([factor] if factor > 1 else [])
        exact = images.training_pixels(data, np.random.default_rng(0), size=size, shrink=False)
        difference = np.abs(small.astype(int) - exact)
        # The noise of these pictures is harder on it than any photograph.
        assert difference.mean() < 6, size
        if factor == 1:
            assert difference.max() == 0


def test_shrinking_keeps_the_box_in_place(encoded, monkeypatch):
    # A ramp across shows any shift: 255 levels over 1024 pixels.
    ramp = np.repeat(np.linspace(0, 255, 1024)[None, :, None], 1024, 0).repeat(3, 2)
    buffer = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(buffer, "JPEG", quality=95)
    for left, top in ((3, 5), (127, 250), (301, 97)):
        box = (left, top, 511, 533)
        monkeypatch.setattr(images, "random_crop_box", lambda *a, box=box, **k: box)
        small, exact = (
            images.training_pixels(
                buffer.getvalue(), np.random.default_rng(0), size=64, shrink=shrink
            ).astype(float)
            for shrink in (True, False)
        )
        assert abs((small - exact).mean()) < 0.2
        assert np.abs(small - exact).max() <= 2


def test_normalize_on_host_and_device():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32).div(255)
    mean, std = (
        torch.tensor(value).view(3, 1, 1)
        for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    expected = tensor.sub(mean).div(std).permute(0, 2, 3, 1).numpy()
    host = images.normalize(pixels)
    assert host.dtype == np.float32
    np.testing.assert_array_equal(host, expected)
    device = jax.jit(images.normalize)(jnp.asarray(pixels))
    assert device.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(device), expected, rtol=0, atol=1e-6)
    # White in the first channel: (1 - 0.485) / 0.229.
    assert images.normalize(np.full((1, 1, 3), 255, np.uint8))[0, 0, 0] == pytest.approx(2.2489083)
    assert images.normalize(host) is host
