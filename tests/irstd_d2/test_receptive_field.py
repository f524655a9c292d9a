"""Assignment by receptive fields: distances by definition, examples by hand, a slow version, none goes without."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import for_every
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from irstd_d2 import get_config
from irstd_d2.errors import ConfigError
from irstd_d2.modeling import receptive_field
from irstd_d2.modeling.fcos_targets import all_points, assign_targets, centerness, fcos_losses, pad_instances
from irstd_d2.modeling.receptive_field import (
    DISTANCES,
    ReceptiveFieldAssigner,
    axis_distance,
    theoretical_fields,
    widened_centerness,
)
from irstd_d2.modeling.resnet import build_irstd_resnet_backbone

CPU = torch.device("cpu")
K = 3
SIZES, STRIDES, RANGES = [(9, 7), (5, 4)], [4, 8], [(-1, 8), (8, 64)]
FIELDS = (14.0, 30.0)


def points_of(sizes=SIZES, strides=STRIDES):
    return all_points(sizes, strides, [(-1, 64)] * len(sizes), CPU)


def batch(*images):
    """Boxes and classes of images, each a list of (x1, y1, x2, y2, class)."""
    instances = []
    for rows in images:
        rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
        instances.append(Instances((64, 64), gt_boxes=Boxes(rows[:, :4]), gt_classes=rows[:, 4].long()))
    return pad_instances(instances)


def gaussian(centre, size):
    return MultivariateNormal(torch.tensor(centre), torch.diag(torch.tensor(size) ** 2 / 4))


@for_every(("centre", "size", "field"), [((3.0, 4), (5.0, 2), 14.0), ((0.0, 0), (6.0, 6), 6.0)])
def test_the_axes_add_up_to_the_distance_of_the_gaussians(centre, size, field):
    kl, squared = (
        sum(axis_distance(torch.tensor(d), torch.tensor(s), field, kind) for d, s in zip(centre, size))
        for kind in DISTANCES
    )
    expected = kl_divergence(gaussian((0.0, 0), (field, field)), gaussian(centre, size))
    torch.testing.assert_close(kl, expected, rtol=1e-5, atol=1e-5)
    roots = [field / 2 - s / 2 for s in size]
    assert squared.item() == pytest.approx(sum(v**2 for v in (*centre, *roots)), rel=1e-6)


def test_the_nearest_points_of_the_level_that_fits():
    # Points at 2, 6, 10, ... and at 4, 12, ...; a target of 2 x 2 around (2.5, 2.25).
    points = points_of()
    boxes, classes = batch([(1.5, 1.25, 3.5, 3.25, 2)], [])
    targets = ReceptiveFieldAssigner(FIELDS)(points, boxes, classes, K)
    # In order of distance: (2, 2), (6, 2), (2, 6); and the second stage finds the first of these once more.
    assert (targets.labels[0] != K).nonzero().flatten().tolist() == [0, 1, 7]
    assert targets.labels[0, [0, 1, 7]].tolist() == [2, 2, 2]
    assert targets.distances[0, 0].tolist() == [0.5, 0.75, 1.5, 1.25]
    assert targets.distances[0, 1].tolist() == [4.5, 0.75, -2.5, 1.25]
    assert (targets.labels[1] == K).all()
    assert targets.distances[1].abs().sum() == 0
    # As large as the field of the second level.
    boxes, classes = batch([(0, 0, 30, 30, 1)])
    targets = ReceptiveFieldAssigner(FIELDS)(points, boxes, classes, K)
    assert ((targets.labels[0] != K).nonzero() >= 63).all()


@for_every("distance", DISTANCES)
def test_a_decayed_field_adds_a_point_of_another_level(distance):
    # A target of 14.7 x 14.7 fits the field of 14 better than that of 17, and 0.9 x 17 better than 0.9 x 14.
    points = points_of()
    boxes, classes = batch([(-2.35, -2.35, 12.35, 12.35, 0)])  # as far from (6, 6) as from (4, 4)
    one = ReceptiveFieldAssigner((14.0, 17.0), distance, (1, 0))(points, boxes, classes, K)
    both = ReceptiveFieldAssigner((14.0, 17.0), distance, (1, 1))(points, boxes, classes, K)
    assert (one.labels != K).nonzero()[:, 1].tolist() == [8]
    assert (both.labels != K).nonzero()[:, 1].tolist() == [8, 63]
    same = ReceptiveFieldAssigner((14.0, 17.0), distance, (1, 1), decay=1.0)(points, boxes, classes, K)
    assert torch.equal(same.labels, one.labels)


def test_of_targets_that_want_the_same_points_each_gets_one_and_the_smaller_the_better():
    points = points_of([(3, 3)], [4])
    # Around the point (6, 6), number 4, the larger first.
    boxes, classes = batch([(3, 3, 9, 9, 0), (5, 5, 7, 7, 1)])
    targets = ReceptiveFieldAssigner((8.0,), topk=(1, 0))(points, boxes, classes, K)
    assert targets.labels[0].tolist() == [3, 0, 3, 3, 1, 3, 3, 3, 3]
    # With three wishes each the points around are shared in the order of the wishes.
    targets = ReceptiveFieldAssigner((8.0,), topk=(3, 0))(points, boxes, classes, K)
    assert targets.labels[0].tolist() == [3, 0, 3, 1, 1, 3, 3, 3, 3]


def assign_slowly(points, rows, assigner):
    """Point by point and target by target; the owner of each point among the targets, or none."""
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2, _ in rows]
    order = [m for m in sorted(range(len(rows)), key=lambda m: areas[m]) if min(
        rows[m][2] - rows[m][0], rows[m][3] - rows[m][1]) > 0]  # fmt: skip

    def ranking(m, decay):
        x1, y1, x2, y2, _ = rows[m]
        found = []
        for level, field in zip(points.levels, assigner.fields):
            y, x = level.axes(CPU)
            along = [
                axis_distance((p - (a + b) / 2).abs(), torch.tensor([b - a]), field * decay, assigner.distance)
                for p, a, b in ((y, y1, y2), (x, x1, x2))
            ]
            found += (along[0][:, None] + along[1]).flatten().tolist()
        return sorted(range(len(found)), key=lambda p: found[p])

    rankings = {m: ranking(m, 1.0) for m in order}
    owner = {}
    without = list(order)
    while without:
        asks = {}
        for m in without:
            rank, point = next((r, p) for r, p in enumerate(rankings[m]) if p not in owner)
            asks.setdefault(point, []).append((rank, order.index(m), m))
        for point, askers in asks.items():
            owner[point] = min(askers)[2]
        without = [m for m in without if m not in owner.values()]
    for lists, k in ((rankings, assigner.topk[0]), ({m: ranking(m, assigner.decay) for m in order}, assigner.topk[1])):
        asks = {}
        for m in order:
            for rank, point in enumerate(lists[m][:k]):
                asks.setdefault(point, []).append((rank, order.index(m), m))
        owner = {**{point: min(askers)[2] for point, askers in asks.items()}, **owner}
    return [owner.get(point) for point in range(len(points.center))]


# Eighths of a pixel; also outside of the image, without area, and equal to each other.
side = st.integers(-40, 320).map(lambda n: n / 8)
edge = st.one_of(st.integers(1, 40), st.integers(0, 240)).map(lambda n: n / 8)
rows_of_image = st.lists(
    st.tuples(side, side, edge, edge, st.integers(0, K - 1)).map(
        lambda r: (r[0], r[1], r[0] + r[2], r[1] + r[3], r[4])
    ),
    max_size=6,
)


@settings(max_examples=30, deadline=None)
@given(
    images=st.lists(rows_of_image, min_size=1, max_size=3),
    distance=st.sampled_from(DISTANCES),
    topk=st.sampled_from([(1, 0), (3, 1), (5, 2), (20, 1)]),
    decay=st.sampled_from([0.9, 0.5]),
    at_a_time=st.sampled_from([1, 1000, 2**22]),
)
def test_targets_equal_the_slow_version(images, distance, topk, decay, at_a_time):
    points = points_of()
    assigner = ReceptiveFieldAssigner(FIELDS, distance, topk, decay)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receptive_field, "_CANDIDATES", at_a_time)
        targets = assigner(points, *batch(*images), K)
    for i, rows in enumerate(images):
        owners = assign_slowly(points, rows, assigner)
        assert targets.labels[i].tolist() == [K if m is None else rows[m][4] for m in owners]
        for point, m in enumerate(owners):
            x, y = points.center[point].tolist()
            expected = (0,) * 4 if m is None else (x - rows[m][0], y - rows[m][1], rows[m][2] - x, rows[m][3] - y)
            assert targets.distances[i, point].tolist() == list(expected)


def test_every_target_has_a_point_where_fcos_leaves_most_without():
    # 400 targets of one pixel in 128 x 128.
    points = all_points([(32, 32), (16, 16)], STRIDES, RANGES, CPU)
    corner = torch.rand(1, 400, 2, generator=torch.Generator().manual_seed(0)) * 127
    boxes, classes = torch.cat([corner, corner + 1], dim=-1), torch.arange(400)[None]
    found = ReceptiveFieldAssigner(FIELDS)(points, boxes, classes, 400).labels.unique()
    assert found.tolist() == list(range(401))
    assert len(assign_targets(points, boxes, classes, 400).labels.unique()) < 100


def test_equal_targets_have_points_of_their_own():
    points = points_of()
    targets = ReceptiveFieldAssigner(FIELDS)(points, *batch([(9, 9, 12, 12, 0)] * 16), 1)
    assert (targets.labels == 0).sum() >= 16
    # Of more than there are choices the rest goes without; nothing breaks.
    targets = ReceptiveFieldAssigner(FIELDS)(points, *batch([(9, 9, 12, 12, 0)] * 60), 1)
    assert (targets.labels == 0).sum() == 16


def test_a_map_with_fewer_points_than_wishes():
    points = points_of([(1, 2)], [8])
    targets = ReceptiveFieldAssigner((16.0,), topk=(9, 4))(points, *batch([(1, 1, 3, 3, 0)]), K)
    assert targets.labels.tolist() == [[0, 0]]


@for_every("boxes", [torch.zeros(2, 0, 4), torch.zeros(2, 3, 4), torch.tensor([[[5.0, 5, 5, 9]]] * 2)])
def test_images_without_targets_are_background(boxes):
    targets = ReceptiveFieldAssigner(FIELDS)(points_of(), boxes, torch.zeros(boxes.shape[:2], dtype=torch.long), K)
    assert (targets.labels == K).all()
    assert (targets.distances == 0).all()
    losses = fcos_losses(torch.randn(2, 83, K), torch.ones(2, 83, 4), torch.randn(2, 83), targets)
    assert losses["loss_box_reg"] == losses["loss_centerness"] == 0


def test_an_image_gives_the_same_in_every_batch_and_where_it_moves():
    rows = [(9, 9, 12, 13, 0), (10, 9, 13, 11, 1), (2, 20, 4, 22, 2)]
    assigner = ReceptiveFieldAssigner(FIELDS)
    points = points_of([(16, 16), (8, 8)])
    alone, beside = assigner(points, *batch(rows), K), assigner(points, *batch([(0, 0, 5, 5, 1)] * 5, rows), K)
    assert torch.equal(alone.labels[0], beside.labels[1])
    moved = assigner(points, *batch([(x1 + 16, y1 + 8, x2 + 16, y2 + 8, c) for x1, y1, x2, y2, c in rows]), K)
    fine = [t.labels[0, :256].view(16, 16) for t in (alone, moved)]
    assert torch.equal(fine[0][:-2, :-4], fine[1][2:, 4:])


def test_a_dense_scene_needs_little_memory():
    """4,000 targets at 1024x1024 on strides 4, 8, 16: never more than the bound, whatever the scene."""
    points = all_points([(256, 256), (128, 128), (64, 64)], [4, 8, 16], [(-1, 64)] * 3, CPU)
    corner = torch.rand(1, 4000, 2) * 1000
    boxes = torch.cat([corner, corner + 3 + torch.rand(1, 4000, 2) * 6], dim=-1)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        targets = ReceptiveFieldAssigner((14.0, 30.0, 60.0))(points, boxes, torch.arange(4000)[None], 4000)
    assert len(targets.labels.unique()) == 4001
    assert max(event.cpu_memory_usage for event in profile.events()) < 60e6


def test_centerness_of_small_targets_is_that_of_two_strides():
    distances = torch.tensor([[[6.0, 5, 10, 5], [0.5, 0.5, 0.5, 0.5], [2.5, 0.5, -1.5, 0.5], [4.5, 0.5, -3.5, 0.5]]])
    found = widened_centerness(distances, torch.full((4,), 8.0))
    # Wider than two strides: its own; a point in the middle; two and four pixels beside it in a width of eight.
    assert found[0].tolist() == pytest.approx([math.sqrt(6 / 10), 1, math.sqrt(2 / 6), 0.01])
    assert found[0, 0] == centerness(distances)[0, 0]


def test_a_target_of_one_pixel_between_the_points_trains_its_box():
    points, (boxes, classes) = points_of(), batch([(7.5, 7.5, 8.5, 8.5, 0)])
    targets = ReceptiveFieldAssigner(FIELDS)(points, boxes, classes, 1)
    assert assign_targets(points, boxes, classes, 1).labels.min() == 1
    positive = targets.labels[0] == 0
    assert positive.sum() == 3
    distances = torch.full((1, 83, 4), 3.0, requires_grad=True)
    losses = fcos_losses(torch.zeros(1, 83, 1), distances, torch.zeros(1, 83), targets)
    losses["loss_box_reg"].backward()
    assert (distances.grad[0].abs().amax(-1) > 0).tolist() == positive.tolist()


@for_every(
    ("depth", "in_1x1", "expected"),
    [
        # Of the published implementation for ResNet-50; P6 is reached by one more 3x3 convolution.
        (50, False, [35, 91, 267, 427, 491]),
        (18, False, [43, 99, 211, 435, 499]),
        (10, False, [27, 51, 99, 195, 259]),
        (50, True, [35, 99, 291, 483, 547]),
    ],
)
def test_theoretical_fields(depth, in_1x1, expected):
    options = ["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.STRIDE_IN_1X1", in_1x1]
    options += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64 if depth < 50 else 256]
    cfg = get_config(None, [*options, "MODEL.RESNETS.OUT_FEATURES", ["res2", "res5"]])
    with torch.device("meta"):
        resnet = build_irstd_resnet_backbone(cfg, ShapeSpec(channels=3))
    assert theoretical_fields(nn.ModuleDict({"bottom_up": resnet}), [4, 8, 16, 32, 64]) == expected


def test_theoretical_fields_are_where_gradients_reach():
    cfg = get_config(None, ["MODEL.RESNETS.DEPTH", 10, "MODEL.RESNETS.OUT_FEATURES", ["res2", "res3"]])
    cfg.merge_from_list(["MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.RES2_OUT_CHANNELS", 4])
    resnet = build_irstd_resnet_backbone(cfg, ShapeSpec(channels=3)).double().eval()
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.01)
    for name, field in zip(("res2", "res3"), theoretical_fields(resnet, [4, 8])):
        reached = torch.zeros(128, dtype=torch.bool)
        for value in range(9):  # max pooling passes on one pixel of its window: try images that differ
            image = torch.rand(1, 3, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(value))
            image.requires_grad_()
            output = resnet(image)[name]
            output[0, :, output.shape[2] // 2, output.shape[3] // 2].sum().backward()
            reached |= (image.grad[0] != 0).any(0).any(0)
        assert reached.sum() == field


@for_every(
    ("options", "message"),
    [
        ({"distance": "iou"}, "DISTANCE is 'iou'; known are"),
        ({"fields": (14.0, 0.0)}, "FIELD_WIDTHS .* must be positive"),
        ({"decay": 0.0}, "DECAY 0.0 must be positive"),
        ({"topk": (0, 1)}, "TOPK is"),
        ({"topk": (3,)}, "TOPK is"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        ReceptiveFieldAssigner(**{"fields": FIELDS, **options})


def build(repo_root, *opts):
    return build_model(get_config(repo_root / "configs/bafe/tiny/fcos_tiny.yaml", ["MODEL.DEVICE", "cpu", *opts]))


def test_from_config(repo_root):
    plain = build(repo_root)
    assert plain.assigner is None
    model = build(repo_root, "MODEL.FCOS.ASSIGNMENT", "rfla", "MODEL.FCOS.RFLA.TOPK", (4, 2))
    assert model.assigner == ReceptiveFieldAssigner((13.5, 25.5, 49.5), topk=(4, 2))
    given_widths = ["MODEL.FCOS.ASSIGNMENT", "rfla", "MODEL.FCOS.RFLA.FIELD_WIDTHS", (10, 20, 30)]
    assert build(repo_root, *given_widths).assigner.fields == (10.0, 20.0, 30.0)
    with pytest.raises(ConfigError, match=r"FIELD_WIDTHS has 2 entries for 3 levels \(p2, p3, p4\)"):
        build(repo_root, *given_widths[:3], (10, 20))
    with pytest.raises(ConfigError, match="ASSIGNMENT is 'atss'; known are"):
        build(repo_root, "MODEL.FCOS.ASSIGNMENT", "atss")


def test_other_backbones_need_widths():
    with pytest.raises(ConfigError, match="give the widths"):
        theoretical_fields(nn.Conv2d(1, 1, 3), [4])


def test_strides_without_a_stage_need_widths(repo_root):
    with pytest.raises(ConfigError, match=r"no stage has the strides \[12\]"):
        theoretical_fields(build(repo_root).backbone, [4, 12])


@for_every("dtype", [None, torch.bfloat16])
def test_it_trains(repo_root, dtype):
    opts = ["MODEL.FCOS.ASSIGNMENT", "rfla", "MODEL.FCOS.NWD_LOSS_SHARE", 0.5, "MODEL.NWD_SCALE", 4.0]
    model = build(repo_root, *opts).train()
    sample = {"image": torch.full((3, 64, 64), 80.0)}
    sample["instances"] = Instances((64, 64), gt_classes=torch.tensor([0, 0]))
    sample["instances"].gt_boxes = Boxes(torch.tensor([[19.0, 23, 20, 24], [40, 40, 43, 43]]))
    for x, y in ((19, 23), (40, 40)):
        sample["image"][:, y : y + 3, x : x + 3] = 230
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        losses = model([sample, sample])
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    gradient = model.head.box_distances.weight.grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
