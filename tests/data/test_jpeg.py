import io

import numpy as np
import pytest
from PIL import Image

from lawa_jax.data import jpeg
from lawa_jax.errors import CorruptDataError


def keep_rows(data, rows):
    frame = jpeg.find_frame(data)
    return data if frame is None else jpeg.keep_rows(data, frame, rows)


def decode(data, factor=1):
    image = Image.open(io.BytesIO(data))
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))
    return np.asarray(image)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_rows_kept_are_the_same_bits(encoded, mode, subsampling):
    data = encoded(90, 211, mode, subsampling=subsampling)
    for factor in (1, 2, 4, 8):
        whole = decode(data, factor)
        for rows in (1, 15, 16, 17, 100, 101, 150, 190, 211):
            cut = decode(keep_rows(data, rows), factor)
            assert len(cut) <= -(-(rows + 16 + 15) // factor)
            wanted = -(-rows // factor)
            np.testing.assert_array_equal(cut[:wanted], whole[:wanted])


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_decoding_without_opening_gives_the_same_bits(encoded, mode, subsampling):
    data = encoded(90, 211, mode, subsampling=subsampling)
    frame = jpeg.find_frame(data)
    for factor in (1, 2, 4, 8):
        for rows in (1, 16, 101, 190, 211):
            image = jpeg.decode(data, frame, rows, factor)
            assert image.mode == mode
            np.testing.assert_array_equal(np.asarray(image), decode(keep_rows(data, rows), factor))


def test_damaged_pixels_are_an_error(encoded):
    data = encoded(90, 211)
    frame = jpeg.find_frame(data)
    with pytest.raises(CorruptDataError, match="cannot be decoded"):
        jpeg.decode(data[: len(data) // 2], frame, 211)
    # Tables of the wrong kind: nothing can follow.
    table = data.index(b"\xff\xc4")
    broken = data[: table + 4] + b"\xff" + data[table + 5 :]
    with pytest.raises(CorruptDataError, match="cannot be decoded"):
        jpeg.decode(broken, frame, 211)


def test_too_large_is_left_to_pillow(encoded, monkeypatch):
    data = encoded(90, 211)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 211)
    assert jpeg.find_frame(data) is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 211 - 1)
    assert jpeg.find_frame(data) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert jpeg.find_frame(data) is not None


def test_it_is_shorter(encoded):
    data = encoded(64, 400)
    assert Image.open(io.BytesIO(keep_rows(data, 100))).size == (64, 128)  # 116 to units of 16
    assert keep_rows(data, 400) is data
    # An embedded thumbnail, comments and restart markers change nothing.
    exif = Image.Exif()
    exif[0x010E] = "\xff\xc0" * 10
    for options in (
        {"exif": exif},
        {"comment": b"\xff\xda\xff\xc0" * 5},
        {"restart_marker_rows": 1},
    ):
        data = encoded(64, 400, **options)
        cut = keep_rows(data, 100)
        assert Image.open(io.BytesIO(cut)).size == (64, 128)
        np.testing.assert_array_equal(decode(cut)[:100], decode(data)[:100])


def test_what_cannot_be_cut_comes_back(encoded):
    progressive = encoded(64, 400, progressive=True)
    assert keep_rows(progressive, 10) is progressive
    png = encoded(64, 400, format="PNG")
    assert keep_rows(png, 10) is png
    data = encoded(64, 400)
    scan = data.index(b"\xff\xda")
    frame = data.index(b"\xff\xc0")
    deep = data[: frame + 4] + b"\x0c" + data[frame + 5 :]
    assert keep_rows(deep, 10) is deep
    # A first scan of one component out of three.
    separate = data[: scan + 4] + b"\x01" + data[scan + 5 :]
    assert keep_rows(separate, 10) is separate
    for length in (0, 1, 2, 3, 20, scan, scan + 3):
        short = data[:length]
        assert keep_rows(short, 10) is short
