import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irstd_d2.errors import ConfigError
from irstd_d2.synthetic.blobs import COUNTED_FRACTION, Blobs, BlobShape, add_light, render
from irstd_d2.synthetic.config import OMNI_SHAPES
from irstd_d2.synthetic.fields import (
    perspective_rows,
    plane,
    power_law_field,
    power_law_line,
    scatter,
    smooth_step,
    window_fits,
)


def one(centre, psf=1.0, length=0.0, radius=0.0, angle=0.0):
    def column(value):
        return np.array([value], np.float32)

    return Blobs(np.array([centre], np.float32), column(psf), column(length), column(radius), column(angle))


def slow_light(blobs, k, row, column):
    """Light of object k at a pixel, by the definition: distance to the nearest of many points of its straight part."""
    t = np.linspace(-0.5, 0.5, 2001) * blobs.length[k]
    rows = blobs.centre[k, 0] + t * math.sin(blobs.angle[k])
    columns = blobs.centre[k, 1] + t * math.cos(blobs.angle[k])
    distance = np.sqrt((rows - row) ** 2 + (columns - column) ** 2).min()
    return math.exp(-0.5 * (max(distance - blobs.radius[k], 0) / blobs.psf[k]) ** 2)


def test_point_at_a_pixel_is_a_gaussian():
    patches = render(one((10.0, 20.0), psf=1.2))
    half = patches.light.shape[1] // 2
    assert tuple(patches.corner[0]) == (10 - half, 20 - half)
    assert patches.light[0, half, half] == 1
    assert patches.light[0, half + 1, half - 2] == pytest.approx(math.exp(-0.5 * 5 / 1.44), rel=1e-5)
    # Counted up to sqrt(-2 ln 0.15) = 1.95 standard deviations = 2.34 pixels: two to each side.
    assert patches.boxes().tolist() == [[18, 8, 23, 13]]


def test_streak_and_spot_boxes():
    # Straight part from column 26 to 34; 1.95 pixels of blur beyond.
    assert render(one((10.0, 30.0), length=8.0)).boxes().tolist() == [[25, 9, 36, 12]]
    assert render(one((10.0, 30.0), length=8.0, angle=math.pi / 2)).boxes().tolist() == [[29, 5, 32, 16]]
    assert render(one((10.0, 30.0), radius=3.0)).boxes().tolist() == [[26, 6, 35, 15]]


@given(seed=st.integers(0, 10**6))
def test_rendering_against_the_definition(seed):
    rng = np.random.default_rng(seed)
    blobs = Blobs.sample(rng, list(OMNI_SHAPES), np.array([[40, 40], [60, 80], [-3, 5]]))
    patches = render(blobs)
    for k in range(3):
        reference = np.array(
            [
                [
                    slow_light(blobs, k, r, c)
                    for c in range(patches.corner[k, 1], patches.corner[k, 1] + patches.light.shape[2], 3)
                ]
                for r in range(patches.corner[k, 0], patches.corner[k, 0] + patches.light.shape[1], 3)
            ]
        )
        np.testing.assert_allclose(patches.light[k, ::3, ::3], reference, atol=1e-3)


@given(seed=st.integers(0, 10**6), index=st.integers(0, 2))
def test_boxes_are_tight_and_within_reach_and_extent(seed, index):
    shape = OMNI_SHAPES[index]
    patches = render(Blobs.sample(np.random.default_rng(seed), [shape], np.array([[50, 70]])))
    mask = np.zeros((120, 140), bool)
    for place, part in patches.windows(120, 140):
        mask[place] = patches.counted[0][part]
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert patches.boxes().tolist() == [box]
    assert max(box[2] - box[0], box[3] - box[1]) <= shape.extent
    assert rows.min() >= 50 - shape.reach
    assert rows.max() <= 50 + shape.reach
    assert columns.min() >= 70 - shape.reach
    assert columns.max() <= 70 + shape.reach


def test_light_is_added_with_sign_and_clipped_at_the_border():
    image = np.full((20, 20), 0.5, np.float32)
    add_light(image, render(one((0.0, 10.0))), np.array([-0.25], np.float32))
    assert image[0, 10] == 0.25
    assert image[0, 9] == pytest.approx(0.5 - 0.25 * math.exp(-0.5))
    assert image[15:].min() == 0.5


