"""Model parts of BAFE-Net; importing registers them."""

from .bafe_head import BAFEHead, CrossTask
from .feature_exchange import FeatureExchange
from .large_selective_kernel import LargeSelectiveKernel
from .meta_arch import BAFENet

__all__ = ["BAFEHead", "BAFENet", "CrossTask", "FeatureExchange", "LargeSelectiveKernel"]
