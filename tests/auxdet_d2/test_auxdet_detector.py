"""AuxDet as a detector: metadata matters, unknown works, batches do not, any meta-architecture can have it."""

import copy
import pickle

import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    GeneralizedRCNN,
    GeneralizedRCNNWithTTA,
    RetinaNet,
    build_backbone,
    build_model,
)
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats
from torch import nn

import auxdet_d2.export  # noqa: F401  registers
from auxdet_d2.modeling import AuxDet, MetadataConditionedModel
from irstd_d2 import get_config
from irstd_d2.data.classes import num_classes_of
from irstd_d2.errors import ConfigError
from irstd_d2.export.graphs import region_candidates

AIR = {"platform": "Air", "band": "LWIR", "width": 256, "height": 256}
SPACE = {"platform": "Space", "band": "NIR", "width": 1024, "height": 1024}


def tiny(repo_root, *options):
    torch.manual_seed(0)
    config = get_config(repo_root / "configs/auxdet/tiny/auxdet_tiny.yaml", ["MODEL.DEVICE", "cpu", *options])
    return build_model(config)


def sample(seed, metadata, size=(96, 128)):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, *size, generator=generator) * 60
    image[:, 40:45, 50:56] += 150
    instances = Instances(size)
    instances.gt_boxes, instances.gt_classes = Boxes(torch.tensor([[50.0, 40, 56, 45]])), torch.zeros(1).long()
    return {"image": image, "instances": instances, "height": size[0], "width": size[1], "metadata": metadata}


def detect(model, *samples):
    with torch.no_grad():
        return [result["instances"] for result in model.eval()(list(samples))]


def test_changing_only_the_metadata_changes_the_detections(repo_root):
    model = tiny(repo_root)
    (air,) = detect(model, sample(0, AIR))
    (again,) = detect(model, sample(0, AIR))
    (space,) = detect(model, sample(0, SPACE))
    assert len(air) > 0
    torch.testing.assert_close(air.scores, again.scores, rtol=0, atol=0)
    assert len(air) != len(space) or not torch.allclose(air.scores, space.scores, atol=1e-5)


@pytest.mark.parametrize("metadata", [None, {}, {"platform": "Moon", "band": None, "width": 7, "height": 9}])
@pytest.mark.parametrize("unknown", ["zero", "learned"])
def test_unknown_metadata_works(repo_root, metadata, unknown):
    model = tiny(repo_root, "MODEL.AUXDET.ENCODER.UNKNOWN", unknown)
    (found,) = detect(model, sample(0, metadata))
    assert torch.isfinite(found.pred_boxes.tensor).all()


@pytest.mark.parametrize("norm", ["BN", "LN"])
def test_a_batch_of_one_trains(repo_root, norm):
    model = tiny(repo_root, "MODEL.AUXDET.ENCODER.NORM", norm).train()
    with EventStorage():
        losses = model([sample(0, AIR)])
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.backbone.refinement.m2dm["res2"].dynamic_mlp.layers[0].weights.weight.grad.abs().sum() > 0


def test_a_mixed_batch_equals_the_images_one_by_one(repo_root):
    model = tiny(repo_root)
    samples = [sample(0, AIR), sample(1, SPACE), sample(2, None), sample(3, {"band": "SWIR"})]
    together = detect(model, *samples)
    for one, expected in zip(samples, together):
        (alone,) = detect(model, one)
        assert len(alone) == len(expected)
        torch.testing.assert_close(alone.scores, expected.scores, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=1e-5, atol=1e-3)


def test_images_without_targets_train(repo_root):
    model = tiny(repo_root).train()
    empty = sample(0, AIR)
    empty["instances"] = empty["instances"][:0]
    for batch in ([empty], [empty, sample(1, SPACE)]):
        with EventStorage():
            losses = model(batch)
        assert all(torch.isfinite(loss) for loss in losses.values())
        sum(losses.values()).backward()


@META_ARCH_REGISTRY.register()
class ThirdPartyHeatmap(nn.Module):
    """Somebody else's meta-architecture, which knows nothing of metadata, prepares its images itself, and in parts."""

    def __init__(self, cfg):
        super().__init__()
        self.backbone = build_backbone(cfg)

    def forward(self, batched_inputs):
        return self._heatmap(batched_inputs)

    def inference(self, batched_inputs, sign=1):
        return sign * self._heatmap(batched_inputs)

    def _heatmap(self, batched_inputs):
        images = [x["image"] / 255 for x in batched_inputs]
        return self.backbone(ImageList.from_tensors(images, self.backbone.size_divisibility).tensor)["p2"]


@META_ARCH_REGISTRY.register()
class OwnPreprocessing(RetinaNet):
    """A meta-architecture that replaces ``preprocess_image``."""

    def preprocess_image(self, batched_inputs):
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(images, 128)


CONDITIONED = ["MODEL.META_ARCHITECTURE", "MetadataConditionedModel", "MODEL.METADATA.META_ARCHITECTURE"]
RETINA = [
    *("MODEL.RETINANET.IN_FEATURES", ["p2", "p3"], "MODEL.RETINANET.NUM_CLASSES", 1),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16]], "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
]