def test_no_object():
    patches = render(Blobs.sample(np.random.default_rng(0), [], np.zeros((0, 2), np.intp)))
    assert patches.boxes().shape == (0, 4)


@pytest.mark.parametrize("bad", [{"psf": (0.3, 1.0)}, {"length": (2.0, 1.0)}, {"radius": (-1.0, 1.0)}])
def test_bad_shape(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        BlobShape("point", **bad)


def test_counted_fraction_bounds_the_light():
    patches = render(Blobs.sample(np.random.default_rng(1), list(OMNI_SHAPES), np.full((3, 2), 30)))
    assert patches.light[patches.counted].min() >= COUNTED_FRACTION
    assert patches.light[~patches.counted].max() < COUNTED_FRACTION


@given(data=st.data())
def test_window_fits_against_loops(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    mask = rng.random((9, 11)) < 0.8
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    expected = [
        [mask[r : r + height, c : c + width].all() for c in range(11 - width + 1)] for r in range(9 - height + 1)
    ]
    assert window_fits(mask, height, width).tolist() == expected


@given(seed=st.integers(0, 10**6), count=st.integers(0, 12), separation=st.integers(1, 9))
def test_scatter_keeps_its_distance_and_its_place(seed, count, separation):
    rng = np.random.default_rng(seed)
    allowed = rng.random((30, 40)) < 0.3
    pixels = scatter(rng, allowed, count, separation)
    assert pixels.shape[1] == 2
    assert len(pixels) <= count
    assert all(allowed[r, c] for r, c in pixels)
    for i in range(len(pixels)):
        for j in range(i):
            assert np.abs(pixels[i] - pixels[j]).max() >= separation


def test_scatter_without_room():
    rng = np.random.default_rng(0)
    assert scatter(rng, np.zeros((5, 5), bool), 3, 1).shape == (0, 2)
    assert len(scatter(rng, np.ones((5, 5), bool), 3, 9)) == 1
    assert len(scatter(rng, np.ones((64, 64), bool), 6, 8)) == 6


def test_power_law_field_has_its_slope_and_direction():
    rng = np.random.default_rng(0)
    spectra = [np.abs(np.fft.fft2(power_law_field(rng, 128, 128, slope=3, outer=1e6))) ** 2 for _ in range(20)]
    power = np.mean(spectra, axis=0)[0]  # along the rows
    slope = np.polyfit(np.log(np.arange(2, 17)), np.log(power[2:17]), 1)[0]
    assert slope == pytest.approx(-3, abs=0.25)
    field = power_law_field(rng, 96, 96, slope=2.5, stretch=4)
    assert field.mean() == pytest.approx(0, abs=1e-4)
    assert field.std() == pytest.approx(1, abs=1e-4)
    assert np.abs(np.diff(field, axis=1)).mean() < 0.6 * np.abs(np.diff(field, axis=0)).mean()


def test_power_law_line():
    line = power_law_line(np.random.default_rng(0), 200, slope=3)
    assert line.shape == (200,)
    assert line.std() == pytest.approx(1, abs=1e-4)
    assert np.abs(np.diff(line)).max() < 1


def test_plane_and_smooth_step():
    ramp = plane(np.random.default_rng(0), 40, 60)
    np.testing.assert_allclose(np.diff(ramp, axis=1), ramp[0, 1] - ramp[0, 0], atol=1e-5)
    np.testing.assert_allclose(np.diff(ramp, axis=0), ramp[1, 0] - ramp[0, 0], atol=1e-5)
    assert smooth_step(np.array([-1, 0, 0.5, 1, 2], np.float32)).tolist() == [0, 0, 0.5, 1, 1]


def test_perspective_crowds_rows_at_the_horizon():
    texture = np.arange(100, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    depth = np.arange(100, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    row = perspective_rows(texture, depth, eye_height=30)
    np.testing.assert_allclose(row[:, 0], 90 * 30 / (np.arange(100) + 30), rtol=1e-4)
    steps = -np.diff(row[:, 0])
    assert (np.diff(steps) < 0).all()
