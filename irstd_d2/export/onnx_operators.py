"""ONNX forms of this project's operators. Needs onnxscript, of the extra ``export``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnxscript import opset20

from ..modeling.decoding import INVALID

_ALL = 2**31 - 1
op: Any = opset20  # its type hints know nothing of Python's own numbers


def nms_mask(boxes: Any, scores: Any, groups: Any, num_groups: int, threshold: float) -> Any:
    """``irstd_d2.export.candidates.nms_mask`` by ONNX's operator, which knows images and groups itself."""
    ids = op.Constant(value=onnx.numpy_helper.from_array(_column(num_groups)))
    per_group = op.Where(op.Equal(op.Unsqueeze(groups, [1]), ids), op.Unsqueeze(scores, [1]), _scalar(INVALID))
    # Rows of image, group, box. What has a score of INVALID is not there.
    selected = op.NonMaxSuppression(boxes, per_group, [_ALL], _vector(threshold), _vector(INVALID / 2))
    position = op.Gather(selected, [0, 2], axis=1)
    ones = op.Expand(_scalar(1.0), op.Slice(op.Shape(position), [0], [1]))
    zeros = op.Expand(_scalar(0.0), op.Shape(scores))
    return op.Cast(op.ScatterND(zeros, position, ones), to=onnx.TensorProto.BOOL)


def _column(count: int):
    return torch.arange(count).view(1, count, 1).numpy()


def _scalar(value: float) -> Any:
    return op.Constant(value_float=value)


def _vector(value: float) -> Any:
    return op.Constant(value_floats=[value])


TRANSLATIONS: dict[Callable, Callable] = {torch.ops.irstd_d2.nms_mask.default: nms_mask}