def test_any_meta_architecture_can_have_metadata(repo_root):
    model = tiny(repo_root, *CONDITIONED, "ThirdPartyHeatmap").eval()
    assert isinstance(model, MetadataConditionedModel)
    assert isinstance(model.model, ThirdPartyHeatmap)
    with torch.no_grad():
        air, space = model([sample(0, AIR)]), model([sample(0, SPACE)])
        assert not torch.allclose(air, space)
        torch.testing.assert_close(model.inference([sample(0, AIR)], sign=-1), -air)
        both = model([sample(0, AIR), sample(0, SPACE)])
    torch.testing.assert_close(both, torch.cat([air, space]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["RetinaNet", "OwnPreprocessing"])
def test_a_dense_detector_with_metadata(repo_root, name):
    model = tiny(repo_root, *CONDITIONED, name, *RETINA)
    assert num_classes_of(model) == (1, "MODEL.RETINANET.NUM_CLASSES")
    (air,), (space,) = detect(model, sample(0, AIR)), detect(model, sample(0, SPACE))
    assert not torch.equal(air.scores, space.scores)
    with EventStorage():
        losses = model.train()([sample(0, AIR)])
    assert set(losses) == {"loss_cls", "loss_box_reg"}


def test_weights_bear_the_same_names_with_and_without_the_wrapper(repo_root):
    model = tiny(repo_root, *CONDITIONED, "RetinaNet", *RETINA)
    alone = tiny(repo_root, "MODEL.META_ARCHITECTURE", "RetinaNet", *RETINA)
    assert list(model.state_dict()) == list(alone.state_dict())
    assert not any(model.load_state_dict(alone.state_dict()))
    assert model.num_classes == 1  # an attribute of the model inside
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = model.no_such_thing


@pytest.mark.parametrize("options", [[], [*CONDITIONED, "RetinaNet", *RETINA]])
def test_models_survive_a_copy_and_a_pickle(repo_root, options):
    model = tiny(repo_root, *options)
    (expected,) = detect(model, sample(0, AIR))
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301  its own
        assert type(again) is type(model)
        (found,) = detect(again, sample(0, AIR))
        assert torch.equal(found.scores, expected.scores)


def test_the_vocabulary_is_an_argument(repo_root):
    model = tiny(repo_root, "MODEL.METADATA.BANDS", ["MWIR", "LWIR"])
    assert isinstance(model, AuxDet)
    assert model.vocabulary.bands.names == ("MWIR", "LWIR")
    parts = {
        "backbone": model.backbone,
        "proposal_generator": model.proposal_generator,
        "roi_heads": model.roi_heads,
        "pixel_mean": [0.0, 0, 0],
        "pixel_std": [1.0, 1, 1],
    }
    lazy = instantiate(LazyCall(AuxDet)(**parts, vocabulary=model.vocabulary))
    assert type(lazy) is AuxDet
    assert lazy.vocabulary.bands.index("MWIR") == 0
    wrapped = instantiate(
        LazyCall(MetadataConditionedModel)(model=GeneralizedRCNN(**parts), vocabulary=lazy.vocabulary)
    )
    (found,), (expected,) = detect(wrapped, sample(0, AIR)), detect(lazy, sample(0, AIR))
    assert torch.equal(found.scores, expected.scores)
    with pytest.raises(ConfigError, match=r"\(3, 2, {}\) and \(3, 3, {}\)"):
        AuxDet(**parts)


def test_detectron2s_test_time_augmentation_keeps_the_metadata(repo_root):
    options = ["MODEL.MASK_ON", False, "TEST.AUG.MIN_SIZES", (96,), "TEST.AUG.FLIP", False]
    cfg = get_config(repo_root / "configs/auxdet/tiny/auxdet_tiny.yaml", ["MODEL.DEVICE", "cpu", *options])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    augmented = GeneralizedRCNNWithTTA(cfg, model)
    with torch.no_grad():
        air, space = (augmented([sample(0, metadata)])[0]["instances"] for metadata in (AIR, SPACE))
    assert len(air)
    assert len(air) != len(space) or not torch.allclose(air.scores, space.scores, atol=1e-5)


def test_a_backbone_without_metadata_is_refused(repo_root):
    with pytest.raises(ConfigError, match="takes no metadata"):
        tiny(repo_root, "MODEL.BACKBONE.NAME", "build_irstd_resnet_fpn_backbone")


@pytest.mark.parametrize("name", ["AuxDet", "MetadataConditionedModel"])
def test_a_name_that_takes_metadata_itself_is_refused(repo_root, name):
    with pytest.raises(ConfigError, match="takes metadata itself"):
        tiny(repo_root, *CONDITIONED, name)


def test_saved_configurations_with_predicted_metadata_still_load(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL: {AUXDET: {PREDICT: {ENABLED: false, FILL: soft}, M2DM: {MODE: channel}}}")
    assert get_config(path).MODEL.AUXDET.M2DM.MODE == "channel"


@pytest.mark.parametrize(("moved", "agnostic"), [((1, 0), True), ((0, 1), False), ((1, 1), True), ((-1, 0), False)])
def test_boxes_that_leave_the_image_take_no_place_among_the_detections(repo_root, monkeypatch, moved, agnostic):
    """Ten proposals with the best scores end in the padding, or left of the image; all 20 places go to the others."""
    options = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic, "MODEL.ROI_HEADS.NUM_CLASSES", 2)
    model = tiny(repo_root, *options, "MODEL.ROI_HEADS.NMS_THRESH_TEST", 1.0, "TEST.DETECTIONS_PER_IMAGE", 20).eval()
    predictor, size = model.roi_heads.box_predictor, (40, 56)
    deltas = torch.zeros(30, 1 if agnostic else 2, 4)
    deltas[:10, :, :2] = torch.tensor(moved, dtype=torch.float) * 1000
    logits = torch.zeros(30, 3)
    logits[:10, 0], logits[:, 1] = 5.0, -30.0
    monkeypatch.setattr(predictor, "forward", lambda _: (logits, deltas.flatten(1)))
    x, y = torch.arange(30) % 6 * 8.0, torch.arange(30) // 6 * 7.0
    boxes = torch.stack([x, y, x + 5, y + 5], dim=1)
    features = {name: torch.zeros(1, 32, 32, 32) for name in model.roi_heads.box_in_features}
    proposals = Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(30))
    with torch.no_grad():
        (found,) = model.roi_heads._forward_box(features, [proposals])
        exported = region_candidates(
            model.roi_heads, features, boxes[None], torch.ones(1, 30, dtype=torch.bool), torch.tensor([size])
        )
    torch.testing.assert_close(found.pred_boxes.tensor, boxes[10:])
    torch.testing.assert_close(found.scores, torch.full((20,), 0.5))
    assert (exported.scores[0].view(30, 2)[:10] == -1).all()
    torch.testing.assert_close(exported.scores[0].view(30, 2)[10:, 0], torch.full((20,), 0.5))


