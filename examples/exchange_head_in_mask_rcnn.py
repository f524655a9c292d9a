"""BAFE-Net's exchange with background segmentation before the box and mask heads of detectron2's Mask R-CNN."""

import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

import bafe_d2  # noqa: F401  registers its parts
from irstd_d2 import get_config

cfg = get_config("configs/bafe/tiny/exchange_rcnn_tiny.yaml", ["MODEL.DEVICE", "cpu"])
cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = True, "bitmask"
cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 2, 32
model = build_model(cfg)

mask = torch.zeros(1, 96, 96, dtype=torch.bool)
mask[0, 30:34, 40:45] = True
target = Instances((96, 96), gt_boxes=Boxes([[40, 30, 45, 34]]), gt_classes=torch.tensor([0]), gt_masks=BitMasks(mask))
sky = (torch.arange(96)[:, None] < 50).expand(96, 96).long()
sample = {"image": torch.rand(3, 96, 96) * 255, "instances": target, "sem_seg": sky}
with EventStorage():  # the trainer opens it in a training
    losses = model([sample])
