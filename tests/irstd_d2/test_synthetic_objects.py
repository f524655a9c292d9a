import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irstd_d2.synthetic.objects import COUNTED_FRACTION, SHAPES, draw_object, render_object
from irstd_d2.synthetic.scene import _window_fits, scatter
from irstd_d2.synthetic.textures import perspective_rows, plane, power_law_field, power_law_line, smooth_step

SIZE = (120, 140)


def one(center, psf=1.0, length=0.0, radius=0.0, angle=0.0, size=SIZE):
    return render_object(size, *center, psf, length, radius, angle)


def test_point_at_a_pixel_is_a_gaussian():
    patch = one((10.0, 20.0), psf=1.2)
    image = np.zeros(SIZE, np.float32)
    patch.add_to(image, 1.0)
    assert image[10, 20] == 1
    assert image[11, 18] == pytest.approx(math.exp(-0.5 * 5 / 1.44), rel=1e-5)
    # Counted up to sqrt(-2 ln 0.15) = 1.95 standard deviations = 2.34 pixels: two to each side.
    assert patch.box == (18, 8, 23, 13)
    assert patch.light[patch.counted].min() >= COUNTED_FRACTION > patch.light[~patch.counted].max()


def test_streak_and_spot_boxes():
    # Straight part from column 26 to 34; 1.95 pixels of blur beyond.
    assert one((10.0, 30.0), length=8.0).box == (25, 9, 36, 12)
    assert one((10.0, 30.0), length=8.0, angle=math.pi / 2).box == (29, 5, 32, 16)
    assert one((10.0, 30.0), radius=3.0).box == (26, 6, 35, 15)


@given(
    row=st.floats(-2, 121),
    column=st.floats(-2, 141),
    psf=st.floats(0.5, 2),
    length=st.floats(0, 12),
    radius=st.floats(0, 3),
    angle=st.floats(0, 3.2),
)
def test_rendering_against_the_definition(row, column, psf, length, radius, angle):
    """Distance to the nearest of many points of the straight part; nothing is lost beyond the patch."""
    image = np.zeros(SIZE, np.float32)
    one((row, column), psf, length, radius, angle).add_to(image, 1.0)
    t = np.linspace(-0.5, 0.5, 2001) * length
    for y, x in [(round(row), round(column)), (round(row) + 2, round(column) - 3), (round(row) - 6, round(column) + 1)]:
        if 0 <= y < SIZE[0] and 0 <= x < SIZE[1]:
            distance = np.hypot(row + t * math.sin(angle) - y, column + t * math.cos(angle) - x).min()
            light = math.exp(-0.5 * (max(distance - radius, 0) / psf) ** 2)
            assert image[y, x] == pytest.approx(light, abs=0.012)


@given(seed=st.integers(0, 10**6), kind=st.sampled_from(sorted(SHAPES)))
def test_boxes_stay_within_reach_and_extent(seed, kind):
    shape = SHAPES[kind]
    x1, y1, x2, y2 = draw_object(np.random.default_rng(seed), SIZE, shape, np.array([50, 70])).box
    assert max(x2 - x1, y2 - y1) <= shape.extent
    assert y1 >= 50 - shape.reach
    assert y2 - 1 <= 50 + shape.reach
    assert x1 >= 70 - shape.reach
    assert x2 - 1 <= 70 + shape.reach


def test_light_is_added_with_sign_and_clipped_at_the_border():
    image = np.full((20, 20), 0.5, np.float32)
    one((0.0, 10.0), size=image.shape).add_to(image, -0.25)
    assert image[0, 10] == 0.25
    assert image[0, 9] == pytest.approx(0.5 - 0.25 * math.exp(-0.5))
    assert image[15:].min() == 0.5


@given(data=st.data())
def test_window_fits_against_loops(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    mask = rng.random((9, 11)) < 0.8
    side, anchor = data.draw(st.sampled_from([(1, 0), (3, 1), (4, 0), (5, 2)]))

    def fits(row, column):
        top, left = row - anchor, column - anchor
        inside = top >= 0 and left >= 0 and top + side <= 9 and left + side <= 11
        return bool(inside and mask[top : top + side, left : left + side].all())

    assert _window_fits(mask, side, anchor).tolist() == [[fits(r, c) for c in range(11)] for r in range(9)]


@given(seed=st.integers(0, 10**6), count=st.integers(0, 12), separation=st.integers(1, 9))
def test_scatter_keeps_its_distance_and_its_place(seed, count, separation):
    rng = np.random.default_rng(seed)
    allowed = rng.random((30, 40)) < 0.3
    pixels = scatter(rng, allowed, count, separation)
    assert len(pixels) <= count
    assert all(allowed[r, c] for r, c in pixels)
    distances = np.abs(pixels[:, None] - pixels[None]).max(axis=2, initial=0)
    assert (distances + 99 * np.eye(len(pixels)) >= separation).all()


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
    line = power_law_line(rng, 200, slope=3)
    assert line.shape == (200,)
    assert line.std() == pytest.approx(1, abs=1e-4)
    assert np.abs(np.diff(line)).max() < 1


def test_plane_smooth_step_and_perspective():
    ramp = plane(np.random.default_rng(0), 40, 60)
    np.testing.assert_allclose(np.diff(ramp, axis=1), ramp[0, 1] - ramp[0, 0], atol=1e-5)
    np.testing.assert_allclose(np.diff(ramp, axis=0), ramp[1, 0] - ramp[0, 0], atol=1e-5)
    assert smooth_step(np.array([-1, 0, 0.5, 1, 2], np.float32)).tolist() == [0, 0, 0.5, 1, 1]
    rows = np.arange(100, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    row = perspective_rows(rows, rows, eye_height=30)
    np.testing.assert_allclose(row[:, 0], 90 * 30 / (np.arange(100) + 30), rtol=1e-4)
