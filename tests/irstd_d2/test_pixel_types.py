"""One table of pixel types for all readers: training and demo (read_image, open_raw) and the exported runtime."""

import struct

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from irstd_d2.data import image_io
from irstd_d2.data.image_io import open_raw, read_image, to_float_image
from irstd_d2.errors import DatasetError
from irstd_d2.export import runtime

# Values as shares of white; files hold them in their own type.
SHARES = np.linspace(0, 1, 12).reshape(3, 4)
BYTES = np.rint(SHARES * 255).astype(np.uint8)
COLOUR = np.stack([SHARES, 1 - SHARES, SHARES[::-1]], axis=2)
COLOUR_BYTES = np.rint(COLOUR * 255).astype(np.uint8)


def of_type(dtype, shares=SHARES):
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return shares.astype(dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return (
        np.rint(low + shares * (float(high) - low)).clip(low, float(high) - (dtype.itemsize > 4) * 2**12).astype(dtype)
    )


def tiff(pixels, **options):
    return lambda path: tifffile.imwrite(path, pixels, **options)


def pillow(image, **options):
    return lambda path: image.save(path, **options)


def palette():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).convert("P")
    image.putpalette(COLOUR_BYTES.reshape(-1).tolist())
    return image


GRAY, RGB = SHARES * 255, COLOUR * 255
TURNS = {
    **{1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud},
    **{5: np.transpose, 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).T, 8: np.rot90},
}


def turned(dtype, orientation, **options):
    return tiff(of_type(dtype), extratags=[(274, "H", 1, orientation, True)], **options), TURNS[orientation](GRAY)


DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
CASES = {
    **{f"{dtype}.tif": (tiff(of_type(dtype)), GRAY) for dtype in DTYPES},
    **{f"white_{t}.tif": (tiff(of_type(t, 1 - SHARES), photometric="miniswhite"), GRAY) for t in DTYPES if t != "int8"},
    **{f"colour_{t}.tif": (tiff(of_type(t, COLOUR), photometric="rgb"), RGB) for t in ("uint8", "uint16", "float32")},
    "12bit.tif": (tiff(np.rint(SHARES * 4095).astype(np.uint16), bitspersample=12), GRAY),
    "white_12bit.tif": (
        tiff(np.rint((1 - SHARES) * 4095).astype(np.uint16), bitspersample=12, photometric="miniswhite"),
        GRAY,
    ),
    "1bit.tif": (pillow(Image.fromarray(SHARES > 0.5)), (SHARES > 0.5) * 255.0),
    "white_1bit.tif": (tiff(SHARES < 0.5, photometric="miniswhite"), (SHARES > 0.5) * 255.0),
    **{f"turned_{t}_{turn}.tif": turned(t, turn) for t in ("uint8", "uint16", "float32") for turn in TURNS},
    **{f"turned_deflate_{t}.tif": turned(t, 6, compression="deflate") for t in ("uint8", "uint16")},
    "big_endian.tif": (tiff(of_type("uint16"), byteorder=">"), GRAY),
    "bigtiff.tif": (tiff(of_type("uint16"), bigtiff=True), GRAY),
    "lzw.tif": (tiff(of_type("uint16"), compression="lzw", predictor=True), GRAY),
    "deflate_float.tif": (tiff(of_type("float32"), compression="deflate", predictor=True), GRAY),
    "tiles.tif": (tiff(of_type("uint16"), tile=(16, 16)), GRAY),
    "planes.tif": (tiff(np.moveaxis(of_type("uint16", COLOUR), 2, 0), planarconfig="separate", photometric="rgb"), RGB),
    "alpha16.tif": (
        tiff(np.dstack([of_type("uint16", COLOUR), of_type("uint16")]), photometric="rgb", extrasamples=["unassalpha"]),
        RGB,
    ),
    "gray_alpha16.tif": (
        tiff(
            np.dstack([of_type("uint16"), of_type("uint16", 1 - SHARES)]),
            photometric="minisblack",
            planarconfig="contig",
            extrasamples=["unassalpha"],
        ),
        GRAY,
    ),
    "alpha8.tif": (pillow(Image.fromarray(np.dstack([COLOUR_BYTES, BYTES]))), RGB),
    "palette.tif": (pillow(palette()), RGB),
    "palette.png": (pillow(palette()), RGB),
    "transparent.png": (pillow(palette(), transparency=3), RGB),
    "gray8.png": (pillow(Image.fromarray(BYTES)), GRAY),
    "gray_alpha.png": (pillow(Image.merge("LA", [Image.fromarray(BYTES)] * 2)), GRAY),
    "1bit.png": (pillow(Image.fromarray(SHARES > 0.5)), (SHARES > 0.5) * 255.0),
    "gray16.png": (lambda path: cv2.imwrite(str(path), of_type("uint16")), GRAY),
    "colour16.png": (lambda path: cv2.imwrite(str(path), of_type("uint16", COLOUR)[:, :, ::-1]), RGB),
    "alpha16.png": (
        lambda path: cv2.imwrite(str(path), np.dstack([of_type("uint16", COLOUR)[:, :, ::-1], of_type("uint16")])),
        RGB,
    ),
    "gray.bmp": (pillow(Image.fromarray(BYTES)), GRAY),
    "colour.bmp": (pillow(Image.fromarray(COLOUR_BYTES)), RGB),
}


