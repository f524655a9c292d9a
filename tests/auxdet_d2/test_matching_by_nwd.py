"""Anchors and proposals matched by the distance of Gaussians in place of IoU."""

import math
from functools import partial

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import for_every

from auxdet_d2.modeling import AuxDetROIHeads, CascadeRPN
from auxdet_d2.modeling.anchor_targets import IGNORED, NEGATIVE, OverlapAssigner, RegionAssigner, assign_by_iou
from auxdet_d2.modeling.cascade_rpn import StageSpec, paired_iou
from irstd_d2 import get_config
from irstd_d2.errors import ConfigError
from irstd_d2.modeling.gaussian_distance import wasserstein_similarities, wasserstein_similarity

SIZES, STRIDES, CHANNELS = [(8, 12), (4, 6)], [4, 8], 6


def nwd(boxes, anchors):
    return wasserstein_similarities(boxes, anchors, 8.0)


def test_anchors_that_do_not_overlap_are_found():
    boxes = torch.tensor([[[10.0, 10, 12, 12], [0, 0, 0, 0]]])
    # Moved by 0, 2, 3 and 20 pixels: similarity exp(-d / 8).
    anchors = torch.tensor([[[10.0 + d, 10, 12 + d, 12] for d in (0, 2, 3, 20)]])
    options = {"positive_iou": math.exp(-2.5 / 8), "negative_iou": math.exp(-10 / 8), "low_quality_iou": 0.9}
    assert assign_by_iou(anchors, boxes, **options)[0].tolist() == [0, NEGATIVE, NEGATIVE, NEGATIVE]
    assert assign_by_iou(anchors, boxes, **options, similarity=nwd)[0].tolist() == [0, 0, IGNORED, NEGATIVE]
    # However far: the best anchor of a target is its own, from the threshold on.
    options["low_quality_iou"] = 0.05
    assert assign_by_iou(anchors[:, 3:], boxes, **options, similarity=nwd)[0].tolist() == [0]


def assign_slowly(anchors, boxes, positive_iou, negative_iou, low_quality_iou):
    table = nwd(boxes, anchors)
    result = []
    for a in range(len(anchors)):
        value, best = max((table[m, a].item(), -m) for m in range(len(boxes)))
        result.append(-best if value >= positive_iou else NEGATIVE if value < negative_iou else IGNORED)
    for m in range(len(boxes)):
        top = table[m].max()
        if top >= low_quality_iou:
            for a in (table[m] == top).nonzero().flatten().tolist():
                result[a] = m
    return result


number = st.integers(0, 160).map(lambda n: n / 4)
box = st.tuples(number, number, st.integers(1, 60), st.integers(1, 60)).map(
    lambda b: [b[0], b[1], b[0] + b[2] / 4, b[1] + b[3] / 4]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(box, min_size=1, max_size=5), st.lists(box, min_size=1, max_size=12))
def test_assignment_equals_the_loop(boxes, anchors):
    boxes, anchors = torch.tensor(boxes), torch.tensor(anchors)
    options = {"positive_iou": 0.7, "negative_iou": 0.4, "low_quality_iou": 0.2}
    found = assign_by_iou(anchors[None], boxes[None], **options, similarity=nwd)[0].tolist()
    assert found == assign_slowly(anchors, boxes, **options)


def rpn(**options):
    torch.manual_seed(1)
    return CascadeRPN(in_features=["p2", "p3"], channels=CHANNELS, strides=STRIDES, anchor_scale=2.0, **options).train()


def inputs():
    shapes = [(1, CHANNELS, h, w) for h, w in SIZES]
    features = {name: torch.rand(shape) for name, shape in zip(("p2", "p3"), shapes)}
    return ImageList(torch.zeros(1, 3, 32, 48), [(32, 48)]), features


