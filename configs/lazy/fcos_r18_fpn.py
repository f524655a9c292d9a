from dadaptation import DAdaptAdam
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from .common.data import densesirst as dataloader  # noqa: F401
from .common.fcos import model  # noqa: F401
from .common.schedule import steps
from .common.train import training

# 20 epochs of 768 images, each three times, two at a time.
train = training(20 * 1152, 1152, "./output/lazy_fcos_r18_fpn")

lr_multiplier = steps(1152, 20, (8, 16), warmup_factor=1 / 3, warmup_method="constant")

optimizer = L(DAdaptAdam)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0, weight_decay_bias=0.0),
    lr=1.0,
    weight_decay=0.05,
    decouple=True,
)
