"""AuxDet's backbone under detectron2's RetinaNet, which knows nothing of metadata."""

import torch
from detectron2.modeling import build_model

import auxdet_d2  # noqa: F401  registers its parts
from irstd_d2 import get_config

cfg = get_config("configs/baselines/retinanet_r18_fpn.yaml")
cfg.MODEL.DEVICE = "cpu"
cfg.MODEL.META_ARCHITECTURE = "MetadataConditionedModel"
cfg.MODEL.METADATA.META_ARCHITECTURE = "RetinaNet"
cfg.MODEL.BACKBONE.NAME = "build_auxdet_resnet_fpn_backbone"
model = build_model(cfg).eval()

sample = {"image": torch.rand(3, 96, 128) * 255, "metadata": {"platform": "Air", "band": "LWIR"}}
with torch.no_grad():
    result = model([sample])[0]["instances"]
