"""Smaller ONNX files: half precision and 8-bit integers, for the layers that hold the weights.

Everything that decodes boxes stays in single precision: half precision has steps of half a pixel at 1024 pixels.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..errors import ConfigError
from ..files import write_atomically
from .runtime import ExportedDetector

# Layers that are worth it; the others are cheap, and exact.
_HALF_LAYERS = ("Conv", "Gemm", "MatMul", "Relu", "MaxPool")
_INTEGER_LAYERS = ("Conv",)


def to_half(source: str | PathLike, target: str | PathLike) -> None:
    """Convert convolutions, matrix products and what lies between them to half precision.

    Inputs and outputs stay in single precision, so that the runtime and its callers see no difference.
    """
    model = onnx.load(source)
    _halve(model.graph)
    onnx.checker.check_model(model)
    write_atomically(target, model.SerializeToString())


def _halve(graph: onnx.GraphProto) -> None:
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = list(graph.node)
    chosen = [node.op_type in _HALF_LAYERS for node in nodes]
    exact = {name for node, half in zip(nodes, chosen) if not half for name in node.input}
    exact |= {output.name for output in graph.output}
    twins: dict[str, str] = {}  # tensor in single precision -> the same in half
    result = []

    def cast(name: str, to_name: str, kind: int) -> onnx.NodeProto:
        return onnx.helper.make_node("Cast", [name], [to_name], name=f"cast_{to_name}", to=kind)

    for node, half in zip(nodes, chosen):
        result.append(node)
        if not half:
            continue
        for position, name in enumerate(node.input):
            if not name:  # an optional input that is absent
                continue
            if name not in twins:
                twins[name] = f"{name}_half"
                if name in weights:
                    values = onnx.numpy_helper.to_array(weights[name]).astype(np.float16)
                    graph.initializer.append(onnx.numpy_helper.from_array(values, twins[name]))
                else:
                    result.insert(-1, cast(name, twins[name], onnx.TensorProto.FLOAT16))
            node.input[position] = twins[name]
        name = node.output[0]
        node.output[0] = twins[name] = f"{name}_half"
        if name in exact:
            result.append(cast(twins[name], name, onnx.TensorProto.FLOAT))
    unused = [tensor for name, tensor in weights.items() if name in twins and name not in exact]
    for tensor in unused:
        graph.initializer.remove(tensor)
    del graph.node[:]
    graph.node.extend(result)


def to_int8_dynamic(source: str | PathLike, target: str | PathLike) -> None:
    """Store the weights of convolutions as 8-bit integers and quantise what flows in anew for every image."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _through_file(
        target,
        lambda path: quantize_dynamic(
            source, path, op_types_to_quantize=list(_INTEGER_LAYERS), weight_type=QuantType.QUInt8
        ),
    )


def to_int8_static(
    source: str | PathLike,
    target: str | PathLike,
    images: Sequence[str | PathLike],
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
) -> None:
    """Quantise convolutions with ranges measured on images.

    Args:
        source: an exported ONNX file.
        images: some tens of images like those to come.
        metadata: of each image.

    Raises:
        ConfigError: without images.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    if not images:
        raise ConfigError("static quantisation measures ranges on images; give some")
    detector = ExportedDetector(source)

    class Reader(CalibrationDataReader):  # its base has a metaclass of its own
        def __init__(self):
            self._left = iter(zip(images, metadata or [None] * len(images)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            item = next(self._left, None)
            return None if item is None else detector.inputs([item[0]], item[1])

    _through_file(
        target,
        lambda path: quantize_static(
            source,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_INTEGER_LAYERS),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        ),
    )


def _through_file(target: str | PathLike, write: Callable[[Path], object]) -> None:
    """Let a function that wants a path write the file; a complete one, old or new, is there at every moment."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write(path)
        with path.open("rb") as source:
            write_atomically(target, lambda file: shutil.copyfileobj(source, file))
