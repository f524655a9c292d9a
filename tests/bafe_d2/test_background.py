"""Sky masks, the sky loss and the prediction in the original size, of both meta-architectures."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from loops import for_every

from bafe_d2.modeling import BAFEHead, BAFENet, sky_loss, stack_sky_masks
from bafe_d2.modeling.background import add_sky
from irstd_d2 import get_config
from irstd_d2.errors import ConfigError
from irstd_d2.modeling.fcos_targets import all_points

CPU = torch.device("cpu")
BAFE, RCNN = "bafe/tiny/bafe_tiny.yaml", "bafe/tiny/exchange_rcnn_tiny.yaml"


def make_model(repo_root, name, *opts):
    torch.manual_seed(0)
    return build_model(get_config(repo_root / "configs" / name, ["MODEL.DEVICE", "cpu", *opts]))


def sample(size=(64, 96), boxes=((8.0, 8, 14, 13), (40, 30, 52, 41)), *, sky=True, seed=0, **extra):
    generator = torch.Generator().manual_seed(seed)
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    result = {"image": torch.rand(3, *size, generator=generator) * 255, "instances": instances, **extra}
    if sky:
        result["sem_seg"] = torch.zeros(size, dtype=torch.long)
        result["sem_seg"][: size[0] // 2] = 1
    return result


def losses_of(model, samples):
    with EventStorage():
        return model.train()(samples)


def test_masks_are_padded_with_ignore():
    masks = stack_sky_masks([{"sem_seg": torch.tensor([[1, 0]])}, {"image": torch.zeros(3, 2, 3)}], (2, 3), CPU)
    assert masks.tolist() == [[[1, 0, 255], [255] * 3], [[255] * 3] * 2]


def test_the_loss_by_hand():
    # Masks of 2 x 4 on levels of 2 x 4 and 1 x 2, whose nearest pixels are those of the first row, columns 0 and 2.
    sky = torch.tensor([[[1, 0, 255, 0], [0, 1, 1, 0]]])
    fine = torch.arange(8.0).reshape(1, 1, 2, 4) / 4 - 1
    coarse = torch.tensor([[[[0.5, 3.0]]]])

    def entropy(logit, label):
        probability = 1 / (1 + math.exp(-float(logit)))
        return -math.log(probability if label else 1 - probability)

    terms = [entropy(v, t) for v, t in zip(fine.flatten(), sky.flatten()) if t != 255]
    terms.append(entropy(0.5, 1))  # the other pixel of the coarse level is ignored
    assert sky_loss([fine, coarse], sky).item() == pytest.approx(sum(terms) / 10)  # ignored pixels count here


def test_ignored_pixels_have_no_gradient():
    logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
    sky_loss([logits], torch.tensor([[[1, 255], [255, 0]]])).backward()
    assert (logits.grad[0, 0] != 0).tolist() == [[True, False], [False, True]]


def test_predictions_are_shown_in_the_original_size():
    # Two images in a batch of 8 x 16 pixels: the first 8 x 12, the second whole; logits of stride 4.
    logits = torch.full((2, 1, 2, 4), -4.0)
    logits[0, 0, :, 0] = 4.0  # four columns of sky
    results = [{}, {}]
    add_sky(results, logits, (8, 16), [(8, 12), (8, 16)], [{"height": 16, "width": 36}, {}])
    first, second = (result["sem_seg"] for result in results)
    assert first.shape == (2, 16, 36)
    assert second.shape == (2, 8, 16)
    torch.testing.assert_close(first.sum(0), torch.ones(16, 36))
    assert first.argmax(0)[:, :10].all()
    assert not first.argmax(0)[:, 16:].any()
    assert not second.argmax(0).any()


@for_every("name", [BAFE, RCNN])
def test_samples_without_a_mask_add_nothing(repo_root, name):
    model = make_model(repo_root, name)
    assert losses_of(model, [sample(sky=False)])["loss_sky"] == 0
    with_mask = losses_of(model, [sample()])["loss_sky"]
    half = losses_of(model, [sample(), sample(sky=False)])["loss_sky"]
    assert 0 < half < with_mask


@for_every("name", [BAFE, RCNN])
def test_batches_of_one_without_targets_train(repo_root, name):
    losses = losses_of(make_model(repo_root, name), [sample(boxes=())])
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)


@for_every("name", [BAFE, RCNN])
def test_the_weight_scales_the_sky_loss_alone(repo_root, name):
    plain, weighted = (
        losses_of(make_model(repo_root, name, "MODEL.BAFE.SKY_LOSS_WEIGHT", weight), [sample()])
        for weight in (1.0, 3.0)
    )
    assert weighted["loss_sky"].item() == pytest.approx(3 * plain["loss_sky"].item(), rel=1e-5)
    others = [k for k in plain if k.startswith(("loss_cls", "loss_rpn"))]
    assert others
    for key in others:
        torch.testing.assert_close(weighted[key], plain[key])


@for_every("name", [BAFE, RCNN])
@for_every("selection", ["dynamic", "straight_through"])
def test_mixed_precision_trains(repo_root, name, selection):
    model = make_model(repo_root, name, "MODEL.BAFE.EXCHANGE.SELECTION", selection)
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, [sample(seed=1), sample(seed=2)])
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    untrained = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert untrained == []


@for_every("name", [BAFE, RCNN])
def test_results_have_instances_and_sky_in_original_pixels(repo_root, name):
    model = make_model(repo_root, name).eval()
    inputs = [sample(height=100, width=150), sample((48, 64), seed=1)]
    with torch.no_grad():
        results = model(inputs)
    assert [r["sem_seg"].shape for r in results] == [(2, 100, 150), (2, 48, 64)]
    assert [r["instances"].image_size for r in results] == [(100, 150), (48, 64)]
    for result in results:
        torch.testing.assert_close(result["sem_seg"].sum(0), torch.ones(result["sem_seg"].shape[1:]))


@for_every("name", [BAFE, RCNN])
def test_segmentation_learns_to_tell_the_halves(repo_root, name):
    model = make_model(repo_root, name)
    one = sample((64, 64))
    one["image"][:, :32] *= 0.3
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.003)
    for _ in range(25):
        loss = losses_of(model, [one])["loss_sky"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    logits = model.eval()([one])[0]["sem_seg"].argmax(0)
    assert (logits == one["sem_seg"]).float().mean() > 0.9


@for_every("name", [BAFE, RCNN])
def test_sky_supervision_reaches_detection_only_through_the_exchange(repo_root, name):
    for enabled in (True, False):
        model = make_model(repo_root, name, "MODEL.BAFE.EXCHANGE.ENABLED", enabled)
        head = model.head if name == BAFE else model.roi_heads.seg_head
        assert (head.cross_task is not None) == enabled
        losses = losses_of(model, [sample()])
        loss = losses["loss_cls"]
        loss.backward()
        reached = any(p.grad is not None and p.grad.abs().sum() > 0 for p in head.seg_tower.parameters())
        assert reached == enabled


def test_a_head_without_configuration():
    head = BAFEHead(16, num_levels=2, num_classes=1, num_convs=1, norm="BN", cross_task={"adapter_width": 0})
    predictions = head([torch.randn(1, 16, 8, 8), torch.randn(1, 16, 4, 4)])
    assert [x.shape for x in predictions["sky"]] == [(1, 1, 8, 8), (1, 1, 4, 4)]
    assert set(predictions) == {"logits", "distances", "centerness", "sky"}


def test_distances_take_no_part_in_the_exchange(repo_root):
    model = make_model(repo_root, BAFE).eval()
    features = [torch.randn(1, 32, s, s) for s in (16, 8, 4)]
    with torch.no_grad():
        before = model.head(features)
        for parameter in (*model.head.cross_task.parameters(), *model.head.seg_tower.parameters()):
            parameter.add_(torch.randn_like(parameter))
        after = model.head(features)
    for name, levels in before.items():
        same = [torch.equal(a, b) for a, b in zip(levels, after[name])]
        assert all(same) if name == "distances" else not any(same), name


@pytest.mark.slow
def test_the_whole_head_compiles_without_a_break(repo_root):
    model = make_model(repo_root, BAFE)
    features = [torch.randn(2, 32, s, s) for s in (16, 8, 4)]
    for training in (True, False):
        torch._dynamo.reset()
        head = model.head.train(training)
        compiled = torch.compile(head, fullgraph=True, backend="eager")
        expected, found = head(features), compiled(features)
        for name, levels in expected.items():
            for a, b in zip(levels, found[name]):
                torch.testing.assert_close(a, b)


def test_the_batch_is_covered_at_any_stride(repo_root):
    """Masks have the size of the padded batch, whatever the finest level's stride."""
    for levels, ranges in ((["p2"], [(-1, 512)]), (["p3", "p4"], [(-1, 64), (64, 512)])):
        model = make_model(
            repo_root, BAFE, "MODEL.FCOS.IN_FEATURES", tuple(levels), "MODEL.FCOS.REGRESS_RANGES", tuple(ranges)
        )
        assert isinstance(model, BAFENet)
        stride = model.strides[0]
        predictions = {"sky": [torch.zeros(1, 1, 64 // stride, 96 // stride)]}
        assert model._covered(predictions) == (64, 96)
        points = all_points([(64 // stride, 96 // stride)], [stride], [(-1, 64)], CPU)
        assert points.center.amax(0).tolist() == [96 - stride / 2, 64 - stride / 2]
        assert torch.isfinite(sum(losses_of(model, [sample()]).values()))


def test_two_stage_detector_without_masks_is_refused(repo_root):
    model = make_model(repo_root, RCNN, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN")
    with pytest.raises(ValueError, match=r"set MODEL\.META_ARCHITECTURE to BackgroundRCNN"):
        losses_of(model, [sample()])


def test_exchange_heads_do_not_hold_themselves(repo_root):
    with pytest.raises(ConfigError, match=r"MODEL\.BAFE\.ROI_HEADS is ExchangeROIHeads itself"):
        make_model(repo_root, RCNN, "MODEL.BAFE.ROI_HEADS", "ExchangeROIHeads")


@for_every(
    ("key", "value", "message"),
    [
        ("ROI_HEADS", "MyHeads", "is 'MyHeads'; known are .*'StandardROIHeads'"),
        ("SEG_NORM", "XN", "is 'XN'; known are '', 'BN'"),
        ("SKY_LOSS_WEIGHT", -1.0, "is -1.0; it must be at least 0"),
    ],
)
def test_wrong_values_are_named(repo_root, key, value, message):
    with pytest.raises(ConfigError, match=f"MODEL.BAFE.{key} {message}"):
        make_model(repo_root, RCNN, f"MODEL.BAFE.{key}", value)


def test_the_exchange_stands_before_any_heads(repo_root):
    """Cascade R-CNN's heads, and boxes that are given, see exchanged features."""
    model = make_model(
        repo_root, RCNN, "MODEL.BAFE.ROI_HEADS", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True
    )
    assert sum(k.startswith("loss_cls") for k in losses_of(model, [sample()])) == 3
    assert "sem_seg" in model.eval()([sample()])[0]
    seen = []
    model.roi_heads.roi_heads.forward_with_given_boxes = lambda features, boxes: seen.append(features) or boxes
    with torch.no_grad():
        model.inference([sample()], detected_instances=[Instances((64, 96))], do_postprocess=False)
        features = model.backbone(model.preprocess_image([sample()]).tensor)
    assert set(seen[-1]) == set(features)
    assert not torch.equal(seen[-1]["p2"], features["p2"])


def test_raw_instances_of_the_two_stage_detector(repo_root):
    (found,) = make_model(repo_root, RCNN).eval().inference([sample()], do_postprocess=False)
    assert found.image_size == (64, 96)


def test_levels_of_unequal_width_are_refused(repo_root):
    opts = ["MODEL.BACKBONE.NAME", "build_irstd_resnet_backbone", "MODEL.RPN.IN_FEATURES", ["res4"]]
    opts += ["MODEL.ROI_HEADS.IN_FEATURES", ["res3", "res4"], "MODEL.ANCHOR_GENERATOR.SIZES", [[8]]]
    with pytest.raises(ConfigError, match=r"ROI_HEADS\.IN_FEATURES have \[32, 64\] channels"):
        make_model(repo_root, RCNN, *opts)


def test_scores_follow_the_probability_of_sky(repo_root):
    def detect(power):
        options = ["MODEL.DEVICE", "cpu", "MODEL.BAFE.SKY_SCORE_POWER", power, "MODEL.FCOS.SCORE_THRESH_TEST", 0.0]
        torch.manual_seed(0)
        model = build_model(get_config(repo_root / "configs/bafe/tiny/bafe_tiny.yaml", options)).eval()
        torch.nn.init.normal_(model.head.sky_logits.weight)
        images = model.preprocess_image([{"image": torch.rand(3, 64, 64) * 255}])
        features = model.backbone(images.tensor)
        predictions = model.head([features[name] for name in model.head_in_features])
        return predictions, model.decode(predictions, torch.tensor([[64, 64]]))

    with torch.no_grad():
        (predictions, plain), (_, squared) = detect(0.0), detect(2.0)
    torch.testing.assert_close(squared[0], plain[0])  # candidates are chosen by class score, whatever the power
    start = 0
    for logits, sky in zip(predictions["logits"], predictions["sky"]):
        part = slice(start, start + logits.numel())
        ratio = squared[1][0, part] / plain[1][0, part]
        torch.testing.assert_close(
            ratio.sort().values, (sky.sigmoid() ** 2).flatten().sort().values, rtol=1e-3, atol=1e-5
        )
        start += 1000  # places per level; those without a point hold nothing
        assert (plain[1][0, part.stop : start] == -1).all()


def test_a_negative_power_is_refused(repo_root):
    with pytest.raises(ConfigError, match=r"SKY_SCORE_POWER is -1"):
        build_model(
            get_config(
                repo_root / "configs/bafe/tiny/bafe_tiny.yaml",
                ["MODEL.DEVICE", "cpu", "MODEL.BAFE.SKY_SCORE_POWER", -1.0],
            )
        )


@pytest.mark.parametrize("values", [(0, 38), (0, 1, 2), (-1, 1)])
def test_what_is_no_mask_of_labels_is_refused(values):
    """detectron2's own mapper reads a palette mask as the brightness of its colours."""
    mask = torch.tensor(values).repeat(4, 1)
    with pytest.raises(ValueError, match=r"seen\.png: the sky mask has the values \["):
        stack_sky_masks([{"sem_seg": mask, "file_name": "seen.png"}], (4, 4), CPU)


@pytest.mark.parametrize(
    ("values", "told"), [((0, 255), "no sky"), ((0, 1, 255), ""), ((0, 0), ""), (None, "teaches no")]
)
def test_masks_that_teach_nothing_are_said(values, told, caplog):
    samples = [{} if values is None else {"sem_seg": torch.tensor(values).repeat(4, 1)}]
    stack_sky_masks(samples * 2, (4, 4), CPU)
    assert caplog.text.count(told) == 1 if told else not caplog.text
