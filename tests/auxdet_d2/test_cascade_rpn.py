"""Cascade RPN part by part: grid, offsets, stages, sampling, losses by hand, proposals, any number of stages."""

import math
from functools import partial

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import for_every
from torch.nn import functional as F

from auxdet_d2.modeling import CascadeRPN
from auxdet_d2.modeling.anchor_targets import OverlapAssigner, RegionAssigner, first_n, grid_anchors, sample
from auxdet_d2.modeling.box_transform import BoundedBox2BoxTransform
from auxdet_d2.modeling.cascade_rpn import (
    AdaptiveConv,
    CascadeRPNStage,
    StageSpec,
    adaptive_conv,
    adaptive_offsets,
    paired_iou,
)
from irstd_d2 import get_config
from irstd_d2.errors import ConfigError

CPU = torch.device("cpu")
SIZES, STRIDES, CHANNELS = [(8, 12), (4, 6)], [4, 8], 6


def build(**options):
    torch.manual_seed(1)
    options = {"in_features": ["p2", "p3"], "channels": CHANNELS, "strides": STRIDES, "anchor_scale": 2.0, **options}
    model = CascadeRPN(**options)
    for stage in model.stages:
        # Published initial weights are so small that nothing would move.
        for p in stage.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return model


def inputs(num_images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(num_images, CHANNELS, h, w) for h, w in SIZES]
    features = {name: torch.rand(s, generator=generator) for name, s in zip(("p2", "p3"), shapes)}
    return ImageList(torch.zeros(num_images, 3, 32, 48), [(32, 48), (28, 40)][:num_images]), features


def targets(*images):
    result = []
    for boxes in images:
        instances = Instances((32, 48))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        result.append(instances)
    return result


def test_anchors_sit_on_cells():
    anchors = grid_anchors((2, 3), 4, 8.0, CPU)
    assert anchors.tolist() == [
        *([-4, -4, 4, 4], [0, -4, 8, 4], [4, -4, 12, 4]),
        *([-4, 0, 4, 8], [0, 0, 8, 8], [4, 0, 12, 8]),
    ]


def test_offsets_spread_the_taps_over_the_anchor():
    # Each tap lands on an evenly spaced point of the box: its corners, the middles of its sides, its centre.
    size, stride = (3, 4), 4
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 12, 2, generator=generator) * 12
    boxes = torch.cat([corner, corner + 1 + 9 * torch.rand(2, 12, 2, generator=generator)], dim=-1)
    offsets = adaptive_offsets(boxes, size, stride)
    assert offsets.shape == (2, 18, 3, 4)
    for image, row, column in ((0, 0, 0), (0, 2, 1), (1, 1, 3)):
        x1, y1, x2, y2 = (boxes[image, row * 4 + column] / stride).tolist()
        expected = []
        for tap_y, y in ((-1, y1), (0, (y1 + y2) / 2), (1, y2)):
            for tap_x, x in ((-1, x1), (0, (x1 + x2) / 2), (1, x2)):
                # The operator adds to an offset the tap's ordinary place.
                expected += [y - (row + tap_y), x - (column + tap_x)]
        torch.testing.assert_close(offsets[image, :, row, column], torch.tensor(expected), rtol=0, atol=1e-5)


def test_offsets_of_known_anchors():
    # An anchor of two strides around its own cell needs none; one of four strides doubles the reach of the taps.
    same = grid_anchors((3, 4), 4, 8.0, CPU)[None]
    assert (adaptive_offsets(same, (3, 4), 4) == 0).all()
    doubled = adaptive_offsets(grid_anchors((3, 4), 4, 16.0, CPU)[None], (3, 4), 4)
    y = [-1, -1, -1, 0, 0, 0, 1, 1, 1]
    x = [-1, 0, 1] * 3
    assert doubled[0, :, 1, 2].tolist() == [v for pair in zip(y, x) for v in pair]
    moved = adaptive_offsets(same + torch.tensor([4.0, 8, 4, 8]), (3, 4), 4)
    assert moved[0, :, 0, 0].tolist() == [2.0, 1.0] * 9


@for_every("value", [math.nan, math.inf, -math.inf])
def test_offsets_are_numbers_whatever_the_boxes(value):
    boxes = grid_anchors((2, 2), 4, 8.0, CPU)[None].clone()
    boxes[0, 0, 2] = value
    assert torch.isfinite(adaptive_offsets(boxes, (2, 2), 4)).all()


