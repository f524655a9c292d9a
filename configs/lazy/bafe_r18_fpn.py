from detectron2.config import LazyCall as L

from bafe_d2.data import BAGCopyPaste, TargetLibrary
from bafe_d2.modeling import BAFEHead, BAFENet

from .fcos_r18_fpn import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model._target_ = BAFENet
model.head._target_ = BAFEHead
model.head.cross_task = {"fraction": 0.5, "mechanism": "channel", "selection": "dynamic", "adapter_width": 64}

train["output_dir"] = "./output/lazy_bafe_r18_fpn"
dataloader.train.mapper.augmentations.append(
    L(BAGCopyPaste)(
        library=L(TargetLibrary.from_datasets)(names=["densesirst_v2_trainval"], cache_dir="./output/target_library")
    )
)
