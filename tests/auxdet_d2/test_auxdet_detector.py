"""AuxDet as a detector: metadata matters, unknown works, batches do not, any meta-architecture can have it."""

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from auxdet_d2.modeling import condition_on_metadata
from irstd_d2 import get_config
from irstd_d2.errors import ConfigError

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
    """Somebody else's meta-architecture, which knows nothing of metadata."""

    def __init__(self, cfg):
        super().__init__()
        from detectron2.modeling import build_backbone
        from detectron2.structures import ImageList

        self.backbone, self.to_images = build_backbone(cfg), ImageList.from_tensors

    def preprocess_image(self, batched_inputs):
        return self.to_images([x["image"] / 255 for x in batched_inputs], self.backbone.size_divisibility)

    def forward(self, batched_inputs):
        return self.backbone(self.preprocess_image(batched_inputs).tensor)["p2"]


def test_any_meta_architecture_can_have_metadata(repo_root):
    options = ["MODEL.META_ARCHITECTURE", "MetadataConditionedModel"]
    model = tiny(repo_root, *options, "MODEL.METADATA.META_ARCHITECTURE", "ThirdPartyHeatmap").eval()
    assert isinstance(model, ThirdPartyHeatmap)
    with torch.no_grad():
        air, space = model([sample(0, AIR)]), model([sample(0, SPACE)])
    assert not torch.allclose(air, space)
    assert condition_on_metadata(type(model)) is type(model)
    assert condition_on_metadata(ThirdPartyHeatmap) is type(model)


def test_a_backbone_without_metadata_is_refused(repo_root):
    with pytest.raises(ConfigError, match="metadata"):
        detect(tiny(repo_root, "MODEL.BACKBONE.NAME", "build_irstd_resnet_fpn_backbone"), sample(0, AIR))


def test_a_name_that_takes_metadata_itself_is_refused(repo_root):
    options = ["MODEL.META_ARCHITECTURE", "MetadataConditionedModel", "MODEL.METADATA.META_ARCHITECTURE", "AuxDet"]
    with pytest.raises(ConfigError, match="takes metadata itself"):
        tiny(repo_root, *options)