@for_every(
    "build", [AdaptiveConv, partial(adaptive_conv, adaptation="offset"), partial(adaptive_conv, adaptation="dilation")]
)
def test_adaptive_convolutions_start_from_small_random_weights(build):
    conv = build(40)
    assert conv.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert abs(conv.weight.mean().item()) < 1e-3
    assert getattr(conv, "bias", None) is None or not conv.bias.any()


def test_offset_convolution_without_offsets_is_an_ordinary_one():
    conv = adaptive_conv(CHANNELS, "offset")
    x = torch.rand(2, CHANNELS, 5, 7)
    torch.testing.assert_close(conv(x, torch.zeros(2, 18, 5, 7)), F.conv2d(x, conv.weight, padding=1))
    with pytest.raises(ValueError, match="offsets"):
        conv(x)


def test_offset_convolution_reads_where_the_anchor_is():
    conv = adaptive_conv(1, "offset")
    torch.nn.init.ones_(conv.weight)
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 6, 6] = 1
    anchors = torch.tensor([0.0, 0, 8, 8]).repeat(1, 64, 1)
    anchors[0, 0] = torch.tensor([20.0, 20, 28, 28])  # cells 5 to 7, far from cell (0, 0)
    y = conv(x, adaptive_offsets(anchors, (8, 8), 4))
    assert y[0, 0, 0, 0] == 1
    assert y[0, 0].count_nonzero() == 1


@for_every("dtype", [torch.bfloat16, torch.float16])
def test_offset_convolution_keeps_the_offsets_precise(dtype):
    # 200.3 has no neighbour closer than 0.5 in bfloat16; the tap would read half a cell away.
    conv = adaptive_conv(CHANNELS, "offset")
    x = torch.rand(1, CHANNELS, 1, 220)
    offsets = torch.zeros(1, 18, 1, 220)
    offsets[:, 1::2, :, 0] = 200.3
    expected = conv(x, offsets)[..., 0]
    with torch.autocast("cpu", dtype=dtype):
        found = conv(x.to(dtype), offsets)[..., 0]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=1e-3)


def test_dilation():
    conv = adaptive_conv(CHANNELS, "dilation", dilation=3)
    x = torch.rand(1, CHANNELS, 9, 9)
    torch.testing.assert_close(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=3, dilation=3))


@for_every("adaptation", ["dilation", "offset"])
def test_a_stage_compiles_without_a_break(adaptation):
    stage = CascadeRPNStage(CHANNELS, adaptation=adaptation, dilation=3, with_logits=True)
    offsets = torch.rand(1, 18, 5, 6) if adaptation == "offset" else None
    x = torch.rand(1, CHANNELS, 5, 6)
    compiled = torch.compile(stage, backend="eager", fullgraph=True)
    for found, expected in zip(compiled(x, offsets), stage(x, offsets)):
        torch.testing.assert_close(found, expected)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from([-1, 0, 1]), min_size=20, max_size=20), min_size=1, max_size=3),
    batch_size=st.integers(1, 25),
    fraction=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_samples_are_drawn_from_their_own_and_filled_up(rows, batch_size, fraction):
    labels = torch.tensor(rows)
    positive, negative = sample(labels == 1, labels == 0, batch_size, fraction)
    assert not (positive & (labels != 1)).any()
    assert not (negative & (labels != 0)).any()
    for label, p, n in zip(labels, positive, negative):
        count = min(int((label == 1).sum()), int(batch_size * fraction))
        assert int(p.sum()) == count
        assert int(n.sum()) == min(int((label == 0).sum()), batch_size - count)


def test_samples_are_random_and_even():
    positive = torch.ones(1, 10, dtype=torch.bool)
    drawn = torch.stack([sample(positive, ~positive, 5, 0.4)[0][0] for _ in range(2000)]).float().mean(0)
    torch.testing.assert_close(drawn, torch.full((10,), 0.2), rtol=0, atol=0.05)


def test_first_n():
    candidates = torch.tensor([[True, False, True, True], [False, True, False, False]])
    assert first_n(candidates, torch.tensor([2, 3])).int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0]]


def test_paired_iou_by_hand():
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 2, 2], [0, 0, 0, 0]])
    b = torch.tensor([[2.0, 0, 6, 4], [5, 5, 6, 6], [0, 0, 0, 0]])
    torch.testing.assert_close(paired_iou(a, b), torch.tensor([1 / 3, 0, 0]))


