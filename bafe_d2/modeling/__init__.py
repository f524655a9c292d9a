"""Model parts of BAFE-Net; importing registers them."""

from .background import sky_loss, stack_sky_masks
from .bafe_head import BAFEHead, CrossTask
from .feature_exchange import FeatureExchange
from .large_selective_kernel import LargeSelectiveKernel
from .meta_arch import BackgroundRCNN, BAFENet
from .roi_heads import ExchangeROIHeads, ExchangeSegHead

__all__ = [
    "BAFEHead",
    "BAFENet",
    "BackgroundRCNN",
    "CrossTask",
    "ExchangeROIHeads",
    "ExchangeSegHead",
    "FeatureExchange",
    "LargeSelectiveKernel",
    "sky_loss",
    "stack_sky_masks",
]
