import io

import numpy as np
import pytest
from PIL import Image

from lawa_jax.data import jpeg


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
    # A first scan of one component out of three.
    separate = data[: scan + 4] + b"\x01" + data[scan + 5 :]
    assert keep_rows(separate, 10) is separate
    for length in (0, 1, 2, 3, 20, scan, scan + 3):
        short = data[:length]
        assert keep_rows(short, 10) is short
