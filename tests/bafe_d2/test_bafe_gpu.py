"""FCOS and BAFE-Net on a GPU give what they give on a CPU, and train in bfloat16."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from bafe_d2.modeling import FeatureExchange
from irstd_d2 import get_config
from irstd_d2.modeling.fcos_targets import all_points, assign_targets

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none here"),
]
DEVICE = torch.device("cuda")


def test_targets_are_the_same():
    """Also of equal targets the same one is taken."""
    corner = torch.rand(3, 200, 2) * 120
    boxes = torch.cat([corner, corner + 4 + torch.rand(3, 200, 2) * 30], dim=-1)
    boxes[:, 100:] = boxes[:, :100]
    classes = torch.arange(200).expand(3, -1)
    results = []
    for device in (torch.device("cpu"), DEVICE):
        points = all_points([(32, 32), (16, 16)], [4, 8], [(-1, 16), (16, 64)], device)
        results.append(assign_targets(points, boxes.to(device), classes.to(device), 200))
    assert torch.equal(results[0].labels, results[1].labels.cpu())
    torch.testing.assert_close(results[0].distances, results[1].distances.cpu())


@pytest.mark.parametrize("selection", ["fixed", "random"])
@pytest.mark.parametrize("mechanism", ["channel", "spatial", "channel+spatial"])
def test_the_exchange_is_the_same(selection, mechanism):
    module = FeatureExchange(16, selection=selection, mechanism=mechanism, adapter_width=4).eval()
    inputs = torch.randn(2, 16, 9, 7), torch.randn(2, 16, 9, 7)
    expected = module(*inputs)
    for a, b in zip(module.to(DEVICE)(*(x.to(DEVICE) for x in inputs)), expected):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["fcos_tiny", "bafe_tiny", "exchange_rcnn_tiny"])
def test_a_step_in_bfloat16(repo_root, name):
    torch.manual_seed(0)
    model = build_model(get_config(repo_root / f"configs/bafe/tiny/{name}.yaml", ["MODEL.DEVICE", str(DEVICE)]))
    instances = Instances((96, 96), gt_boxes=Boxes(torch.tensor([[8.0, 8, 20, 18]])), gt_classes=torch.zeros(1).long())
    sample = {"image": torch.rand(3, 96, 96) * 255, "instances": instances, "sem_seg": torch.ones(96, 96).long()}
    with EventStorage():
        expected = model.train()([sample])
        with torch.autocast(DEVICE.type, torch.bfloat16):
            losses = model([sample])
    sum(losses.values()).backward()
    for key in ("loss_cls", "loss_sky"):
        if key in losses:
            assert losses[key].item() == pytest.approx(expected[key].item(), rel=0.05)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        result = model.eval()([sample])[0]
    assert torch.isfinite(result["instances"].pred_boxes.tensor).all()
