"""Tiled inference against the whole image, with a detector whose answer is known at every pixel."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import for_every

from irstd_d2.errors import ConfigError
from irstd_d2.inference import TiledPredictor, tile_grid
from irstd_d2.inference.tiling import crop_to_tensor


class BrightSpots:
    """Report every 3x3 spot around a pixel above 100 whose neighbours are darker: context of one pixel."""

    def __init__(self, jitter=0.0):
        self.batches, self.metadata, self.jitter, self.calls = [], [], jitter, 0

    def __call__(self, samples):
        self.batches.append(len(samples))
        outputs = []
        for sample in samples:
            self.metadata.append(sample["metadata"])
            self.calls += 1
            image = sample["image"][:1]
            peak = torch.nn.functional.max_pool2d(image, 3, 1, 1)
            y, x = torch.nonzero((image[0] == peak[0]) & (image[0] > 100), as_tuple=True)
            shift = self.jitter * (-1) ** self.calls
            boxes = torch.stack([x - 1.0 + shift, y - 1.0, x + 2.0 + shift, y + 2.0], 1)
            instances = Instances(tuple(image.shape[-2:]))
            instances.pred_boxes, instances.scores = Boxes(boxes), image[0][y, x] / 255
            instances.pred_classes = torch.zeros(len(y), dtype=torch.long)
            outputs.append({"instances": instances})
        return outputs


def image_with_spots(height, width, points, dtype=np.uint8):
    image = np.full((height, width), 20, dtype)
    rng = np.random.default_rng(0)
    for y, x in points:
        image[y, x] = rng.integers(150, 255)
    return image * (257 if dtype == np.uint16 else 1)


def as_rows(instances):
    rows = torch.cat([instances.pred_boxes.tensor, instances.scores[:, None]], 1).numpy()
    return rows[np.lexsort(rows.T)]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(2, 90), st.data())
@settings(max_examples=40, deadline=None)
def test_grid_covers_the_image_and_cores_divide_it(height, width, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    if (height / (tile - overlap)) * (width / (tile - overlap)) > 1000:
        overlap = tile // 2
    tiles = tile_grid(height, width, tile, overlap)
    area = 0
    for t in tiles:
        x1, y1, x2, y2 = t.window
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert x2 - x1 == min(tile, width)
        assert y2 - y1 == min(tile, height)
        cx1, cy1, cx2, cy2 = t.core
        assert x1 <= cx1 <= cx2 <= x2
        assert y1 <= cy1 <= cy2 <= y2
        area += (cx2 - cx1) * (cy2 - cy1)
    assert area == pytest.approx(height * width)
    xs = sorted({t.window[0] for t in tiles})
    assert all(a + tile - b >= overlap for a, b in pairwise(xs))


@for_every("jitter", [0.0, 0.4])
@for_every("dtype", [np.uint8, np.uint16])
def test_targets_on_every_seam_are_found_once(dtype, jitter):
    height, width, tile, overlap = 220, 300, 96, 16
    tiles = tile_grid(height, width, tile, overlap)
    xs = sorted({round(t.core[0]) for t in tiles} | {t.window[0] for t in tiles} | {t.window[2] for t in tiles})
    ys = sorted({round(t.core[1]) for t in tiles} | {t.window[1] for t in tiles} | {t.window[3] for t in tiles})
    grid = {(min(max(y + dy, 4), height - 5), min(max(x + dx, 4), width - 5))
            for y in ys for x in xs for dy in (-1, 0) for dx in (-1, 0)}  # fmt: skip
    points = []
    for y, x in sorted(grid):  # spots must not touch
        if all(abs(y - b) > 3 or abs(x - a) > 3 for b, a in points):
            points.append((y, x))
    image = image_with_spots(height, width, points, dtype)
    found = TiledPredictor(BrightSpots(jitter), tile=tile, overlap=overlap, batch_size=3)(image)
    assert len(found) == len(points)
    expected = np.array([(x + 0.5, y + 0.5) for y, x in points])
    distance = np.abs(found.pred_boxes.get_centers().numpy()[:, None] - expected[None]).max(-1)
    assert (distance.min(0) <= jitter + 1e-4).all()
    assert (distance.min(1) <= jitter + 1e-4).all()


@pytest.mark.slow
def test_targets_on_every_seam_of_a_large_image_are_found_once():
    """6000x6000 pixels of 16 bits in 196 tiles: a target wherever two or four tiles meet, and beside it."""
    size, tile, overlap = 6000, 512, 64
    tiles = tile_grid(size, size, tile, overlap, 16)
    seams = sorted({t.core[0] for t in tiles} | {float(t.window[0]) for t in tiles})
    places = [min(max(int(seam) + shift, 2), size - 3) for seam in seams for shift in (-1, 12)]
    places = sorted({place for place in places if all(place == p or abs(place - p) > 3 for p in places)})
    points = [(y, x) for y in places for x in places]
    image = image_with_spots(size, size, points, np.uint16)
    found = TiledPredictor(BrightSpots(0.4), tile=tile, overlap=overlap, align=16, batch_size=2)(image)
    assert len(points) > 1000
    assert len(found) == len(points)
    cells = np.floor(found.pred_boxes.get_centers().numpy() + 0.05).astype(int)
    assert {(y, x) for x, y in cells.tolist()} <= {(y, x + shift) for y, x in points for shift in (-1, 0)}


@given(st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_tiled_equals_whole_where_the_context_fits_the_overlap(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (130, 170), np.uint8)
    image[rng.random(image.shape) < 0.9] //= 4
    model = BrightSpots()
    whole = TiledPredictor(model, tile=1000, overlap=0, nms_thresh=1.0)(image)
    assert model.batches == [1]
    # An overlap of 16 leaves each core 8 pixels of context, more than the detector's one; doubles have IoU 1.
    tiled = TiledPredictor(model, tile=48, overlap=16, nms_thresh=0.99)(image)
    np.testing.assert_array_equal(as_rows(tiled), as_rows(whole))


@given(st.integers(1, 700), st.integers(20, 150), st.integers(1, 32), st.data())
@settings(max_examples=150, deadline=None)
def test_aligned_grid(length, tile, align, data):
    align = min(align, tile)
    overlap = data.draw(st.integers(0, tile - align))
    tiles = tile_grid(1, length, tile, overlap, align)
    windows = [(t.window[0], t.window[2]) for t in tiles]
    assert windows[0][0] == 0
    assert windows[-1][1] == length
    assert all(start % align == 0 and 0 < end - start <= tile for start, end in windows)
    assert all(end - start == tile for start, end in windows[:-1])
    assert all(a[1] - b[0] >= overlap and a[0] < b[0] for a, b in pairwise(windows))
    if length > tile:
        assert windows[-1][1] - windows[-1][0] > tile - align
    assert sum(t.core[2] - t.core[0] for t in tiles) == length
    for t in tiles:
        assert t.window[0] <= t.core[0] < t.core[2] <= t.window[2]


class Boxes2:
    """Report the same two overlapping boxes in every tile that holds them, and remember the sizes of tiles."""

    def __init__(self, boxes, scores):
        self.boxes, self.scores, self.sizes = torch.tensor(boxes), torch.tensor(scores), []

    def __call__(self, samples):
        outputs = []
        for sample in samples:
            self.sizes.append(tuple(sample["image"].shape[1:]))
            x, y = sample["image"][0, 0, 0], sample["image"][1, 0, 0]
            instances = Instances((sample["height"], sample["width"]))
            instances.pred_boxes = Boxes(self.boxes - torch.stack([x, y, x, y]))
            instances.scores, instances.pred_classes = self.scores.clone(), torch.tensor([0, 0, 1])
            outputs.append({"instances": instances})
        return outputs


@for_every("at", [20.0, 46.0, 48.0, 50.0])
def test_only_doubles_of_other_tiles_are_dropped(at):
    """What one tile reports together stays together, as on the whole image: that is for the model's NMS to decide."""
    boxes = [[at - 3, 10, at + 3, 16], [at - 2.5, 10, at + 3.5, 16], [at - 3, 10, at + 3, 16]]
    model = Boxes2(boxes, [0.5, 0.9, 0.7])
    ys, xs = np.mgrid[:32, :96]
    image = np.stack([xs, ys, xs], 2).astype(np.float32)
    found = TiledPredictor(model, tile=64, overlap=32)(image)
    assert len(model.sizes) == 2
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert found.pred_boxes.tensor.tolist() == [boxes[1], boxes[2], boxes[0]]
    assert set(found.get_fields()) == {"pred_boxes", "scores", "pred_classes"}


