"""Writing a model as TorchScript or ONNX, with the facts that running it needs."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..data.classes import ClassTable
from ..data.datasets import configured_classes
from ..errors import ConfigError, check_known
from ..files import write_atomically
from ..inference.optimization import fold_batch_norms
from .candidates import nms_mask_op
from .graphs import DetectionGraph, build_graph, example_inputs, input_names, metadata_vocabulary
from .runtime import FACTS_KEY

FORMATS = ("torchscript", "onnx")
OPSET = 20


@dataclass(frozen=True)
class FixedShape:
    """The only batch that a file takes.

    Attributes:
        num_images: N
        size: (height, width), multiples of the model's ``size_divisibility``.
    """

    num_images: int
    size: tuple[int, int]


def export_model(
    cfg: CfgNode,
    model: nn.Module,
    path: str | PathLike,
    *,
    format: str = "onnx",
    with_nms: bool = True,
    fixed: FixedShape | None = None,
    classes: ClassTable | None = None,
) -> None:
    """Write a model to a file that ``irstd_d2.export.runtime`` runs.

    Args:
        cfg: configuration of the model; says how images are prepared. One of plain detectron2 will do.
        model: with its weights; it is left as it is.
        path: the file; ``.onnx`` for that format.
        format: "torchscript" or "onnx".
        with_nms: whether non-maximum suppression is part of the file.
        fixed: the only shape that an ONNX file takes; ``None`` leaves number and size of the images free.
        classes: names and ids of what the model detects; by default those of the configuration's data sets.

    Raises:
        ConfigError: for an unknown format, a model or an option that cannot be exported, or classes of another number
            than the model's.
    """
    path = Path(path)
    check_known("the format", format, FORMATS)
    if (path.suffix == ".onnx") != (format == "onnx"):
        raise ConfigError(f"{path}: name ONNX files *.onnx, and only them, so that the runtime can tell them apart")
    if fixed and format != "onnx":
        raise ConfigError("a TorchScript file takes any number and size of images; leave the fixed shape out")
    model = copy.deepcopy(model).eval().to(memory_format=torch.contiguous_format)
    fold_batch_norms(model)
    with torch.no_grad():
        suppress = {"suppress": nms_mask_op} if format == "onnx" else {}
        graph = build_graph(model, with_nms=with_nms, **suppress)
        facts = json.dumps(model_facts(cfg, graph, fixed, classes), indent=1)
        if format == "onnx":
            _write_onnx(graph, path, facts, fixed)
        else:
            _write_torchscript(graph, path, facts)


def model_facts(
    cfg: CfgNode, graph: DetectionGraph, fixed: FixedShape | None = None, classes: ClassTable | None = None
) -> dict[str, Any]:
    """What a program must know to prepare inputs and read outputs; see ``export_model``."""
    table = _class_table(cfg, graph.final.num_classes, classes)
    return {
        "architecture": cfg.MODEL.META_ARCHITECTURE,
        "classes": list(table.names),
        "category_ids": list(table.ids),
        "inputs": input_names(graph),
        "outputs": output_names(graph),
        "preprocessing": {
            "channel_order": cfg.INPUT.FORMAT,
            "high_bit_depth": cfg.INPUT.get("HIGH_BIT_DEPTH", "full_range"),
            "resize": _resizing(cfg),
            "divisor": size_divisor(graph.model),
            "normalized_inside": True,
            "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": list(cfg.MODEL.PIXEL_STD),
        },
        "nms": {
            "inside": graph.with_nms,
            "threshold": graph.final.threshold,
            "max_detections": graph.final.max_detections,
        },
        "metadata": metadata_vocabulary(graph.model),
        "fixed_shape": fixed and {"images": fixed.num_images, "size": list(fixed.size)},
    }


def _resizing(cfg: CfgNode) -> dict[str, Any]:
    mode = cfg.INPUT.get("RESIZE_MODE", "shortest_edge")  # detectron2 knows this one alone
    if mode == "fixed":
        return {"mode": mode, "size": list(cfg.INPUT.FIXED_SIZE)}
    if mode == "scale":
        return {"mode": mode, "factor": cfg.INPUT.SCALE}
    if mode == "shortest_edge":
        return {"mode": mode, "shortest": cfg.INPUT.MIN_SIZE_TEST, "longest": cfg.INPUT.MAX_SIZE_TEST}
    raise ConfigError(f"INPUT.RESIZE_MODE is {mode!r}; exported files know 'fixed', 'scale', 'shortest_edge'")


def output_names(graph: DetectionGraph) -> list[str]:
    """Names of the outputs of a graph, in order."""
    return ["boxes", "scores", "classes", *graph.extra_names]


def size_divisor(model: nn.Module) -> int:
    """What the sides of a batch must be multiples of."""
    backbone: Any = model.backbone
    return max(1, backbone.size_divisibility)


def _class_table(cfg: CfgNode, num_classes: int, classes: ClassTable | None) -> ClassTable:
    source = "the given table"
    if classes is None and "CLASSES" in cfg.DATASETS:
        classes, source = configured_classes(cfg), "the configuration's DATASETS"
    if classes is None:
        return ClassTable.from_names(["target"] if num_classes == 1 else [f"class {i}" for i in range(num_classes)])
    if len(classes.names) != num_classes:
        raise ConfigError(
            f"the model has {num_classes} classes, but {source} has {len(classes.names)} "
            f"({', '.join(classes.names)}); name the model's own in DATASETS.CLASSES"
        )
    return classes


def _trace_size(graph: DetectionGraph) -> tuple[int, int]:
    """A small size of two unequal sides."""
    divisor = size_divisor(graph.model)
    unit = -(-32 // divisor) * divisor
    return 3 * unit, 4 * unit


def _write_torchscript(graph: DetectionGraph, path: Path, facts: str) -> None:
    # Tracing warns of every number in the code, and of its own retirement.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", FutureWarning)
        traced = torch.jit.trace(graph, example_inputs(graph, _trace_size(graph)), check_trace=False)
        write_atomically(path, lambda file: torch.jit.save(traced, file, _extra_files={FACTS_KEY: facts}))


def _write_onnx(graph: DetectionGraph, path: Path, facts: str, fixed: FixedShape | None) -> None:
    import onnx

    from .onnx_operators import TRANSLATIONS

    if fixed:
        inputs, shapes = example_inputs(graph, fixed.size, fixed.num_images), None
    else:
        inputs, shapes = example_inputs(graph, _trace_size(graph)), _dynamic_shapes(graph)
    program: Any = torch.onnx.export(
        graph,
        inputs,
        input_names=input_names(graph),
        output_names=output_names(graph),
        dynamic_shapes=shapes,
        opset_version=OPSET,
        custom_translation_table=TRANSLATIONS,
        dynamo=True,
        verbose=False,
    )
    content = program.model_proto
    del content.graph.value_info[:]  # sizes in between: not needed, and some contradict the checker's own
    for node in content.graph.node:
        node.ClearField("metadata_props")  # where in the code each came from, with the paths of this machine
    onnx.helper.set_model_props(content, {FACTS_KEY: facts})
    onnx.checker.check_model(content)
    write_atomically(path, content.SerializeToString())


def _dynamic_shapes(graph: DetectionGraph) -> tuple[Any, ...]:
    free = torch.export.Dim.DYNAMIC
    metadata = ({0: free},) * (len(input_names(graph)) - 2)
    return ({0: free, 2: free, 3: free}, {0: free}, *((metadata,) if metadata else ()))


def largest_shape(cfg: CfgNode, model: nn.Module, num_images: int = 1) -> FixedShape:
    """The fixed shape that every image fits into after the resizing of a configuration.

    Raises:
        ConfigError: when the size of the images decides.
    """
    divisor = size_divisor(model)
    facts = _resizing(cfg)
    if facts["mode"] == "scale":
        raise ConfigError("INPUT.RESIZE_MODE is 'scale', which gives images of every size; name the size of the file")
    sides = facts["size"] if facts["mode"] == "fixed" else [facts["longest"]] * 2
    height, width = (-(-side // divisor) * divisor for side in sides)
    return FixedShape(num_images, (height, width))
