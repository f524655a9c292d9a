"""AuxDet's backbone in plain detectron2 Faster R-CNN, in a project of your own."""

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import auxdet_d2
from irstd_d2 import add_irstd_config

cfg = get_cfg()
add_irstd_config(cfg)
auxdet_d2.add_auxdet_config(cfg)
stages, levels = ["res2", "res3", "res4", "res5"], ["p2", "p3", "p4", "p5"]
cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "AuxDet", "MODEL.BACKBONE.NAME", "build_auxdet_resnet_fpn_backbone"])
cfg.merge_from_list(["MODEL.RESNETS.OUT_FEATURES", stages, "MODEL.FPN.IN_FEATURES", stages, "MODEL.DEVICE", "cpu"])
cfg.merge_from_list(["MODEL.RPN.IN_FEATURES", levels, "MODEL.ROI_HEADS.IN_FEATURES", levels, "MODEL.MASK_ON", False])
cfg.merge_from_list(["MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"])
cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64]]])
model = build_model(cfg).eval()

sample = {"image": torch.rand(3, 128, 128) * 255, "metadata": {"platform": "Space", "band": "NIR"}}
with torch.no_grad():
    result = model([sample])[0]["instances"]