def test_a_double_with_the_higher_score_wins_whichever_tile_it_is_from():
    class Drifting(Boxes2):
        def __call__(self, samples):
            outputs = super().__call__(samples)
            for sample, output in zip(samples, outputs):
                left = sample["image"][0, 0, 0] == 0
                output["instances"].scores += 0.05 * left
                output["instances"].pred_boxes.tensor[:, ::2] += 0.3 * left
            return outputs

    ys, xs = np.mgrid[:32, :96]
    image = np.stack([xs, ys, xs], 2).astype(np.float32)
    model = Drifting([[45.0, 10, 51, 16], [10, 10, 16, 16], [80, 10, 86, 16]], [0.5, 0.9, 0.7])
    found = TiledPredictor(model, tile=64, overlap=32, batch_size=1)(image)
    assert found.scores.tolist() == pytest.approx([0.95, 0.7, 0.55])
    assert found.pred_boxes.tensor[2].tolist() == pytest.approx([45.3, 10, 51.3, 16])


def test_batches_hold_tiles_of_one_size():
    class Equal(BrightSpots):
        def __call__(self, samples):
            assert len({sample["image"].shape for sample in samples}) == 1
            return super().__call__(samples)

    model = Equal()
    rng = np.random.default_rng(0)
    image = image_with_spots(205, 333, sorted({tuple(p) for p in (rng.integers(0, 20, (40, 2)) * 10 + 5).tolist()}))
    found = TiledPredictor(model, tile=64, overlap=16, align=16)(image)
    whole = BrightSpots()([{"image": crop_to_tensor(image), "metadata": {}}])[0]["instances"]
    assert len(found) == len(whole) > 30
    assert sum(model.batches) == len(tile_grid(205, 333, 64, 16, 16))