def test_size_deltas_are_bounded_on_both_sides():
    transform = BoundedBox2BoxTransform((10.0, 10.0, 5.0, 5.0))
    box = torch.tensor([[0.0, 0, 16, 16]])
    limit = 1000 / 16
    wide, narrow = (transform.apply_deltas(torch.tensor([[0.0, 0, d, d]]), box)[0] for d in (1e4, -1e4))
    torch.testing.assert_close(wide[2:] - wide[:2], torch.full((2,), 16 * limit))
    torch.testing.assert_close(narrow[2:] - narrow[:2], torch.full((2,), 16 / limit), rtol=1e-4, atol=1e-5)
    # Two classes side by side, and within the bounds as detectron2's.
    deltas = torch.tensor([[1.0, -2, 0.5, 1, 3, 1, -1, 0.2]])
    torch.testing.assert_close(
        transform.apply_deltas(deltas, box), super(type(transform), transform).apply_deltas(deltas, box)
    )


def test_losses_by_hand():
    # Nothing is learned yet: no delta moves a box, no logit leaves zero.
    stds = (0.1, 0.1, 0.5, 0.5)
    stages = [
        StageSpec("dilation", RegionAssigner(), stds),
        StageSpec("offset", OverlapAssigner(batch_size=16), stds),
    ]
    model = build(stages=stages).train()
    for stage in model.stages:
        for layer in (stage.deltas, stage.logits):
            if layer is not None:
                torch.nn.init.zeros_(layer.weight)
                torch.nn.init.zeros_(layer.bias)
    images, features = inputs(1)
    # The anchor of cell (3, 5) of the first level exactly, edge 8.
    _, losses = model(images, features, targets([[16, 8, 24, 16]]))
    # Stage 1: the central region holds this one anchor, whose IoU is 1.
    assert losses["loss_rpn_box_stage1"].item() == pytest.approx(0, abs=1e-5)
    # Stage 2: one positive of IoU 1 and 15 negatives, all of probability one half.
    assert losses["loss_rpn_box_stage2"].item() == pytest.approx(0, abs=1e-5)
    assert losses["loss_rpn_cls_stage2"].item() == pytest.approx(0.7 * math.log(2), rel=1e-5)
    # A target half as wide: stage 1 has positives of IoU one half.
    _, losses = model(images, features, targets([[18, 8, 22, 16]]))
    anchors = 8 * 12 + 4 * 6
    assert losses["loss_rpn_box_stage1"].item() == pytest.approx(7.0 * 0.5 / (anchors / 200), rel=1e-5)
    assert losses["loss_rpn_box_stage2"].item() == pytest.approx(7.0 * 0.5 / 16, rel=1e-4)


def test_anchors_in_the_padding_take_no_part():
    model = build(valid_divisor=8)
    images = ImageList(torch.zeros(2, 3, 32, 48), [(32, 48), (17, 33)])
    valid = model._valid_anchors(images, SIZES, CPU)
    assert valid[0].all()
    # 17 x 33 counts as 24 x 40.
    fine, coarse = valid[1].split([96, 24])
    assert fine.view(8, 12)[:6, :10].all()
    assert int(fine.sum()) == 60
    assert int(coarse.sum()) == 15
    model.valid_divisor = 0
    assert model._valid_anchors(images, SIZES, CPU).all()


@for_every(
    ("adaptation", "assigners"),
    [
        (["dilation"], [OverlapAssigner]),
        (["offset"], [RegionAssigner]),
        (["dilation", "offset", "offset"], [RegionAssigner, OverlapAssigner, OverlapAssigner]),
        (["dilation", "dilation"], [OverlapAssigner, RegionAssigner]),
    ],
)
def test_any_number_of_stages(adaptation, assigners):
    stages = [StageSpec(kind, assigner(), (0.1, 0.1, 0.5, 0.5)) for kind, assigner in zip(adaptation, assigners)]
    model = build(stages=stages).train()
    images, features = inputs()
    proposals, losses = model(images, features, targets([[4, 4, 12, 12]], []))
    expected = {f"loss_rpn_box_stage{i + 1}" for i in range(len(adaptation))}
    assert losses.keys() == expected | {f"loss_rpn_cls_stage{len(adaptation)}"}
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        # The deltas of the last stage move only where an anchor is positive.
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
    assert len(proposals) == 2


