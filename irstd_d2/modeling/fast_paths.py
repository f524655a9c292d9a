"""When a hand-written form of an operation is faster than PyTorch's own, and when it must not be used.

Convolutions that CPU libraries do badly (deformable, depthwise with dilation) and fused gradients are written a second
time from operations that are fast. A graph that leaves this process or is optimised as a whole keeps PyTorch's own
operators: compilers fuse them, exporters and other run times know them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def in_graph() -> bool:
    """Whether the operations that now run are recorded: traced, exported or compiled."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def eager_on_cpu(x: Tensor) -> bool:
    """Whether a form written for CPUs serves: ``x`` lies on one, and nothing records the operations."""
    return x.device.type == "cpu" and not in_graph()