def targets(*rows):
    instances = Instances((32, 48))
    instances.gt_boxes = Boxes(torch.tensor(rows, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(rows), dtype=torch.long)
    instances.gt_numbers = torch.arange(len(rows))
    return [instances]


def still(model):
    """No delta moves a box, no logit leaves zero."""
    for stage in model.stages:
        for layer in (stage.deltas, stage.logits):
            if layer is not None:
                torch.nn.init.zeros_(layer.weight)
    return model


def test_losses_of_cascade_rpn_by_hand():
    paired = partial(wasserstein_similarity, scale=8.0)
    # Half as wide and high as the anchor of edge 8 around its centre, at (20, 12): W^2 = 2 * 2^2.
    images, features = inputs()
    small = targets((18, 10, 22, 14))
    similarity = math.exp(-math.sqrt(8) / 8)
    for options, box_similarity, missed in (
        ({}, paired_iou, 3 / 4),
        ({"similarity": nwd}, paired_iou, 3 / 4),
        ({"similarity": nwd}, paired, 1 - similarity),
    ):
        assigner = OverlapAssigner(0.99, 0.99, 0.2, batch_size=16, **options)
        model = still(rpn(stages=[StageSpec("dilation", assigner, (0.1,) * 4)], box_similarity=box_similarity))
        _, losses = model(images, features, small)
        assert losses["loss_rpn_box_stage1"].item() == pytest.approx(7 * missed / 16, rel=1e-4)
        assert losses["loss_rpn_cls_stage1"].item() == pytest.approx(0.7 * math.log(2), rel=1e-5)


def test_only_the_distance_moves_an_anchor_that_misses_its_target():
    assigner = OverlapAssigner(0.99, 0.99, 0.1, similarity=partial(wasserstein_similarities, scale=30.0))
    stages = [StageSpec("dilation", assigner, (0.1,) * 4)]
    # Beyond the last anchor, which ends at (48, 32), of an image that is larger.
    images, features = inputs()
    images.image_sizes[0] = (40, 60)
    for box_similarity, learns in ((paired_iou, False), (partial(wasserstein_similarity, scale=30.0), True)):
        model = still(rpn(stages=stages, box_similarity=box_similarity))
        _, losses = model(images, features, targets((56, 20, 57, 21)))
        losses["loss_rpn_box_stage1"].backward()
        gradient = model.stages[0].deltas.bias.grad
        assert torch.isfinite(gradient).all()
        assert (gradient.abs().max() > 0) == learns


def test_cascade_rpn_by_distance_trains_and_takes_images_without_targets():
    images, features = inputs()
    for boxes in (targets((4, 4, 5, 5)), targets()):
        stds = (0.1,) * 4
        stages = [
            StageSpec("dilation", RegionAssigner(), stds),
            StageSpec("offset", OverlapAssigner(similarity=nwd), stds),
        ]
        model = rpn(stages=stages, box_similarity=partial(wasserstein_similarity, scale=8.0))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            proposals, losses = model(images, features, boxes)
        assert len(proposals[0]) > 0
        assert all(torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@for_every(
    ("options", "message"),
    [
        (["MODEL.CASCADE_RPN.BOX_LOSS", "l1"], "BOX_LOSS is 'l1'; known are"),
        (["MODEL.NWD_SCALE", 0.0], "NWD_SCALE is 0.0"),
        (["MODEL.CASCADE_RPN.ASSIGNMENT", ["region", "giou"]], "ASSIGNMENT has .*giou"),
    ],
)
def test_wrong_options_of_cascade_rpn_are_named(options, message):
    shapes = {name: ShapeSpec(channels=CHANNELS, stride=stride) for name, stride in zip(("p2", "p3"), STRIDES)}
    with pytest.raises(ConfigError, match=message):
        CascadeRPN(get_config(None, options), shapes)


def roi_heads(*opts):
    cfg = get_config(None, ["MODEL.ROI_HEADS.NAME", "AuxDetROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p2"], *opts])
    cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", 1, "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"])
    cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ROI_BOX_HEAD.FC_DIM", 4])
    return ROI_HEADS_REGISTRY.get("AuxDetROIHeads")(cfg, {"p2": ShapeSpec(channels=CHANNELS, stride=4)})


def proposals_of(*rows):
    boxes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    return [Instances((32, 48), proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes)))]


BESIDE = [(12.0, 10, 14, 12), (30, 10, 32, 12)]
BY_NWD = ["MODEL.ROI_HEADS.MATCH_BY", "nwd", "MODEL.NWD_SCALE", 8.0]