def read_mapped(path, mode="auto"):
    return to_float_image(open_raw(path), path, high_bit_depth=mode)


def read_runtime(path, mode="auto"):
    return runtime.read_image(path, mode)


def read_training(path, mode="auto"):
    return read_image(path, high_bit_depth=mode)


READERS = (read_training, read_mapped, read_runtime)


@pytest.mark.parametrize("name", CASES)
def test_every_reader_gives_the_same_light(tmp_path, name):
    write, expected = CASES[name]
    path = tmp_path / name
    write(path)
    expected = np.repeat(expected[:, :, None], 3, axis=2) if expected.ndim == 2 else expected
    coarse = path.suffix == ".bmp" or any(word in name for word in ("8", "palette", "transparent", "gray_alpha", "t16"))
    tolerance = 0.51 if coarse else 0.07  # of values that their file rounds
    images = [reader(path) for reader in READERS]
    for reader, image in zip(READERS, images):
        assert image.dtype == np.float32
        np.testing.assert_allclose(image, expected, atol=tolerance, err_msg=reader.__name__)
        np.testing.assert_allclose(image, images[0], atol=1e-4, err_msg=reader.__name__)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", ["auto", "full_range", "minmax", "percentile"])
def test_what_is_no_number_is_refused_by_all(tmp_path, value, mode):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, value, 1]], np.float32))
    for reader in READERS:
        with pytest.raises((DatasetError, ValueError), match="NaN or infinite"):
            reader(tmp_path / "a.tif", mode)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_further_pages_are_named(tmp_path, caplog, dtype):
    tifffile.imwrite(tmp_path / "a.tif", np.full((3, 20, 30), 7, dtype), photometric="minisblack")
    for reader in READERS:
        caplog.clear()
        assert reader(tmp_path / "a.tif").shape == (20, 30, 3)
        if reader is not read_mapped:  # the same warning, once for each file
            assert "a.tif holds 3 pages: the first is read, 2 are left out" in caplog.text
    with tifffile.TiffWriter(tmp_path / "thumbnail.tif") as file:
        file.write(np.zeros((20, 30), dtype))
        file.write(np.zeros((5, 8), dtype), subfiletype=1)
    caplog.clear()
    for reader in READERS:
        assert reader(tmp_path / "thumbnail.tif").shape == (20, 30, 3)
    assert "pages" not in caplog.text


@pytest.mark.parametrize(
    "options", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"compression": "zlib"}, {"photometric": "miniswhite"}]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_every_page_is_read_as_a_file_of_its_own(tmp_path, caplog, dtype, options):
    rng = np.random.default_rng(0)
    pages = [rng.integers(0, 200, size).astype(dtype) for size in ((20, 30), (11, 7), (20, 30))]
    manner = {key: value for key, value in options.items() if key in ("bigtiff", "byteorder")}
    how = {"photometric": "minisblack", **{key: value for key, value in options.items() if key not in manner}}
    with tifffile.TiffWriter(tmp_path / "a.tif", **manner) as file:
        for number, page in enumerate(pages):
            file.write(page, **how)
            if number == 0:
                file.write(page[:4, :4], subfiletype=1, **how)  # a thumbnail is no page
    found = list(image_io.read_pages(tmp_path / "a.tif"))
    assert not caplog.records
    assert image_io.count_pages(tmp_path / "a.tif") == len(found) == 3
    for number, page in enumerate(pages):
        tifffile.imwrite(tmp_path / f"{number}.tif", page, **how)
        np.testing.assert_array_equal(found[number], image_io.read_raw(tmp_path / f"{number}.tif"))
        assert image_io.count_pages(tmp_path / f"{number}.tif") == 1


