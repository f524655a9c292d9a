"""Every configuration builds, takes one training step, and gives detections."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.solver import build_optimizer

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(
    str(path.relative_to(ROOT / "configs"))
    for path in (ROOT / "configs").rglob("*.yaml")
    if not path.name.startswith("Base-")
)
FAST = [name for name in CONFIGS if "tiny" in name]


def sample(seed, size=96):
    rng = np.random.default_rng(seed)
    corner = torch.from_numpy(rng.integers(8, size - 24, (3, 2))).float()
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.cat([corner, corner + torch.tensor([[5.0, 6], [9, 9], [14, 12]])], dim=1))
    instances.gt_classes = torch.zeros(3, dtype=torch.long)
    return {
        "image": torch.from_numpy(rng.integers(0, 255, (3, size, size))).float(),
        "instances": instances,
        "sem_seg": torch.from_numpy(rng.integers(0, 2, (size, size))),
        "height": size,
        "width": size,
        "metadata": {"platform": "Air", "band": "LWIR", "width": size, "height": size},
    }


def one_step(name):
    torch.manual_seed(0)
    cfg = get_config(ROOT / "configs" / name, ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    before = {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}
    with EventStorage():
        losses = model.train()([sample(0), sample(1)])
    total = sum(losses.values())
    assert torch.isfinite(total), losses
    total.backward()
    without = [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None]
    # Only what the published models leave untrained as well.
    assert all(".exchange.mask." in k for k in without), without
    optimizer.step()
    assert any(not torch.equal(before[k], p) for k, p in model.named_parameters() if p.requires_grad)
    with torch.no_grad():
        (result,) = model.eval()([sample(2)])
    assert torch.isfinite(result["instances"].pred_boxes.tensor).all()


def test_there_are_the_named_configurations():
    wanted = ["auxdet/cascade_rpn_r50_fpn.yaml", "bafe/fcos_r18_fpn.yaml", "auxbafe_r50_fpn.yaml"]
    wanted += [f"auxdet/auxdet_r{d}_fpn.yaml" for d in (18, 34, 50, 101)]
    wanted += [f"bafe/bafe_r{d}_fpn.yaml" for d in (18, 34, 50, 101)]
    assert set(wanted) <= set(CONFIGS)


@pytest.mark.parametrize("name", FAST)
def test_tiny_configuration(name):
    one_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(CONFIGS) - set(FAST)))
def test_configuration(name):
    one_step(name)
