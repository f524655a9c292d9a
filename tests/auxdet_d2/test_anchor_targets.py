"""Targets of anchors: drawn by hand, against plain loops over the targets, and in pieces."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from auxdet_d2.modeling import anchor_targets
from auxdet_d2.modeling.anchor_targets import (
    IGNORED,
    NEGATIVE,
    assign_by_iou,
    assign_by_region,
    central_region,
    target_levels,
)

SIZES, STRIDES = [(12, 16), (6, 8)], [4, 8]


def region_by_loop(sizes, strides, boxes, anchor_scale, center_ratio, ignore_ratio):
    """One image, target after target, cell after cell, as the Cascade RPN paper describes it."""
    assigned = [[[NEGATIVE] * w for _ in range(h)] for h, w in sizes]
    beside = [[[False] * w for _ in range(h)] for h, w in sizes]

    def cells(box, ratio, level):
        (height, width), stride, edge = sizes[level], strides[level], (1 - ratio) / 2
        x1, y1, x2, y2 = (torch.tensor(v / stride) for v in box)
        left = min(max(((1 - edge) * x1 + edge * x2).round().item(), 0), width)
        right = min(max((edge * x1 + (1 - edge) * x2).round().item(), 0), width)
        top = min(max(((1 - edge) * y1 + edge * y2).round().item(), 0), height)
        bottom = min(max((edge * y1 + (1 - edge) * y2).round().item(), 0), height)
        return [(y, x) for y in range(height) for x in range(width) if top <= y <= bottom and left <= x <= right]

    for number, box in enumerate(boxes):
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        edge = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        level = math.floor(math.log2(edge) - math.log2(anchor_scale * strides[0]) + 0.5)
        level = min(max(level, 0), len(sizes) - 1)
        for y, x in cells(box, ignore_ratio, level):
            assigned[level][y][x] = IGNORED
        for y, x in cells(box, center_ratio, level):
            assigned[level][y][x] = number
        for other in (level - 1, level + 1):
            if 0 <= other < len(sizes):
                for y, x in cells(box, ignore_ratio, other):
                    beside[other][y][x] = True
    flat = []
    for rows, ignored_rows in zip(assigned, beside):
        for row, ignored in zip(rows, ignored_rows):
            flat += [IGNORED if i else a for a, i in zip(row, ignored)]
    return flat


def iou_by_loop(anchors, boxes, positive_iou, negative_iou, low_quality_iou):
    def iou(a, b):
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        shared = max(width, 0) * max(height, 0)
        return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)

    table = [[iou(anchor, box) for anchor in anchors] for box in boxes]
    assigned = []
    for a in range(len(anchors)):
        column = [row[a] for row in table]
        best = max(range(len(boxes)), key=lambda m: column[m])
        high = column[best] >= positive_iou
        assigned.append(best if high else NEGATIVE if column[best] < negative_iou else IGNORED)
    for number, row in enumerate(table):
        if max(row) >= low_quality_iou:
            for a, value in enumerate(row):
                if value == max(row):
                    assigned[a] = number
    return assigned


def coordinates(limit):
    # Eighths are exact in binary, so that loops in double precision and tensors in single round alike.
    return st.integers(0, limit * 8).map(lambda v: v / 8)


def boxes_within(limit_x, limit_y, largest=60):
    corner = st.tuples(coordinates(limit_x), coordinates(limit_y), coordinates(largest), coordinates(largest))
    return corner.map(lambda v: [v[0], v[1], v[0] + max(v[2], 0.125), v[1] + max(v[3], 0.125)])


def padded(images):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(b).reshape(-1, 4) for b in images], batch_first=True)


def test_a_small_target_drawn():
    # Edge 16 at stride 4: cells 4 to 8; central fifth: cells 6 (5.6 to 6.4, rounded); half: cells 5 to 7.
    boxes = torch.tensor([[[16.0, 16, 32, 32]]])
    fine, coarse = assign_by_region(SIZES, STRIDES, boxes, anchor_scale=8.0)[0].split([192, 48])
    drawn = """
        ................
        ................
        ................
        ................
        ................
        .....iii........
        .....iTi........
        .....iii........
        ................
        ................
        ................
        ................
    """
    letters = {NEGATIVE: ".", IGNORED: "i", 0: "T"}
    picture = ["".join(letters[v] for v in row) for row in fine.view(12, 16).tolist()]
    assert picture == drawn.split()
    # On the level beside: 2.5 to 3.5, rounded half to even.
    picture = ["".join(letters[v] for v in row) for row in coarse.view(6, 8).tolist()]
    assert picture == ["........", "........", "..iii...", "..iii...", "..iii...", "........"]


def test_a_later_target_overwrites_and_a_neighbouring_level_ignores():
    first, second = [16.0, 16, 32, 32], [20.0, 16, 36, 32]
    both = assign_by_region(SIZES, STRIDES, torch.tensor([[first, second]]), anchor_scale=8.0)[0][:192].view(12, 16)
    assert both[6, 5:9].tolist() == [IGNORED, IGNORED, 1, IGNORED]  # the first one's centre, column 6, is gone
    large = [0.0, 0, 96, 96]
    with_large = assign_by_region(SIZES, STRIDES, torch.tensor([[first, large]]), anchor_scale=8.0)[0][:192].view(
        12, 16
    )
    assert with_large[6, 6] == IGNORED


@settings(max_examples=60, deadline=None)
@given(
    images=st.lists(st.lists(boxes_within(70, 50), max_size=5), min_size=1, max_size=3),
    scale=st.sampled_from([1.0, 4.0, 8.0]),
    ratios=st.sampled_from([(0.2, 0.5), (0.5, 0.5), (0.25, 1.0)]),
)
def test_regions_equal_the_loop(images, scale, ratios):
    sizes, strides = [*SIZES, (3, 4)], [*STRIDES, 16]
    options = {"anchor_scale": scale, "center_ratio": ratios[0], "ignore_ratio": ratios[1]}
    found = assign_by_region(sizes, strides, padded(images), **options)
    assert found.dtype == torch.int64
    assert found.tolist() == [region_by_loop(sizes, strides, boxes, **options) for boxes in images]


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(boxes_within(30, 30, 12), min_size=1, max_size=6),
    anchors=st.lists(boxes_within(30, 30, 12), min_size=1, max_size=30),
    thresholds=st.sampled_from([(0.7, 0.7, 0.3), (0.5, 0.3, 0.0), (0.6, 0.4, 0.2)]),
)
def test_overlaps_equal_the_loop(boxes, anchors, thresholds):
    names = ("positive_iou", "negative_iou", "low_quality_iou")
    options = dict(zip(names, thresholds))
    # Integers keep the ratios equal in both precisions where two anchors tie.
    boxes = [[8 * v for v in box] for box in boxes]
    anchors = [[8 * v for v in anchor] for anchor in anchors]
    found = assign_by_iou(torch.tensor([anchors]), torch.tensor([boxes]), **options)[0].tolist()
    assert found == iou_by_loop(anchors, boxes, **options)


def test_overlaps_drawn():
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 0, 0]]])
    anchors = torch.tensor([[[0.0, 0, 10, 8], [0, 0, 10, 10], [20, 0, 30, 4], [20, 0, 30, 3], [50, 50, 60, 60]]])
    found = assign_by_iou(anchors, boxes)[0].tolist()
    assert found == [0, 0, 1, NEGATIVE, NEGATIVE]  # 0.8, 1, best of its target with 0.4, 0.3, none
    between = assign_by_iou(anchors, boxes, positive_iou=0.9, negative_iou=0.35)[0].tolist()
    assert between == [IGNORED, 0, 1, NEGATIVE, NEGATIVE]


@pytest.mark.parametrize("boxes", [torch.zeros(2, 0, 4), torch.zeros(2, 3, 4), torch.tensor([[[5.0, 5, 5, 9]]] * 2)])
def test_images_without_targets_are_background(boxes):
    anchors = torch.tensor([0.0, 0, 8, 8]).expand(2, 7, 4)
    assert (assign_by_iou(anchors, boxes) == NEGATIVE).all()
    found = assign_by_region(SIZES, STRIDES, boxes, anchor_scale=8.0)
    assert found.shape == (2, 240)
    assert (found == NEGATIVE).all()


def test_pieces_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(3, 40, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + torch.rand(3, 40, 2, generator=generator) * 20], dim=-1)
    anchors = torch.cat([corner, corner + 9], dim=-1).repeat(1, 3, 1)
    whole = assign_by_region(SIZES, STRIDES, boxes, anchor_scale=2.0), assign_by_iou(anchors, boxes)
    for pairs in (1, 1000, 5000):
        monkeypatch.setattr(anchor_targets, "_PAIRS_AT_ONCE", pairs)
        assert torch.equal(assign_by_region(SIZES, STRIDES, boxes, anchor_scale=2.0), whole[0])
        assert torch.equal(assign_by_iou(anchors, boxes), whole[1])


def test_levels_by_size():
    edges = torch.tensor([1.0, 22, 23, 45, 46, 91, 500])
    boxes = torch.stack([edges * 0, edges * 0, edges, edges], dim=1)
    # Bounds of level l lie at 32 * 2 ** (l - 0.5).
    assert target_levels(boxes, 3, 32.0).tolist() == [0, 0, 0, 0, 1, 2, 2]
    assert target_levels(torch.zeros(1, 4), 3, 32.0).tolist() == [0]


def test_a_region_stays_on_the_grid():
    boxes = torch.tensor([[-40.0, -40, 8, 8], [50, 40, 200, 200]])
    assert central_region(boxes, 0.5, 4.0, (12, 16)).tolist() == [[0, 0, 0, 0], [16, 12, 16, 12]]


rectangles = st.lists(st.tuples(*(st.integers(0, 20) for _ in range(4)), st.integers(0, 9)), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(rectangles, min_size=1, max_size=3), st.booleans(), st.integers(1, 17), st.integers(1, 17))
def test_painting_equals_a_loop_over_cells(images, compact, height, width):
    longest = max(map(len, images))
    regions, codes = torch.zeros(len(images), longest, 4), torch.zeros(len(images), longest, dtype=torch.int32)
    expected = torch.zeros(len(images), height, width, dtype=torch.int32)
    for number, image in enumerate(images):
        for place, (x1, y1, x2, y2, code) in enumerate(image):
            regions[number, place] = torch.tensor([x1, y1, x2, y2])
            codes[number, place] = code
            for y in range(y1, min(y2 + 1, height)):
                for x in range(x1, min(x2 + 1, width)):
                    expected[number, y, x] = max(int(expected[number, y, x]), code)
    painted = anchor_targets.highest_covering(regions, codes, (height, width), compact)
    assert torch.equal(painted, expected)


def test_regions_need_no_pairs_of_target_and_cell():
    # 3,000 targets on a million cells: pairs would be three thousand million.
    corner = torch.arange(3000.0)[:, None] % 4000
    boxes = torch.cat([corner, corner, corner + 8, corner + 8], dim=1)[None]
    assigned = assign_by_region([(1024, 1024)], [4], boxes, anchor_scale=2.0)
    assert assigned.max() == 2999