class TestCountsOfASensor:
    @pytest.mark.parametrize(
        ("dtype", "level", "target"), [("uint16", 10, 200), ("uint16", 7000, 7100), ("float32", 300.5, 300.75)]
    )
    def test_one_pixel_on_a_flat_background_is_seen_by_every_reader(self, tmp_path, dtype, level, target):
        counts = np.full((30, 40), level, dtype)
        counts[12, 20] = target
        for pixels in (counts, np.repeat(counts[:, :, None], 3, axis=2)):
            tifffile.imwrite(tmp_path / "a.tif", pixels)
            for reader in READERS:
                image = reader(tmp_path / "a.tif")
                assert image[12, 20] == pytest.approx(255)
                assert image.sum() == pytest.approx(3 * 255)

    @pytest.mark.parametrize(
        ("counts", "stretched"),
        [
            (np.linspace(7329, 7882, 600).astype(np.uint16), True),  # 14 bits of 16
            (np.append(np.linspace(7329, 7882, 5999), 16383).astype(np.uint16), True),  # with a hot pixel
            (np.arange(256, dtype=np.uint16).repeat(3), True),  # 8 bits in a file of 16
            (np.linspace(-200, 900, 600).astype(np.int16), True),  # tenths of a degree
            (np.linspace(280, 310, 600, dtype=np.float32), True),  # kelvin
            (np.linspace(0, 65535, 600).astype(np.uint16), False),
            (np.linspace(30000, 40000, 600).astype(np.uint16), False),  # faint, but more than an eighth of the range
            (np.linspace(0, 1, 600, dtype=np.float32), False),
        ],
    )
    def test_small_parts_of_a_range_are_stretched(self, tmp_path, counts, stretched):
        counts = counts.reshape(12, -1)
        tifffile.imwrite(tmp_path / "a.tif", counts)
        images = [reader(tmp_path / "a.tif") for reader in READERS]
        for reader, image in zip(READERS, images):
            np.testing.assert_allclose(image, images[0], atol=1e-3)
            if stretched:
                inner = image[1:-1, 1:-1, 0]
                assert inner.min() < 25
                assert inner.max() > 230
            else:
                assert (image == reader(tmp_path / "a.tif", "full_range")).all()

    def test_stuck_pixels_do_not_decide_and_targets_are_not_cut(self, tmp_path):
        rng = np.random.default_rng(0)
        counts = np.rint(7000 + 100 * rng.random((200, 300))).astype(np.uint16)
        counts[50:53, 60:63] = 7300  # a target
        counts[rng.integers(0, 200, 20), rng.integers(0, 300, 20)] = 16383
        tifffile.imwrite(tmp_path / "a.tif", counts)
        for reader in READERS:
            gray = reader(tmp_path / "a.tif")[:, :, 0]
            assert gray[51, 61] == 255
            assert np.median(gray) < 100  # the quantiles would have made of the background up to 255

    def test_bytes_stay_as_they_are(self, tmp_path):
        pixels = np.full((20, 30), 100, np.uint8)
        pixels[3, 4] = 103
        cv2.imwrite(str(tmp_path / "a.png"), pixels)
        for reader in READERS:
            assert (reader(tmp_path / "a.png")[:, :, 0] == pixels).all()


@pytest.mark.parametrize("tags", [(273,), (273, 279)], ids=["offsets", "offsets and counts"])
@pytest.mark.parametrize("pixels", [of_type(np.uint16), of_type(np.float32, COLOUR)], ids=["gray", "colour"])
def test_a_tiff_without_pixels_is_refused(tmp_path, pixels, tags):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels)
    data = path.read_bytes()
    for tag in tags:
        entry = data.index(struct.pack("<H", tag), 8)
        data = data[:entry] + struct.pack("<H", 65000) + data[entry + 2 :]
    path.write_bytes(data)
    for read in (read_image, open_raw):
        with pytest.raises(DatasetError, match=r"a\.tif.*TIFF"):
            read(path)
    with pytest.raises(ValueError, match=r"a TIFF without pixels|missing data offset"):
        runtime.read_image(path)