def test_proposals_are_solid_inside_sorted_and_apart():
    model = build(pre_nms_topk=(30, 30), post_nms_topk=(7, 20), nms_thresh=0.5).eval()
    images, features = inputs()
    with torch.no_grad():
        proposals, losses = model(images, features)
    assert losses == {}
    for p, (height, width) in zip(proposals, images.image_sizes):
        boxes, scores = p.proposal_boxes.tensor, p.objectness_logits
        assert 0 < len(p) <= 20
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert (scores[:-1] >= scores[1:]).all()
        assert ((scores >= 0) & (scores <= 1)).all()
    with torch.no_grad():
        assert max(len(p) for p in model.train()(images, features)[0]) <= 7


def test_images_without_targets_pull_no_box():
    model = build().train()
    images, features = inputs()
    _, losses = model(images, features, targets([], []))
    assert losses["loss_rpn_box_stage1"] == 0
    assert losses["loss_rpn_box_stage2"] == 0
    assert losses["loss_rpn_cls_stage2"] > 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@for_every("dtype", [torch.bfloat16, torch.float16])
def test_trains_under_autocast(dtype):
    model = build().train()
    images, features = inputs()
    boxes = targets([[4, 4, 12, 12]], [[8, 0, 20, 9]])
    _, exact = model(images, features, boxes)
    with torch.autocast("cpu", dtype=dtype):
        _, losses = model(images, features, boxes)
    for name in ("loss_rpn_box_stage1",):
        assert losses[name].item() == pytest.approx(exact[name].item(), rel=0.03)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()


@for_every(
    ("options", "message"),
    [
        ({"ADAPTATION": ["dilation"]}, "one per stage"),
        ({"ADAPTATION": [], "ASSIGNMENT": [], "DELTA_STDS": []}, "one per stage"),
        ({"ADAPTATION": ["dilation", "magic"]}, "magic"),
        ({"ASSIGNMENT": ["region", "luck"]}, "luck"),
        ({"CENTER_RATIO": 0.6}, "CENTER_RATIO"),
        ({"CENTER_RATIO": -0.1}, "CENTER_RATIO is -0.1; it must be at least 0"),
        ({"IN_FEATURES": ["p9"]}, "IN_FEATURES has 'p9'; known are 'p2', 'p3'"),
        ({"ANCHOR_SCALE": 0.0}, "ANCHOR_SCALE is 0.0; it must be above 0"),
        ({"DILATION": 0}, "DILATION is 0; it must be at least 1"),
        ({"DELTA_STDS": [[0.0, 0.1, 0.5, 0.5], [0.1] * 4]}, "DELTA_STDS is 0.0; it must be above 0"),
        ({"REGION_LOSS_DIVISOR": 0.0}, "REGION_LOSS_DIVISOR is 0.0; it must be above 0"),
        ({"POSITIVE_FRACTION": 1.5}, "POSITIVE_FRACTION is 1.5; it must be at least 0 and at most 1"),
        ({"BATCH_SIZE_PER_IMAGE": 0}, "BATCH_SIZE_PER_IMAGE is 0; it must be at least 1"),
        ({"POST_NMS_TOPK_TRAIN": 0}, "POST_NMS_TOPK_TRAIN is 0; it must be at least 1"),
        ({"VALID_DIVISOR": -1}, "VALID_DIVISOR is -1; it must be at least 0"),
        ({"BOX_LOSS": "giou"}, "BOX_LOSS is 'giou'; known are"),
    ],
)
def test_wrong_options_are_named(options, message):
    keys = [part for key, value in options.items() for part in (f"MODEL.CASCADE_RPN.{key}", value)]
    shapes = {name: ShapeSpec(channels=8, stride=stride) for name, stride in (("p2", 4), ("p3", 8))}
    with pytest.raises(ConfigError, match=message):
        CascadeRPN(get_config(None, keys), shapes)


def test_from_config():
    config = get_config(None, ["MODEL.CASCADE_RPN.POST_NMS_TOPK_TEST", 11, "MODEL.CASCADE_RPN.DILATION", 2])
    shapes = {"p2": ShapeSpec(channels=8, stride=4), "p3": ShapeSpec(channels=8, stride=8)}
    model = PROPOSAL_GENERATOR_REGISTRY.get("CascadeRPN")(config, shapes)
    assert model.strides == [4, 8]
    assert model.post_nms_topk == (300, 11)
    assert model.stages[0].conv.dilation == (2, 2)
    shapes["p3"] = ShapeSpec(channels=9, stride=8)
    with pytest.raises(ConfigError, match="must be equal"):
        CascadeRPN(config, shapes)