class Holder(nn.Module):
    """A module of a user around a detector, as DDP is."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector


@pytest.mark.parametrize("wrap", [Holder, nn.DataParallel, lambda model: Holder(Holder(model))])
def test_a_module_around_the_wrapper_loads_what_it_saves(repo_root, wrap):
    options = ["MODEL.META_ARCHITECTURE", "MetadataConditionedModel"]
    options += ["MODEL.METADATA.META_ARCHITECTURE", "GeneralizedRCNN"]
    first, second = (wrap(tiny(repo_root, *options)) for _ in range(2))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.5)
    saved = first.state_dict()
    assert not any(".model." in name for name in saved)
    second.load_state_dict(saved)
    for name, value in second.state_dict().items():
        torch.testing.assert_close(value, saved[name], rtol=0, atol=0)
    name = next(iter(saved))
    with pytest.raises(RuntimeError, match="Missing key"):
        second.load_state_dict({key: value for key, value in saved.items() if key != name})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        second.load_state_dict({**saved, name + "_": saved[name]})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ENCODER.SIZE_SCALE", 0.0, "must be above 0"),
        ("ENCODER.SIZE_SCALE", -1.0, "must be above 0"),
        ("ENCODER.EMBED_DIM", 0, "must be at least 1"),
        ("ENCODER.NUM_METADATA_LAYERS", -1, "must be at least 0"),
        ("ENCODER.NUM_FUSION_LAYERS", -1, "must be at least 0"),
        ("ENCODER.DROPOUT", 1.5, "must be at least 0 and at most 1"),
        ("DYNAMIC_MLP.NUM_LAYERS", 0, "must be at least 1"),
        ("DYNAMIC_MLP.BOTTLENECK", -1, "must be at least 0"),
        ("DYNAMIC_MLP.HIDDEN", 0, "must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_named(repo_root, key, value, message):
    with pytest.raises(ConfigError, match=f"MODEL.AUXDET.{key} is {value}; it {message}"):
        tiny(repo_root, f"MODEL.AUXDET.{key}", value)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (["MODEL.AUXDET.ENCODER.NORM", "BN"], True),
        (["MODEL.AUXDET.ENCODER.NORM", "BN", "MODEL.AUXDET.ENCODER.VISUAL", "high_level"], True),
        (["MODEL.AUXDET.ENCODER.NORM", "BN", "MODEL.AUXDET.ENCODER.VISUAL", "none"], False),
        (["MODEL.AUXDET.ENCODER.NORM", "LN"], False),
        (
            ["MODEL.AUXDET.ENCODER.NORM", "BN", "MODEL.AUXDET.M2DM.STAGES", ["res3"], "MODEL.AUXDET.LEEM.GATED", False],
            False,
        ),
    ],
)
def test_statistics_that_cannot_be_recomputed_are_refused_before_a_training(repo_root, options, refused):
    options = ["TEST.PRECISE_BN.ENABLED", True, *options]
    if refused:
        with pytest.raises(ConfigError, match=r"TEST\.PRECISE_BN\.ENABLED: the stages share"):
            tiny(repo_root, *options)
        return
    model = tiny(repo_root, *options).train()
    with EventStorage():
        update_bn_stats(model, [[sample(seed, AIR), sample(seed + 9, SPACE)] for seed in range(2)], 2)
