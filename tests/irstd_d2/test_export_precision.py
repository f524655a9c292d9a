"""Half precision and 8-bit integers: structure and closeness on a small network exported by hand."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from irstd_d2.errors import ConfigError
from irstd_d2.export.precision import to_half, to_int8_dynamic, to_int8_static
from irstd_d2.export.runtime import FACTS_KEY, ExportedDetector

FACTS = {
    "classes": ["target"],
    "inputs": ["image", "image_size"],
    "outputs": ["boxes", "scores", "classes"],
    "preprocessing": {
        "channel_order": "RGB", "high_bit_depth": "full_range", "resize": {"mode": "fixed", "size": [8, 8]},
        "divisor": 4,
    },
    "nms": {"inside": True, "threshold": 0.5, "max_detections": 4},
    "metadata": None,
    "fixed_shape": None,
}  # fmt: skip


@pytest.fixture
def network(tmp_path):
    """Two convolutions with a shared bias, whose mean over the map moves four boxes of 1000 pixels."""
    rng = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array((0.1 * rng.normal(size=shape)).astype(np.float32), name)

    nodes = [
        helper.make_node("Mul", ["image", "scale"], ["scaled"], name="scaling"),
        helper.make_node("Conv", ["scaled", "w1", "b"], ["c1"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu"),
        helper.make_node("Conv", ["r1", "w2", "b"], ["c2"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["c2", "axes"], ["mean"], name="mean", keepdims=0),  # (N, 4)
        helper.make_node("Unsqueeze", ["mean", "one"], ["row"], name="row"),  # (N, 1, 4)
        helper.make_node("Add", ["row", "offset"], ["boxes"], name="place"),
        helper.make_node("Sigmoid", ["mean"], ["squashed"], name="squash"),
        helper.make_node("ReduceMax", ["squashed", "one"], ["scores"], name="score", keepdims=1),
        helper.make_node("Cast", ["zero_like"], ["classes"], name="cast", to=TensorProto.INT64),
        helper.make_node("Mul", ["scores", "zero"], ["zero_like"], name="nothing"),
    ]
    nodes[-1], nodes[-2] = nodes[-2], nodes[-1]
    constants = [
        weight("w1", 4, 3, 3, 3), weight("w2", 4, 4, 3, 3), weight("b", 4),
        numpy_helper.from_array(np.float32(1 / 255), "scale"), numpy_helper.from_array(np.array([2, 3]), "axes"),
        numpy_helper.from_array(np.array([1]), "one"), numpy_helper.from_array(np.float32(0), "zero"),
        numpy_helper.from_array(np.array([900.25, 900.25, 1000.125, 1000.125], np.float32), "offset"),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "network",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"]),
            helper.make_tensor_value_info("image_size", TensorProto.FLOAT, ["n", 2]),
        ],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", 1, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 1]),
            helper.make_tensor_value_info("classes", TensorProto.INT64, ["n", 1]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {FACTS_KEY: json.dumps(FACTS)})
    onnx.checker.check_model(model)
    path = tmp_path / "network.onnx"
    onnx.save(model, path)
    return path


def run(path, image):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image, "image_size": np.full((len(image), 2), 8, np.float32)})


def images(count=6):
    return np.random.default_rng(1).uniform(0, 255, (count, 3, 8, 8)).astype(np.float32)


def test_half_precision_keeps_what_decodes(network, tmp_path):
    target = tmp_path / "half.onnx"
    to_half(network, target)
    graph = onnx.load(target).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert {kinds[name] for name in ("w1_half", "w2_half", "b_half")} == {TensorProto.FLOAT16}
    assert {kinds[name] for name in ("scale", "offset")} == {TensorProto.FLOAT}
    assert not {"w1", "w2", "b"} & set(kinds)
    # In once before the first convolution, out once behind the second; nothing between.
    assert [node.op_type for node in graph.node][:6] == ["Mul", "Cast", "Conv", "Relu", "Conv", "Cast"]
    exact, half = run(network, images()), run(target, images())
    difference = np.abs(exact[0] - half[0]).max()
    assert 0 < difference < 2e-3  # whereas half precision has steps of 0.5 there
    np.testing.assert_allclose(exact[1], half[1], atol=1e-3)
    assert ExportedDetector(target).facts == FACTS


def test_dynamic_integers(network, tmp_path):
    target = tmp_path / "dynamic.onnx"
    to_int8_dynamic(network, target)
    operators = [node.op_type for node in onnx.load(target).graph.node]
    assert operators.count("ConvInteger") == 2
    assert "Conv" not in operators
    exact, quantised = run(network, images()), run(target, images())
    assert 0 < np.abs(exact[0] - quantised[0]).max() < 0.02
    assert ExportedDetector(target).facts == FACTS


def test_static_integers_are_calibrated_on_images(network, tmp_path):
    from PIL import Image

    files = []
    for i, image in enumerate(images()):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(image.transpose(1, 2, 0).astype(np.uint8)).save(files[-1])
    target = tmp_path / "static.onnx"
    to_int8_static(network, target, files)
    graph = onnx.load(target).graph
    assert [node.op_type for node in graph.node].count("DequantizeLinear") > 4
    exact, quantised = run(network, images()), run(target, images())
    assert 0 < np.abs(exact[0] - quantised[0]).max() < 0.02
    with pytest.raises(ConfigError, match="give some"):
        to_int8_static(network, target, [])
    assert ExportedDetector(target).facts == FACTS
