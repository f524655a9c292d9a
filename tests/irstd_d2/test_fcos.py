"""FCOS as a model: any levels and strides, decoding, selection, batches, precision, compilation, learning."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling import Backbone, build_model
from detectron2.structures import Boxes, ImageList, Instances
from loops import for_every
from torch import nn

from irstd_d2 import get_config
from irstd_d2.checkpoint.safe import read_safetensors, write_safetensors
from irstd_d2.errors import ConfigError
from irstd_d2.modeling import IRSTDFCOS, FCOSHead
from irstd_d2.modeling.fcos import head_arguments

STRIDES = (4, 8)


class TwoLevels(Backbone):
    """One convolution per level; built without any configuration."""

    def __init__(self, channels=8, strides=STRIDES):
        super().__init__()
        self._strides, self._channels = strides, channels
        self.convs = nn.ModuleList(nn.Conv2d(3, channels, stride, stride=stride) for stride in strides)

    def forward(self, x):
        return {f"p{i}": conv(x).relu() for i, conv in enumerate(self.convs)}

    def output_shape(self):
        return {f"p{i}": ShapeSpec(channels=self._channels, stride=s) for i, s in enumerate(self._strides)}

    @property
    def size_divisibility(self):
        return max(self._strides)


def make_model(num_classes=2, strides=STRIDES, **kwargs):
    torch.manual_seed(0)
    head = FCOSHead(8, num_levels=len(strides), num_classes=num_classes, num_convs=1, norm="", prior_prob=0.2)
    kwargs.setdefault("regress_ranges", [(-1, 8), (8, 64)])
    return IRSTDFCOS(
        TwoLevels(strides=strides),
        head,
        [f"p{i}" for i in range(len(strides))],
        pixel_mean=[100.0] * 3,
        pixel_std=[50.0] * 3,
        num_classes=num_classes,
        **kwargs,
    ).eval()


def sample(size=(40, 56), boxes=(), seed=0, **extra):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    return {"image": torch.rand(3, *size, generator=generator) * 255, "instances": instances, **extra}


BOXES = [(4.0, 4, 9, 10), (20, 12, 44, 36)]


def written(maps, num_classes=2):
    """Predictions on levels of (2, 3) and (1, 2) points with logits -20, but for the entries of ``maps``."""
    sizes = [(2, 3), (1, 2)]
    result = {
        "logits": [torch.full((1, num_classes, *s), -20.0) for s in sizes],
        "distances": [torch.ones(1, 4, *s) for s in sizes],
        "centerness": [torch.zeros(1, 1, *s) for s in sizes],
    }
    for name, level, index, value in maps:
        result[name][level][index] = torch.as_tensor(value, dtype=torch.float32)
    return result


def detect(model, predictions, image_size=(8, 12)):
    images = ImageList(torch.zeros(1, 3, 8, 16), [image_size])
    return model.forward_inference(images, [], predictions)[0]


def test_decoding_by_hand():
    # Level 0, row 1, column 2 is the point (10, 6) of stride 4; class 1; sides 3, 2, 9 (clipped at 12), 1.
    found = detect(
        make_model(),
        written(
            [
                ("logits", 0, (0, 1, 1, 2), math.log(4)),
                ("distances", 0, (0, slice(None), 1, 2), [3, 2, 9, 1]),
                ("centerness", 0, (0, 0, 1, 2), math.log(1 / 3)),
            ]
        ),
    )
    assert found.pred_boxes.tensor.tolist() == [[7, 4, 12, 7]]
    assert found.pred_classes.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.8 * 0.25])  # the product, not its root


def test_the_root_of_the_product_is_an_option():
    entry = [("logits", 0, (0, 1, 1, 2), math.log(4))]
    assert detect(make_model(score_mode="sqrt"), written(entry)).scores.tolist() == pytest.approx([math.sqrt(0.4)])


def test_the_threshold_is_on_the_class_probability():
    entries = [
        ("logits", 0, (0, 0, 0, 0), math.log(0.06 / 0.94)),  # kept, though its final score is lower than 0.05
        ("centerness", 0, (0, 0, 0, 0), -3.0),
        ("logits", 0, (0, 0, 1, 2), math.log(0.04 / 0.96)),
        ("centerness", 0, (0, 0, 1, 2), 5.0),
    ]
    found = detect(make_model(test_score_thresh=0.05), written(entries))
    assert found.scores.tolist() == pytest.approx([0.06 / (1 + math.exp(3))])


def test_overlaps_are_suppressed_by_the_final_score_within_a_class():
    entries = [
        # The point (2, 2) is surer of its class but less central than (6, 2), whose box is nearly the same.
        ("logits", 0, (0, 0, 0, 0), 3.0),
        ("distances", 0, (0, slice(None), 0, 0), [2, 2, 6, 6]),
        ("centerness", 0, (0, 0, 0, 0), -2.0),
        ("logits", 0, (0, 0, 0, 1), 2.0),
        ("distances", 0, (0, slice(None), 0, 1), [6, 2, 2, 5]),
        ("logits", 1, (0, 1, 0, 0), 1.0),  # (4, 4) of stride 8, the same box of the other class
        ("distances", 1, (0, slice(None), 0, 0), [4, 4, 4, 4]),
    ]
    found = detect(make_model(), written(entries))
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 8, 7], [0, 0, 8, 8]]
    assert found.pred_classes.tolist() == [0, 1]
    assert len(detect(make_model(max_detections_per_image=1), written(entries))) == 1
    assert len(detect(make_model(test_nms_thresh=0.99), written(entries))) == 3


def test_candidates_are_the_best_of_each_level():
    model = make_model(test_topk_candidates=2, test_score_thresh=0.0)
    predictions = {k: [torch.randn(2, *x.shape[1:]) for x in v] for k, v in written([]).items()}
    predictions["distances"] = [x.abs() + 1 for x in predictions["distances"]]
    boxes, final, classes = model.decode(predictions, torch.tensor([[8, 16], [8, 16]]))
    assert boxes.shape == (2, 4, 4)
    for image in range(2):
        for level in range(2):
            scores = predictions["logits"][level][image].sigmoid()
            best = scores.flatten().topk(2).values
            for i, class_score in enumerate(best, start=2 * level):
                cls, row, column = (scores == class_score).nonzero()[0].tolist()
                assert classes[image, i] == cls
                centre = predictions["centerness"][level][image, 0, row, column].sigmoid()
                torch.testing.assert_close(final[image, i], class_score * centre)


def test_results_are_in_original_pixels():
    model = make_model(test_score_thresh=0.0)
    with torch.no_grad():
        small, large = model([sample()])[0], model([sample(height=80, width=168)])[0]
    scale = torch.tensor([3.0, 2, 3, 2])
    torch.testing.assert_close(large["instances"].pred_boxes.tensor, small["instances"].pred_boxes.tensor * scale)
    assert large["instances"].image_size == (80, 168)


def test_an_image_gives_the_same_in_every_batch():
    model = make_model(test_score_thresh=0.0)
    samples = [sample(seed=1), sample(seed=2), sample((32, 48), seed=3)]
    with torch.no_grad():
        together = model(samples)
        for one, result in zip(samples[:2], together):
            alone, found = model([one])[0]["instances"], result["instances"]
            torch.testing.assert_close(found.pred_boxes.tensor, alone.pred_boxes.tensor, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(found.scores, alone.scores)
    assert together[2]["instances"].image_size == (32, 48)
    assert together[2]["instances"].pred_boxes.tensor.amax(0)[2:].tolist() <= [48, 32]


@for_every("strides", [(4,), (2, 4), (4, 8, 16, 32, 64)])
def test_any_number_of_levels_and_strides(strides):
    ranges = [(2 * s, 4 * s) for s in strides]
    model = make_model(strides=strides, regress_ranges=[(-1, ranges[0][1]), *ranges[1:]]).train()
    losses = model([sample((64, 128), BOXES), sample((60, 100))])
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_centerness"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_batches_of_one_and_images_without_targets():
    model = make_model().train()
    losses = model([sample()])
    assert losses["loss_cls"] > 0
    assert losses["loss_box_reg"] == losses["loss_centerness"] == 0
    assert all(torch.isfinite(v) for v in model([sample(boxes=BOXES)]).values())


@for_every("dtype", [torch.bfloat16, torch.float16])
def test_losses_and_decoding_are_float32_under_autocast(dtype):
    model = make_model().train()
    samples = [sample(boxes=BOXES)]
    expected = model(samples)
    with torch.autocast("cpu", dtype):
        losses = model(samples)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[name].item(), rel=0.03)
    with torch.autocast("cpu", dtype), torch.no_grad():
        assert model.eval()(samples)[0]["instances"].scores.dtype == torch.float32


def test_the_head_compiles_without_a_break():
    head = FCOSHead(32, num_levels=2, num_classes=1, num_convs=1).eval()
    features = [torch.randn(1, 32, 8, 8), torch.randn(1, 32, 4, 4)]
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    for name, levels in head(features).items():
        for a, b in zip(levels, compiled(features)[name]):
            torch.testing.assert_close(a, b)


def test_the_prior_is_the_first_probability():
    head = FCOSHead(8, num_levels=1, num_classes=1, num_convs=1, norm="", prior_prob=0.01)
    logits = head([torch.zeros(1, 8, 4, 4)])["logits"][0]
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.01))


def test_it_learns_where_one_target_is():
    model = make_model(num_classes=1).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    target = sample((32, 48), [(13.0, 9, 20, 15)])
    target["image"] = torch.full((3, 32, 48), 80.0)
    target["image"][:, 9:15, 13:20] = 220
    for _ in range(250):
        loss = sum(model([target]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval()([target])[0]["instances"]
    assert (found.pred_boxes.tensor[0] - torch.tensor([13.0, 9, 20, 15])).abs().max() < 1
    assert found.scores[0] > 0.2


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match=r"REGRESS_RANGES has 1 entries for 2 levels \(p0, p1\)"):
        make_model(regress_ranges=[(-1, 64)])
    with pytest.raises(ConfigError, match="SCORE_MODE is 'mean'; known are 'product', 'sqrt'"):
        make_model(score_mode="mean")


def test_wrong_levels_are_named(repo_root):
    opts = ["MODEL.DEVICE", "cpu", "MODEL.FCOS.IN_FEATURES", "('p2', 'p7', 'p4')"]
    with pytest.raises(ConfigError, match=r"IN_FEATURES has \['p7'\]; the backbone gives \['p2', 'p3', 'p4'\]"):
        build_model(get_config(repo_root / "configs/bafe/tiny/fcos_tiny.yaml", opts))


def test_levels_of_unequal_width_are_refused(repo_root):
    opts = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", "build_irstd_resnet_backbone"]
    opts += ["MODEL.FCOS.IN_FEATURES", "('res2', 'res3', 'res4')"]
    with pytest.raises(ConfigError, match=r"have \[16, 32, 64\] channels; they must be equal"):
        build_model(get_config(repo_root / "configs/bafe/tiny/fcos_tiny.yaml", opts))


@pytest.mark.parametrize("image_size", [(8, 12), (8, 4), (3, 16), (5, 5)])
def test_selection_is_batched_nms_of_the_boxes_inside_the_image(image_size):
    """Against a plain loop. Images are padded below, on the right, and on both sides."""
    model = make_model(test_score_thresh=0.3, max_detections_per_image=5)
    generator = torch.Generator().manual_seed(1)
    predictions = {k: [torch.randn(x.shape, generator=generator) for x in v] for k, v in written([]).items()}
    predictions["distances"] = [x.abs() * 2 + 0.1 for x in predictions["distances"]]
    found = detect(model, predictions, image_size)
    rows = []
    for level, logits in enumerate(predictions["logits"]):
        for cls, row, column in (logits[0].sigmoid() > 0.3).nonzero().tolist():
            left, top, right, bottom = predictions["distances"][level][0, :, row, column].tolist()
            x, y = ((i + 0.5) * STRIDES[level] for i in (column, row))
            box = [max(x - left, 0), max(y - top, 0), min(x + right, image_size[1]), min(y + bottom, image_size[0])]
            score = (
                logits[0, cls, row, column].sigmoid() * predictions["centerness"][level][0, 0, row, column].sigmoid()
            )
            if box[2] > box[0] and box[3] > box[1]:
                rows.append([*box, score.item(), cls])
    rows = torch.tensor(rows)
    kept = rows[batched_nms(rows[:, :4], rows[:, 4], rows[:, 5].long(), 0.5)][:5]
    torch.testing.assert_close(found.pred_boxes.tensor, kept[:, :4])
    torch.testing.assert_close(found.scores, kept[:, 4])
    assert found.pred_classes.tolist() == kept[:, 5].tolist()


@pytest.mark.parametrize("image_size", [(40, 56), (24, 56), (40, 24), (24, 24)])
@pytest.mark.parametrize("score_mode", ["product", "sqrt"])
def test_boxes_in_the_padding_take_no_place_among_the_detections(image_size, score_mode):
    """Points in the padding have the best scores; all 20 places still go to boxes of the image."""
    model = make_model(
        1, test_score_thresh=0.05, test_nms_thresh=1.0, max_detections_per_image=20, score_mode=score_mode
    )
    sizes = [(10, 14), (5, 7)]
    predictions = {
        "logits": [torch.zeros(1, 1, *size) for size in sizes],
        "distances": [torch.ones(1, 4, *size) for size in sizes],
        "centerness": [torch.zeros(1, 1, *size) for size in sizes],
    }
    for level, stride in enumerate(STRIDES):
        rows, columns = (-(-edge // stride) for edge in image_size)
        predictions["logits"][level][..., rows:, :] = 5.0
        predictions["logits"][level][..., columns:] = 5.0
    images = ImageList(torch.zeros(1, 3, 40, 56), [image_size])
    (found,) = model.forward_inference(images, [], predictions)
    assert len(found) == 20
    assert found.pred_boxes.nonempty().all()
    boxes, scores, _ = model.decode(predictions, torch.tensor([image_size]))
    empty = ~(boxes[0, :, 2:] > boxes[0, :, :2]).all(1)
    assert empty.sum() == sum(
        h * w - (-(-image_size[0] // s)) * (-(-image_size[1] // s)) for (h, w), s in zip(sizes, STRIDES)
    )
    assert (scores[0, empty] == -1).all()


def test_every_level_keeps_its_own_batch_statistics():
    """What is tested is what was trained: after one pass over a batch, evaluation repeats it."""
    torch.manual_seed(0)
    head = FCOSHead(8, num_levels=2, num_classes=1, num_convs=2, norm="BN")
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the last batch
            nn.init.uniform_(module.weight)
    features = [torch.randn(2, 8, 32, 32), 5 + 3 * torch.randn(2, 8, 16, 16)]
    trained, tested = head.train()(features), head.eval()(features)
    for name, levels in trained.items():
        for a, b in zip(levels, tested[name]):
            torch.testing.assert_close(a, b, rtol=0.01, atol=1e-4)
    first, second = head.cls_tower[0].norm
    assert first.weight is second.weight
    assert first.bias is second.bias
    assert (second.running_var / first.running_var).min() > 3
    assert sum(p.numel() for p in head.cls_tower.parameters()) == 2 * (8 * 8 * 9 + 8 + 8)


def test_statistics_in_common_fill_every_level():
    """A file of version 0.4: one norm per convolution."""
    head = FCOSHead(8, num_levels=3, num_classes=1, num_convs=1, norm="BN")
    old = FCOSHead(8, num_levels=1, num_classes=1, num_convs=1, norm="BN").state_dict()
    old["cls_tower.0.norm.running_mean"] += 2.0
    old |= {f"scales.{level}": torch.ones(()) for level in (1, 2)}
    assert head.load_state_dict(old) == ([], [])
    assert all((norm.running_mean == 2).all() for norm in head.cls_tower[0].norm)
    assert "cls_tower.0.norm.running_mean" in old  # the file's content is left as it is


def test_weights_in_common_are_saved_for_every_level(tmp_path):
    head = FCOSHead(8, num_levels=2, num_classes=1, num_convs=1, norm="BN")
    write_safetensors(tmp_path / "head.safetensors", head.state_dict(), {})
    assert set(read_safetensors(tmp_path / "head.safetensors")["model"]) == set(head.state_dict())


@pytest.mark.parametrize("norm", ["GN", ""])
def test_other_norms_are_common_to_the_levels(norm):
    head = FCOSHead(32, num_levels=3, num_classes=1, num_convs=1, norm=norm)
    assert not isinstance(head.cls_tower[0].norm, nn.ModuleList)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NUM_CLASSES", 0, "is 0; it must be at least 1"),
        ("PRIOR_PROB", 0.0, "is 0.0; it must be above 0 and below 1"),
        ("PRIOR_PROB", 1.0, "is 1.0; it must be above 0 and below 1"),
        ("CENTER_SAMPLING_RADIUS", -1.0, "is -1.0; it must be at least 0"),
        ("NORM", "XN", "is 'XN'; known are '', 'BN', 'FrozenBN', 'GN', 'LN', 'SyncBN'"),
    ],
)
def test_values_out_of_range_are_named(key, value, message):
    with pytest.raises(ConfigError, match=f"MODEL.FCOS.{key} {message}"):
        head_arguments(get_config(None, [f"MODEL.FCOS.{key}", value]), [ShapeSpec(channels=8, stride=8)])


@pytest.mark.parametrize("ranges", ["((64, 16), (16, 64), (64, 512))", "((-1, 16), (16, 64), (64, 63.5))"])
def test_ranges_that_no_target_has_are_refused(repo_root, ranges):
    options = ["MODEL.DEVICE", "cpu", "MODEL.FCOS.REGRESS_RANGES", ranges]
    with pytest.raises(ConfigError, match=r"MODEL\.FCOS\.REGRESS_RANGES, the end of a range, is .* at least 64"):
        build_model(get_config(repo_root / "configs/baselines/tiny/fcos_tiny.yaml", options))
