"""M2DM and LEEM on other backbones than ResNets, in whole detectors."""

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from auxdet_d2.metadata import MetadataBatch
from auxdet_d2.modeling import AuxDetBackbone, AuxDetFPN, conditioned_parts
from irstd_d2 import get_config
from irstd_d2.engine.checkpoint import IRSTDCheckpointer

FOUR = MetadataBatch(
    torch.tensor([0, 1, 2, -1]), torch.tensor([0, 1, -1, 2]), torch.tensor([[64.0, 96], [512, 512], [0, 0], [9, 9]])
)
KINDS = {"swin": AuxDetFPN, "vit": AuxDetBackbone}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def cfg(kind, repo_root):
    return get_config(repo_root / f"configs/auxdet/tiny/auxdet_{kind}_tiny.yaml", ["MODEL.DEVICE", "cpu"])


def sample(height, width, **metadata):
    instances = Instances((height, width))
    instances.gt_boxes, instances.gt_classes = Boxes(torch.tensor([[8.0, 9, 12, 14]])), torch.tensor([0])
    image = torch.rand(3, height, width) * 255
    return {"image": image, "height": height, "width": width, "instances": instances, "metadata": metadata}


def test_metadata_alone_changes_the_refined_levels(kind, cfg):
    backbone = build_model(cfg).eval().backbone
    assert isinstance(backbone, KINDS[kind])
    assert conditioned_parts(backbone) == [backbone]
    x = torch.randn(4, 3, 48, 64)
    with torch.no_grad():
        first, second = backbone(x, FOUR), backbone(x, FOUR._replace(platform=FOUR.platform.flip(0)))
    same = {name: torch.equal(first[name], second[name]) for name in first}
    assert same == {"p2": False, "p3": False, **({"p4": True} if kind == "vit" else {})}


def test_a_batch_equals_its_images_one_by_one(cfg):
    backbone = build_model(cfg).eval().backbone
    x = torch.randn(4, 3, 32, 64)
    with torch.no_grad():
        together = backbone(x, FOUR)
        for i in range(4):
            alone = backbone(x[i : i + 1], MetadataBatch(*(t[i : i + 1] for t in FOUR)))
            for name, feature in alone.items():
                torch.testing.assert_close(feature, together[name][i : i + 1], rtol=1e-4, atol=1e-5)


def test_one_image_of_odd_size_trains_every_parameter_and_is_detected(cfg):
    model = build_model(cfg).train()
    with EventStorage():
        losses = model([sample(50, 71, platform="Air", band="LWIR")])
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    idle = [name for name, p in model.backbone.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    model.eval()
    with torch.no_grad():
        (result,) = model([sample(50, 71, platform="Air")])
    assert result["instances"].image_size == (50, 71)


def test_checkpoint_round_trip(cfg, tmp_path):
    torch.manual_seed(1)
    first = build_model(cfg).eval()
    IRSTDCheckpointer(first, str(tmp_path)).save("model_final")
    second = build_model(cfg).eval()
    x = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        assert not torch.equal(first.backbone(x)["p2"], second.backbone(x)["p2"])
        IRSTDCheckpointer(second).resume_or_load(str(tmp_path / "model_final.pth"), resume=False)
        assert torch.equal(first.backbone(x)["p2"], second.backbone(x)["p2"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_full_precision(cfg, dtype):
    backbone = build_model(cfg).eval().backbone
    x = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        expected = backbone(x)
        with torch.autocast("cpu", dtype=dtype):
            outputs = backbone(x)
    for name, feature in outputs.items():
        assert (feature.float() - expected[name]).norm() < 0.05 * expected[name].norm(), name


@pytest.mark.parametrize("name", ["build_auxdet_fpn_backbone", "build_auxdet_backbone"])
def test_on_an_efficientnet(repo_root, name):
    options = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", name, "MODEL.FPN.OUT_FEATURES", []]
    options += ["MODEL.BACKBONE.BOTTOM_UP", "build_efficientnet_lite0_backbone"]
    backbone = build_backbone(get_config(repo_root / "configs/auxdet/tiny/auxdet_tiny.yaml", options)).eval()
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        known, unknown = backbone(x, FOUR), backbone(x)
    assert list(known) == list(backbone.output_shape())
    assert [torch.equal(a, b) for a, b in zip(known.values(), unknown.values())] == [False, False, True, True]
