"""Images that are mapped into memory instead of read."""

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from irstd_d2.data.image_io import open_raw, read_raw, to_float_image
from irstd_d2.data.pixel_values import value_limits
from irstd_d2.errors import DatasetError

PLAIN = [cv2.IMWRITE_TIFF_COMPRESSION, 1]


def write_big_endian(path, pixels):
    tifffile.imwrite(path, pixels, byteorder=">")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(37, 23), (37, 23, 3)])
def test_uncompressed_tiff_is_mapped_and_equal(tmp_path, dtype, shape):
    pixels = (np.random.default_rng(0).random(shape) * (1 if dtype == np.float32 else 250)).astype(dtype)
    path = tmp_path / "a.tif"
    assert cv2.imwrite(str(path), pixels, PLAIN)
    mapped = open_raw(path)
    base = mapped if isinstance(mapped, np.memmap) else mapped.base
    assert isinstance(base, np.memmap)
    assert mapped.dtype == dtype
    np.testing.assert_array_equal(mapped, read_raw(path))
    np.testing.assert_array_equal(to_float_image(mapped, path), to_float_image(read_raw(path), path))


def test_both_byte_orders_and_pillow(tmp_path):
    pixels = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    write_big_endian(tmp_path / "a.tif", pixels)
    mapped = open_raw(tmp_path / "a.tif")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, pixels)
    np.testing.assert_array_equal(read_raw(tmp_path / "a.tif"), pixels)
    np.testing.assert_array_equal(to_float_image(mapped[3:9, 4:8], "a"), to_float_image(pixels[3:9, 4:8], "a"))
    Image.fromarray(pixels).save(tmp_path / "b.tif")
    assert isinstance(open_raw(tmp_path / "b.tif"), np.memmap)


@pytest.mark.parametrize("name", ["lzw.tif", "a.png", "a.bmp", "white.tif", "palette.tif", "bits.tif"])
def test_other_files_are_read_as_ever(tmp_path, name):
    path = tmp_path / name
    pixels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    if name == "white.tif":
        Image.fromarray(pixels).save(path, tiffinfo={262: 0})
    elif name == "palette.tif":
        Image.fromarray(pixels).convert("P").save(path)
    elif name == "bits.tif":
        Image.fromarray(pixels > 90).save(path)
    else:
        cv2.imwrite(str(path), pixels)
    found = open_raw(path)
    assert not isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, read_raw(path))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_files(tmp_path):
    path = tmp_path / "a.tif"
    write_big_endian(path, np.zeros((20, 30), np.uint16))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match=r"a\.tif: pixels: a truncated TIFF"):
        open_raw(path)
    for length in range(0, 120, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DatasetError, match=r"a\.tif"):
            open_raw(path)
    with pytest.raises(DatasetError, match="cannot be opened"):
        open_raw(tmp_path / "absent.tif")


@pytest.mark.parametrize("mode", ["full_range", "minmax", "percentile"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_parts_are_stretched_like_the_whole(dtype, mode):
    raw = np.random.default_rng(1).random((40, 50)) * (1 if dtype == np.float32 else 200)
    raw = raw.astype(dtype)
    limits = value_limits(raw, "a", mode)
    whole = to_float_image(raw, "a", "RGB", mode)
    part = to_float_image(raw[5:20, 7:30], "a", "RGB", mode, limits)
    np.testing.assert_array_equal(part, whole[5:20, 7:30])
