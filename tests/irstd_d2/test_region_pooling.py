"""Regions are pooled where their boxes are, in mixed precision as without."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from irstd_d2 import get_config
from irstd_d2.engine import IRSTDTrainer
from irstd_d2.modeling.region_pooling import pool_exactly


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scales", [(1 / 4,), (1 / 4, 1 / 8)])
def test_pooled_at_the_places_of_the_boxes(dtype, scales):
    pooler = ROIPooler(2, scales, 2, "ROIAlignV2")
    pool_exactly(pooler)
    pool_exactly(pooler)
    assert len(pooler._forward_pre_hooks) == 1
    # A map of its own columns: what is pooled is where it was read.
    levels = [torch.arange(1200 * s).expand(1, 1, 8, -1) / s for s in scales]
    boxes = [Boxes(torch.tensor([[517.3, 4.0, 521.3, 8.0], [1025.2, 8.0, 1031.2, 12.0]]))]
    expected = pooler(levels, boxes)
    assert expected.mean((1, 2, 3)).tolist() == pytest.approx([519.3 - 2, 1028.2 - 2])
    with torch.autocast("cpu", dtype=dtype):
        actual = copy.deepcopy(pooler)([level.to(dtype).float().to(dtype) for level in levels], boxes)
    rounded = pooler([level.to(dtype).float() for level in levels], boxes)
    torch.testing.assert_close(actual, rounded, rtol=0, atol=0)


@pytest.mark.parametrize(
    "config",
    ["auxdet/tiny/auxdet_tiny.yaml", "bafe/tiny/exchange_rcnn_tiny.yaml", "baselines/tiny/faster_rcnn_tiny.yaml"],
)
def test_the_two_stage_detectors_train_so_in_mixed_precision(repo_root, config):
    cfg = get_config(repo_root / "configs" / config, ["MODEL.DEVICE", "cpu"])
    build = IRSTDTrainer.build_model if config.startswith("baselines") else build_model
    model = build(cfg)
    (pooler,) = (module for module in model.modules() if isinstance(module, ROIPooler))
    seen = []
    for align in pooler.level_poolers:
        align.register_forward_pre_hook(lambda _, args: seen.append([x.dtype for x in args]))
    instances = Instances((64, 64))
    instances.gt_boxes, instances.gt_classes = Boxes(torch.tensor([[30.3, 20.0, 35.3, 26.0]])), torch.zeros(1).long()
    sample = {"image": torch.rand(3, 64, 64) * 255, "instances": instances, "sem_seg": torch.ones(64, 64).long()}
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([sample, sample])
    sum(losses.values()).backward()
    assert seen
    assert all(dtypes == [torch.float32, torch.float32] for dtypes in seen)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert isinstance(copy.deepcopy(model), nn.Module)
