"""Statistics of a set: exact values against plain references."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irstd_d2.data.plots import draw_domains, draw_targets, write_plots
from irstd_d2.data.statistics import (
    DatasetStatistics,
    ImageStatistics,
    histogram_rows,
    local_contrast,
    measure_image,
    relative_brightness,
)


def plain_contrast(gray, box):
    """Pixel by pixel: mean inside over mean of the box enlarged by its own size, without the box."""
    height, width = gray.shape
    x1, y1 = np.clip(np.floor(box[:2]), 0, (width, height)).astype(int)
    x2, y2 = np.clip(np.ceil(box[2:]), 0, (width, height)).astype(int)
    w, h = x2 - x1, y2 - y1
    inner, ring = [], []
    for y in range(max(y1 - h, 0), min(y2 + h, height)):
        for x in range(max(x1 - w, 0), min(x2 + w, width)):
            (inner if x1 <= x < x2 and y1 <= y < y2 else ring).append(float(gray[y, x]))
    return np.mean(inner) / np.mean(ring) if ring else 1.0


def test_contrast_of_known_values():
    gray = np.full((20, 20), 10, np.float32)
    gray[5:8, 5:8] = 30
    gray[15, 15] = 5
    np.testing.assert_allclose(local_contrast(gray, np.array([[5, 5, 8, 8], [15, 15, 16, 16]])), [3, 0.5], rtol=1e-6)


def test_contrast_counts_neighbours_as_background():
    gray = np.full((20, 20), 10, np.float32)
    gray[5:8, 5:8] = gray[5:8, 9:12] = 30
    alone, crowded = 3.0, 30 / ((10 * (72 - 6) + 30 * 6) / 72)
    contrast = local_contrast(gray, np.array([[5, 5, 8, 8]], float))[0]
    assert contrast == pytest.approx(crowded)
    assert contrast < alone


def test_contrast_without_surroundings_or_light():
    assert local_contrast(np.ones((4, 4), np.float32), np.array([[0, 0, 4, 4]], float)).tolist() == [1]
    dark = local_contrast(np.zeros((9, 9), np.float32), np.array([[3, 3, 5, 5]], float))
    assert dark.tolist() == [1]
    assert local_contrast(np.zeros((9, 9), np.float32), np.zeros((0, 4))).shape == (0,)


@settings(deadline=None)
@given(
    seed=st.integers(0, 99),
    corner=st.tuples(st.floats(0, 20), st.floats(0, 14)),
    size=st.tuples(st.floats(0.5, 12), st.floats(0.5, 12)),
)
def test_contrast_equals_plain_reference(seed, corner, size):
    gray = np.random.default_rng(seed).uniform(1, 255, (16, 22)).astype(np.float32)
    box = np.array([*corner, min(corner[0] + size[0], 22), min(corner[1] + size[1], 16)])
    np.testing.assert_allclose(local_contrast(gray, box[None]), [plain_contrast(gray, box)], rtol=1e-5)


def test_brightness():
    gray = np.zeros((9, 9), np.float32)
    gray[1, 1], gray[5, 5] = 200, 50
    boxes = np.array([[0, 0, 3, 3], [4, 4, 7, 7], [7, 7, 9, 9]], float)
    assert relative_brightness(gray, boxes).tolist() == [1, 0.25, 0]
    assert relative_brightness(np.zeros((9, 9), np.float32), boxes).tolist() == [0, 0, 0]


def test_histogram():
    rows = histogram_rows(np.array([0.5, 1, 1.9, 2, 99]), (0, 1, 2, np.inf))
    assert rows == [("0 to 1", 1, 0.2), ("1 to 2", 2, 0.4), (">= 2", 2, 0.4)]
    assert histogram_rows(np.zeros(0), (0, 1)) == [("0 to 1", 0, 0.0)]


def image(name, boxes=(), width=64, height=48, platform="Air", band="LWIR"):
    boxes = np.array(boxes, float).reshape(-1, 4)
    count = len(boxes)
    return ImageStatistics(name, width, height, platform, band, boxes, np.ones(count), np.ones(count), "gray, 8 bits")


@pytest.fixture
def statistics():
    images = [
        image("a", [(0, 0, 3, 3), (5, 5, 8, 8)]),
        image("b", [(0, 0, 4.2, 2.9)], 128, 96, "Land", "LWIR"),
        image("c", (), 64, 48, "Air", "LWIR"),
        image("d", [(1, 1, 4, 4)], 32, 32, "Space", "NIR"),
    ]
    return DatasetStatistics(images, {"train": ["a", "b", "lost"], "val": ["c"]})


def test_tables(statistics):
    assert statistics.num_targets == 4
    assert statistics.sizes() == {(3, 3): 3, (4, 3): 1}
    assert statistics.split_rows() == [("train", 2, 3, 0), ("val", 1, 0, 1), ("all", 4, 4, 1)]
    assert statistics.domain_rows() == [
        ("Air", "LWIR", 2, 2, "64x48", "64x48 (2)"),
        ("Land", "LWIR", 1, 1, "128x96", "128x96 (1)"),
        ("Space", "NIR", 1, 1, "32x32", "32x32 (1)"),
    ]
    assert statistics.pixel_kinds() == {"gray, 8 bits": 4}


def test_sizes_of_one_domain_are_ordered_by_area():
    statistics = DatasetStatistics([image("a", (), 100, 10), image("b", (), 20, 20), image("c", (), 20, 20)])
    assert statistics.domain_rows() == [("Air", "LWIR", 3, 0, "20x20 to 100x10", "20x20 (2)")]


def test_measure_image():
    pixels = np.full((8, 10, 3), 10, np.float32)
    pixels[2:4, 2:4] = 40
    sample = {"image_id": 5, "annotations": [{"bbox": [2, 2, 4, 4]}], "metadata": {"platform": None, "band": "NIR"}}
    measured = measure_image(sample, pixels, "gray, 8 bits")
    assert (measured.name, measured.width, measured.height) == ("5", 10, 8)
    assert (measured.platform, measured.band) == ("unknown", "NIR")
    np.testing.assert_allclose(measured.contrast, [4], rtol=1e-6)
    assert measured.brightness.tolist() == [1]


def test_plots_show_the_numbers(statistics, tmp_path):
    written = write_plots(statistics, tmp_path / "new" / "folder", "my set")
    assert [path.name for path in written] == ["targets.png", "domains.png"]
    assert all(path.stat().st_size > 10_000 for path in written)
    sizes, contrast, brightness = draw_targets(statistics, "my set").axes
    offsets = sizes.collections[0].get_offsets().tolist()
    assert sorted(offsets) == [[3, 3], [4, 3]]
    assert sizes.texts[0].get_text() == "3x3: 3 targets"
    assert sum(bar.get_height() for bar in contrast.patches) == pytest.approx(1)
    assert "100% the brightest" in brightness.get_title(loc="left")
    by_platform, joint, resolution = draw_domains(statistics, "my set").axes
    assert [text.get_text() for text in by_platform.get_legend().get_texts()] == ["Air", "Land", "Space"]
    assert [text.get_text() for text in joint.texts] == ["2\n50.0%", "0", "1\n25.0%", "0", "0", "1\n25.0%"]
    assert sum(len(dots.get_offsets()) for dots in resolution.collections) == 3


def test_many_platforms_and_huge_targets_plot():
    images = [image(f"{i}", [(0, 0, 40, 50)], platform=f"P{i}") for i in range(9)]
    sizes = draw_targets(DatasetStatistics(images), "x").axes[0]
    assert sizes.collections[0].get_offsets().tolist() == [[20, 20]]
    assert len(draw_domains(DatasetStatistics(images), "x").axes[0].get_legend().get_texts()) == 9


def test_no_targets_no_plots(tmp_path):
    assert write_plots(DatasetStatistics([image("a")]), tmp_path, "empty") == []