def test_tiles_carry_the_original_metadata_and_bound_the_batch():
    model = BrightSpots()
    TiledPredictor(model, tile=64, overlap=8, batch_size=4)(np.zeros((200, 150), np.uint8), {"platform": "Air"})
    assert max(model.batches) == 4
    assert all(m == {"platform": "Air", "width": 150, "height": 200} for m in model.metadata)


def test_best_detections_come_first():
    image = np.zeros((100, 100), np.uint8)
    image[10, 10], image[50, 50], image[90, 90] = 150, 250, 200
    found = TiledPredictor(BrightSpots(), tile=64, overlap=8)(image, progress=iter)
    assert found.scores.tolist() == pytest.approx([250 / 255, 200 / 255, 150 / 255])
    assert found.image_size == (100, 100)


@for_every(
    ("crop", "expected"),
    [
        (np.full((2, 3), 7, np.uint8), 7.0),
        (np.full((2, 3), 65535, np.uint16), 255.0),
        (np.full((2, 3, 3), 1.5, np.float64), 1.5),
    ],
)
def test_crops_become_three_channels_in_byte_range(crop, expected):
    tensor = crop_to_tensor(crop)
    assert tensor.shape == (3, 2, 3)
    assert tensor.dtype == torch.float32
    assert (tensor == expected).all()


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="overlap is 64 and the tile 64"):
        TiledPredictor(BrightSpots(), tile=64, overlap=64)
    with pytest.raises(ConfigError, match="cannot start every 32 pixels; use an overlap of at most 32"):
        TiledPredictor(BrightSpots(), tile=64, overlap=40, align=32)
    with pytest.raises(ValueError, match="type int64"):
        crop_to_tensor(np.zeros((2, 2), np.int64))
    with pytest.raises(ValueError, match="4 channels"):
        crop_to_tensor(np.zeros((2, 2, 4), np.uint8))
