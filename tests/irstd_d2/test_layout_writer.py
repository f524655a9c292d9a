import cv2
import numpy as np
import pytest
from PIL import Image

from irstd_d2.data import read_sky_mask
from irstd_d2.data.image_io import read_raw
from irstd_d2.data.layout_writer import TARGET_PALETTE, densesirst_files, png_bytes, point_lines, split_lines
from irstd_d2.data.voc_xml import VocObject, VocRecord, read_voc_xml


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [0, 3])
def test_png_keeps_every_pixel(tmp_path, dtype, channels):
    shape = (7, 5, channels) if channels else (7, 5)
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(pixels))
    np.testing.assert_array_equal(read_raw(path), pixels)
    assert read_raw(path).dtype == dtype
    assert png_bytes(pixels) == path.read_bytes()


def test_png_with_palette(tmp_path):
    labels = np.array([[0, 1], [1, 0]], np.uint8)
    (tmp_path / "mask.png").write_bytes(png_bytes(labels, TARGET_PALETTE))
    image = Image.open(tmp_path / "mask.png")
    assert image.mode == "P"
    assert image.convert("RGB").getpixel((1, 0)) == (255, 0, 0)
    np.testing.assert_array_equal(np.asarray(image), labels)


def test_points_are_the_pixels_at_the_centres():
    boxes = [(2, 3, 5, 6), (0, 0, 1, 1), (4, 4, 8, 6), (1.5, 0, 2.5, 4)]
    record = VocRecord(9, 9, None, None, tuple(VocObject("Target", False, box) for box in boxes))
    assert point_lines(record) == b"3 4\n0 0\n6 5\n2 2\n"
    assert point_lines(VocRecord(9, 9, None, None, ())) == b""
    assert split_lines(["a", "b c"]) == b"a\nb c\n"


def test_files_of_an_image(tmp_path):
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    targets, sky = np.zeros((4, 4), bool), np.zeros((4, 4), np.uint8)
    targets[1:3, 1] = True
    sky[:2], sky[3] = 1, 255
    record = VocRecord(4, 4, "Land", None, (VocObject("Target", False, (1, 1, 2, 3)),))
    files = dict(densesirst_files("x", image, record, targets, sky))
    assert list(files) == [
        "PNGImages/x.png",
        "SIRST/BinaryMask/x_pixels0.png",
        "SIRST/PaletteMask/x.png",
        "SkySeg/BinaryMask/x_pixels0.png",
        "SkySeg/PaletteMask/x.png",
        "SIRST/Point_label/x_pixels0.txt",
        "SIRST/BBox/x.xml",
    ]
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    assert read_voc_xml(tmp_path / "SIRST/BBox/x.xml") == record
    assert b"<depth>3</depth>" in files["SIRST/BBox/x.xml"]
    np.testing.assert_array_equal(read_sky_mask(tmp_path / "SkySeg/PaletteMask/x.png"), sky)
    binary = cv2.imread(str(tmp_path / "SkySeg/BinaryMask/x_pixels0.png"), -1)
    np.testing.assert_array_equal(binary, np.where(sky == 1, 255, 0))
    binary = cv2.imread(str(tmp_path / "SIRST/BinaryMask/x_pixels0.png"), -1)
    np.testing.assert_array_equal(binary, np.where(targets, 255, 0))