@for_every(("opts", "expected"), [([], [1, 1]), (BY_NWD, [0, 1]), ([*BY_NWD[:3], 2.0], [1, 1])])
def test_a_proposal_beside_its_target_is_positive(opts, expected):
    heads = roi_heads(*opts, "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False)
    with EventStorage() as storage:
        (sampled,) = heads.label_and_sample_proposals(proposals_of(*BESIDE), targets((10, 10, 12, 12)))
        classes = dict(zip(sampled.proposal_boxes.tensor[:, 0].tolist(), sampled.gt_classes.tolist()))
        assert [classes[12.0], classes[30.0]] == expected
        assert storage.latest()["roi_head/num_fg_samples"][0] == expected.count(0)
        assert storage.latest()["roi_head/num_bg_samples"][0] == expected.count(1)


def test_sampled_proposals_carry_their_target():
    heads = roi_heads(*BY_NWD)
    boxes = targets((10, 10, 12, 12), (29, 9, 33, 13))
    with EventStorage():
        (sampled,) = heads.label_and_sample_proposals(proposals_of(*BESIDE, (0, 20, 2, 22)), boxes)
    rows = zip(sampled.proposal_boxes.tensor[:, :2].tolist(), sampled.gt_classes.tolist(), sampled.gt_numbers.tolist())
    found = {tuple(corner): (label, number) for corner, label, number in rows}
    positive = {(10, 10): (0, 0), (29, 9): (0, 1), (12, 10): (0, 0), (30, 10): (0, 1)}  # targets are among them
    assert {corner: value for corner, value in found.items() if value[0] == 0} == positive
    assert found[(0, 20)][0] == 1
    torch.testing.assert_close(sampled.gt_boxes.tensor, boxes[0].gt_boxes.tensor[sampled.gt_numbers])


@for_every(
    ("num_targets", "thresholds", "labels"), [(3, [0.5], [0, 1]), (5, [0.2, 0.6], [0, -1, 1]), (0, [0.5], [0, 1])]
)
def test_by_iou_it_samples_as_detectron2_does(num_targets, thresholds, labels):
    opts = ["MODEL.ROI_HEADS.IOU_THRESHOLDS", thresholds, "MODEL.ROI_HEADS.IOU_LABELS", labels]
    heads = roi_heads(*opts, "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 24)
    assert heads.similarity is pairwise_iou
    rows = torch.rand(40, 4) * 10
    rows[:, 2:] += rows[:, :2] + 1
    results, logged = [], []
    for sample in (type(heads).label_and_sample_proposals, StandardROIHeads.label_and_sample_proposals):
        torch.manual_seed(0)
        with EventStorage() as storage:
            results += sample(heads, proposals_of(*rows.tolist()), targets(*rows[:num_targets].tolist()))
            logged.append(storage.latest())
    assert logged[0] == logged[1]
    assert results[0].get_fields().keys() == results[1].get_fields().keys()
    for name, value in results[0].get_fields().items():
        other = results[1].get(name)
        assert torch.equal(getattr(value, "tensor", value), getattr(other, "tensor", other)), name


def test_images_without_targets_give_background_alone():
    heads = roi_heads(*BY_NWD)
    with EventStorage():
        (sampled,) = heads.label_and_sample_proposals(proposals_of(*BESIDE), targets())
    assert sampled.gt_classes.tolist() == [1, 1]
    assert not sampled.has("gt_boxes")


def test_wrong_options_of_the_heads_are_named():
    with pytest.raises(ConfigError, match="MATCH_BY is 'giou'; known are"):
        roi_heads("MODEL.ROI_HEADS.MATCH_BY", "giou")
    with pytest.raises(ConfigError, match="NWD_SCALE is -1"):
        roi_heads("MODEL.NWD_SCALE", -1.0)


def test_from_config(repo_root):
    model = build_model(get_config(repo_root / "configs/auxdet/tiny/auxdet_tiny_nwd.yaml", ["MODEL.DEVICE", "cpu"]))
    regions, overlaps = model.proposal_generator.assigners
    assert isinstance(regions, RegionAssigner)
    assert overlaps.similarity.keywords == {"scale": 9.0}
    assert model.proposal_generator.box_similarity is paired_iou
    assert isinstance(model.roi_heads, AuxDetROIHeads)
    first, second = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[3.0, 0, 5, 2]])
    expected = wasserstein_similarity(first, second, 9.0)
    torch.testing.assert_close(model.roi_heads.similarity(Boxes(first), Boxes(second))[0], expected)
