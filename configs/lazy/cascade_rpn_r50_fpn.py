import torch
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from .common.cascade_rpn import model  # noqa: F401
from .common.data import wideirstd as dataloader  # noqa: F401
from .common.schedule import steps
from .common.train import training

# 12 epochs of 7,000 images, four at a time. Some published modules never run.
train = training(12 * 1750, 1750, "./output/lazy_cascade_rpn_r50_fpn", find_unused_parameters=True)

lr_multiplier = steps(1750, 12, (8, 11), warmup_factor=0.001, warmup_method="linear")

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0001), lr=0.005, momentum=0.9, weight_decay=0.0001
)
