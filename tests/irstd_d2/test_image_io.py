"""Reading images: every kind of file becomes the defined three float channels, or an error that names the file."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from irstd_d2.data import read_image, read_image_size, read_sky_mask
from irstd_d2.data.image_io import MAX_PIXELS
from irstd_d2.errors import ConfigError, DatasetError

GRAY = np.random.default_rng(0).integers(0, 256, (13, 17), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (13, 17, 3), dtype=np.uint8)  # RGB


def write(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def three(gray):
    return np.repeat(gray[:, :, None], 3, axis=2).astype(np.float32)


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "bmp"])
def test_gray_is_repeated(tmp_path, suffix):
    image = read_image(write(tmp_path / f"a.{suffix}", GRAY))
    assert image.dtype == np.float32
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, three(GRAY))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_channel_order(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", COLOUR)
    np.testing.assert_array_equal(read_image(path, "RGB"), COLOUR.astype(np.float32))
    bgr = read_image(str(path), "BGR")
    np.testing.assert_array_equal(bgr, COLOUR[:, :, ::-1].astype(np.float32))
    assert bgr.flags.c_contiguous


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_alpha_is_dropped(tmp_path, suffix, image_format):
    path = write(tmp_path / f"a.{suffix}", np.dstack([COLOUR, GRAY]))
    expected = COLOUR if image_format == "RGB" else COLOUR[:, :, ::-1]
    np.testing.assert_array_equal(read_image(path, image_format), expected.astype(np.float32))


def test_gray_with_alpha(tmp_path):
    path = tmp_path / "a.png"
    Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(GRAY[::-1].copy())]).save(path)
    np.testing.assert_array_equal(read_image(path), three(GRAY))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_palette_gives_its_colours(tmp_path, suffix):
    picture = Image.fromarray(COLOUR).quantize(12)
    picture.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), np.asarray(picture.convert("RGB"), np.float32))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_one_bit(tmp_path, suffix):
    write(tmp_path / f"a.{suffix}", GRAY > 128)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), three((GRAY > 128) * 255))


def test_jpeg_is_close_and_upright(tmp_path):
    smooth = cv2.resize(COLOUR[:2, :3], (96, 64), interpolation=cv2.INTER_LINEAR)
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth).save(path, quality=98, subsampling=0)
    assert np.abs(read_image(path) - smooth).mean() < 2
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by a quarter to view
    Image.fromarray(smooth).save(path, quality=98, subsampling=0, exif=exif)
    turned = np.rot90(smooth, k=-1)
    assert read_image_size(path) == turned.shape[:2]
    assert np.abs(read_image(path) - turned).mean() < 2


def test_gray_and_cmyk_jpeg(tmp_path):
    flat = np.full((16, 16), 77, np.uint8)
    np.testing.assert_array_equal(read_image(write(tmp_path / "g.jpg", flat)), three(flat))
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    assert read_image(tmp_path / "c.jpg").shape == (13, 17, 3)


class TestHighBitDepth:
    PIXELS = np.array([[0, 257, 1000], [30000, 65535, 514]], dtype=np.uint16)

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_full_range_divides_by_257(self, tmp_path, suffix):
        cv2.imwrite(str(tmp_path / f"a.{suffix}"), self.PIXELS)
        np.testing.assert_allclose(read_image(tmp_path / f"a.{suffix}"), three(self.PIXELS / 257), rtol=1e-6)

    def test_minmax(self, tmp_path):
        pixels = self.PIXELS[:, :2] // 16 + 100
        cv2.imwrite(str(tmp_path / "a.png"), pixels)
        spread = (pixels - pixels.min()) / float(pixels.max() - pixels.min()) * 255
        image = read_image(tmp_path / "a.png", high_bit_depth="minmax")
        np.testing.assert_allclose(image, three(spread), rtol=1e-5)
        assert (image.min(), image.max()) == (0, 255)

    def test_percentile_ignores_outliers(self, tmp_path):
        pixels = np.tile(np.arange(1000, 2000, dtype=np.uint16), (100, 1))
        pixels[0, 0] = 65535
        cv2.imwrite(str(tmp_path / "a.png"), pixels)
        image = read_image(tmp_path / "a.png", high_bit_depth="percentile")
        low, high = np.percentile(pixels, (0.1, 99.9))
        np.testing.assert_allclose(image[5, :, 0], np.clip((pixels[5] - low) / (high - low) * 255, 0, 255), atol=1e-3)
        assert image[0, 0, 0] == 255

    def test_constant_image_is_black_when_stretched(self, tmp_path):
        cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 4), 500, np.uint16))
        assert (read_image(tmp_path / "a.png", high_bit_depth="minmax") == 0).all()

    def test_sixteen_bit_colour_with_alpha(self, tmp_path):
        pixels = np.random.default_rng(2).integers(0, 65536, (5, 6, 4)).astype(np.uint16)  # BGRA
        cv2.imwrite(str(tmp_path / "a.png"), pixels)
        np.testing.assert_allclose(read_image(tmp_path / "a.png", "BGR"), pixels[:, :, :3] / 257, rtol=1e-6)

    def test_options_leave_eight_bits_alone(self, tmp_path):
        write(tmp_path / "a.png", GRAY // 2)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png", high_bit_depth="minmax"), three(GRAY // 2))

    def test_int32_full_range(self, tmp_path):
        write(tmp_path / "a.tif", np.array([[-(2**31), 0, 2**31 - 1]], dtype=np.int32))
        np.testing.assert_allclose(read_image(tmp_path / "a.tif")[0, :, 0], [0, 127.5, 255], rtol=1e-6)

    def test_float_in_unit_range(self, tmp_path):
        write(tmp_path / "a.tif", np.array([[0, 0.25, 1]], dtype=np.float32))
        np.testing.assert_allclose(read_image(tmp_path / "a.tif")[0, :, 0], [0, 63.75, 255])

    def test_float_counts_need_a_stretch(self, tmp_path):
        path = write(tmp_path / "a.tif", np.array([[10, 20, 50]], dtype=np.float32))
        with pytest.raises(DatasetError, match=r"a\.tif: pixels: floats from 10 to 50.*HIGH_BIT_DEPTH"):
            read_image(path, high_bit_depth="full_range")
        np.testing.assert_allclose(read_image(path, high_bit_depth="minmax")[0, :, 0], [0, 63.75, 255])

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("mode", ["full_range", "minmax", "percentile"])
    def test_not_finite(self, tmp_path, value, mode):
        path = write(tmp_path / "a.tif", np.array([[0, value, 1]], dtype=np.float32))
        with pytest.raises(DatasetError, match="NaN or infinite"):
            read_image(path, high_bit_depth=mode)


def test_non_ascii_path(tmp_path):
    path = write(tmp_path / "紅外-été.png", GRAY)
    np.testing.assert_array_equal(read_image(path), three(GRAY))


def test_unknown_options(tmp_path):
    path = write(tmp_path / "a.png", GRAY)
    with pytest.raises(ConfigError, match=r"INPUT\.FORMAT is 'L'"):
        read_image(path, "L")
    with pytest.raises(ConfigError, match=r"INPUT\.HIGH_BIT_DEPTH is 'log'"):
        read_image(path, high_bit_depth="log")


def test_missing_file(tmp_path):
    for reader in (read_image, read_sky_mask, read_image_size):
        with pytest.raises(DatasetError, match=r"nowhere\.png: file: cannot be opened \(No such file"):
            reader(tmp_path / "nowhere.png")


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "jpg"])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9, 0.98])
def test_truncated(tmp_path, suffix, fraction):
    path = write(tmp_path / f"a.{suffix}", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(DatasetError, match=rf"a\.{suffix}: (pixels|header): .*Fix: "):
        read_image(path)


def test_png_without_its_end(tmp_path):
    path = write(tmp_path / "a.png", GRAY)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DatasetError, match="a truncated PNG"):
        read_image(path)


def test_damaged_png(tmp_path):
    path = write(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="truncated or damaged"):
        read_image(path)


def test_not_an_image(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("<html>404</html>")
    with pytest.raises(DatasetError, match="not a readable PNG, TIFF, BMP or JPEG"):
        read_image(path)


def test_empty_files_and_other_kinds_are_called_so(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    with pytest.raises(DatasetError, match=r"a\.png: pixels: an empty file\. Fix: save it as one of these"):
        read_image(path)
    Image.new("L", (4, 4)).save(path, format="GIF")
    with pytest.raises(DatasetError, match=r"not a readable PNG, TIFF, BMP or JPEG\. Fix: save it as one of these"):
        read_image(path)


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_announcing(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")


def test_decompression_bomb(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_announcing(65535, 65535))
    for reader in (read_image, read_image_size):
        with pytest.raises(DatasetError, match="65535x65535, not 1 to"):
            reader(path)
    for suffix in ("bmp", "tif"):
        bomb = bytearray(write(tmp_path / f"a.{suffix}", GRAY).read_bytes())
        if suffix == "bmp":
            bomb[18:26] = struct.pack("<ii", 60000, 60000)
        else:
            entry = bomb.index(struct.pack("<HHI", 256, 4, 1)) if struct.pack("<HHI", 256, 4, 1) in bomb else -1
            entry = entry if entry >= 0 else bomb.index(struct.pack("<HHI", 256, 3, 1))
            bomb[entry : entry + 12] = struct.pack("<HHII", 256, 4, 1, MAX_PIXELS)
        (tmp_path / f"b.{suffix}").write_bytes(bomb)
        with pytest.raises(DatasetError, match=f"{MAX_PIXELS} pixels.*tiles"):
            read_image(tmp_path / f"b.{suffix}")


def test_more_pixels_than_bytes_can_hold(tmp_path):
    (tmp_path / "a.png").write_bytes(png_announcing(10000, 10000))
    with pytest.raises(DatasetError, match="10000x10000 pixels in 57 bytes: truncated"):
        read_image(tmp_path / "a.png")


def test_large_flat_image_is_sound(tmp_path):
    path = write(tmp_path / "a.png", np.zeros((3000, 4000), np.bool_), compress_level=9)
    assert read_image(path).shape == (3000, 4000, 3)


def test_cmyk_tiff_is_refused(tmp_path):
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "a.tif")
    with pytest.raises(DatasetError, match=r"CMYK.*convert it"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "jpg"])
def test_size_from_header(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", GRAY)
    assert read_image_size(path) == (13, 17)


def encoded(kind):
    stream = io.BytesIO()
    Image.fromarray(GRAY).save(stream, kind)
    return stream.getvalue()


ENCODED = {kind: encoded(kind) for kind in ("PNG", "TIFF", "BMP", "JPEG")}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(ENCODED)),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 2000),
)
@example(kind="TIFF", changes=[(4, 0)], cut=2000)
def test_damaged_files_give_pixels_or_a_dataset_error(tmp_path, kind, changes, cut):
    data = bytearray(ENCODED[kind])
    for position, value in changes:
        data[position % len(data)] = value
    path = tmp_path / "damaged"
    path.write_bytes(data[:cut])
    try:
        image = read_image(path)
    except DatasetError:
        return
    assert image.dtype == np.float32
    assert image.shape[2] == 3
    assert 0 <= image.min() <= image.max() <= 255


class TestSkyMask:
    LABELS = np.array([[0, 1, 1], [1, 0, 0]], dtype=np.uint8)

    def test_binary(self, tmp_path):
        np.testing.assert_array_equal(read_sky_mask(write(tmp_path / "m.png", self.LABELS * 255)), self.LABELS)

    def test_all_sky_and_none(self, tmp_path):
        for value, label in ((255, 1), (0, 0)):
            mask = read_sky_mask(write(tmp_path / "m.png", np.full((3, 4), value, np.uint8)))
            np.testing.assert_array_equal(mask, np.full((3, 4), label))

    def test_palette_holds_labels_with_ignore(self, tmp_path):
        labels = self.LABELS.copy()
        labels[0, 0] = 255
        picture = Image.frombytes("P", (3, 2), labels.tobytes())
        picture.putpalette([0, 0, 0, 128, 0, 0] + [7] * 762)
        picture.save(tmp_path / "m.png")
        mask = read_sky_mask(tmp_path / "m.png")
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, labels)

    def test_gray_labels(self, tmp_path):
        labels = self.LABELS.copy()
        labels[1, 2] = 255
        np.testing.assert_array_equal(read_sky_mask(write(tmp_path / "m.png", labels)), labels)

    def test_three_equal_channels(self, tmp_path):
        path = write(tmp_path / "m.png", np.repeat(self.LABELS[:, :, None] * 255, 3, axis=2))
        np.testing.assert_array_equal(read_sky_mask(path), self.LABELS)

    def test_other_values(self, tmp_path):
        path = write(tmp_path / "m.png", np.array([[0, 7, 128, 255]], np.uint8))
        with pytest.raises(DatasetError, match=r"m\.png: pixels: a sky mask with the values \[7, 128\]"):
            read_sky_mask(path)

    def test_sixteen_bits(self, tmp_path):
        cv2.imwrite(str(tmp_path / "m.png"), np.full((2, 2), 255, np.uint16))
        with pytest.raises(DatasetError, match="a sky mask of type uint16"):
            read_sky_mask(tmp_path / "m.png")


def test_real_masks_agree(real_densesirst):
    root = real_densesirst / "SIRSTdevkit" / "SkySeg"
    for name in ("Misc_1", "iraytek-74", "S20210422_S2_54"):
        binary = read_sky_mask(root / "BinaryMask" / f"{name}_pixels0.png")
        np.testing.assert_array_equal(binary, read_sky_mask(root / "PaletteMask" / f"{name}.png"))
        assert set(np.unique(binary)) == {0, 1}
