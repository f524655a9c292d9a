"""The exported form of every tiny model equals the model, also after tracing and for another batch than the traced."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from auxdet_d2.modeling.m2dm import _sum_of_shifted, apply_edge_kernels
from irstd_d2 import get_config
from irstd_d2.errors import ConfigError
from irstd_d2.export import Detections, ExportedDetector, FixedShape, build_graph, compare_detections, export_model
from irstd_d2.export.graphs import example_inputs, input_names

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TRANSFORMERS = ["auxdet/tiny/auxdet_swin_tiny.yaml", "auxdet/tiny/auxdet_vit_tiny.yaml"]
TINY = sorted({str(p.relative_to(CONFIGS)) for p in CONFIGS.glob("*/tiny/*_tiny.yaml")} - {*TRANSFORMERS})
KEEP_ALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.FCOS.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "INPUT.FIXED_SIZE", (96, 128)),
]
SIZES = [(150, 140), (192, 160), (32, 64)]  # unequal, so that two of three are padded
SPREAD = ("cls_logits", "centerness", "cls_score", "cls_tower", "seg_tower", "cross_task")
METADATA = [{"platform": "Air", "band": "LWIR"}, {"platform": "Space"}, {}]


def build(name, options=()):
    """A model whose weights give scores, and channels to exchange, that differ clearly: ties could fall each way."""
    torch.manual_seed(0)
    cfg = get_config(CONFIGS / name, [*KEEP_ALL, *options])
    model = build_model(cfg).eval()
    for key, parameter in model.named_parameters():
        if parameter.ndim > 1 and any(part in key for part in SPREAD):
            nn.init.normal_(parameter, std=0.2)
    return cfg, model


def images():
    rng = np.random.default_rng(0)
    result = []
    for height, width in SIZES:
        image = rng.uniform(40, 90, (height, width, 3))
        for y, x in rng.integers(4, 28, (4, 2)):
            image[y : y + 3, x : x + 3] = rng.uniform(150, 255)
        result.append(image.astype(np.float32))
    return result


def by_model(model, arrays, metadata):
    samples = [
        {
            "image": torch.from_numpy(array.transpose(2, 0, 1).copy()),
            "metadata": {"height": array.shape[0], "width": array.shape[1], **given},
        }
        for array, given in zip(arrays, metadata)
    ]
    with torch.no_grad():
        results = model(samples)
    return [
        Detections(
            r["instances"].pred_boxes.tensor.numpy(), r["instances"].scores.numpy(),
            r["instances"].pred_classes.numpy(), r["sem_seg"][1].numpy() if "sem_seg" in r else None,
        )
        for r in results
    ]  # fmt: skip


def without_resizing(detector):
    detector._network_size = lambda size: size
    return detector


def assert_equal(expected, found, boxes=1e-3, scores=5e-5, sky=5e-5):  # folded norms round otherwise
    assert max(len(reference.scores) for reference in expected) > 5
    for reference, result in zip(expected, found, strict=True):
        difference = compare_detections(reference, result)
        assert difference.within(boxes, scores), difference
        if reference.sky is not None:
            np.testing.assert_allclose(result.sky, reference.sky, rtol=0, atol=sky)


@pytest.mark.parametrize(
    ("name", "with_nms"),
    [(name, True) for name in TINY]
    + [(f"{name}_tiny.yaml", False) for name in ("auxdet/tiny/auxdet", "bafe/tiny/fcos")],
)
def test_torchscript_equals_the_model(name, with_nms, tmp_path):
    cfg, model = build(name)
    expected = by_model(model, images(), METADATA)
    export_model(cfg, model, tmp_path / "model.ts", format="torchscript", with_nms=with_nms)
    detector = without_resizing(ExportedDetector(tmp_path / "model.ts"))
    found = detector(images(), METADATA)
    assert_equal(expected, found)
    assert_equal(by_model(model, images()[:1], METADATA[:1]), detector(images()[:1], METADATA[:1]))
    assert (found[0].sky is None) == (expected[0].sky is None)


def test_windows_of_edges_are_exported(tmp_path):
    cfg, model = build("auxdet/tiny/auxdet_tiny.yaml", ("MODEL.AUXDET.LEEM.WINDOW", 64))
    expected = by_model(model, images(), METADATA)
    export_model(cfg, model, tmp_path / "model.ts", format="torchscript")
    assert_equal(expected, without_resizing(ExportedDetector(tmp_path / "model.ts"))(images(), METADATA))
    whole = by_model(build("auxdet/tiny/auxdet_tiny.yaml")[1], images(), METADATA)
    assert not np.array_equal(whole[0].scores, expected[0].scores)


@pytest.mark.parametrize("name", ["auxdet/tiny/auxdet_tiny.yaml", "bafe/tiny/auxbafe_tiny.yaml"])
def test_metadata_reaches_the_exported_model(name, tmp_path):
    cfg, model = build(name)
    export_model(cfg, model, tmp_path / "model.ts", format="torchscript")
    detector = without_resizing(ExportedDetector(tmp_path / "model.ts"))
    image = images()[:1]
    air, space, unknown = (detector(image, given)[0] for given in METADATA)
    assert not np.array_equal(air.scores, space.scores)
    assert not np.array_equal(air.scores, unknown.scores)
    aliased = detector(image, {"platform": "airborne", "band": "longwave"})[0]
    np.testing.assert_array_equal(aliased.boxes, air.boxes)
    other_size = detector(image, {**METADATA[0], "width": 1024, "height": None})[0]
    assert not np.array_equal(other_size.scores, air.scores)
    np.testing.assert_allclose(
        by_model(model, image, [{**METADATA[0], "width": 1024, "height": None}])[0].scores, other_size.scores, atol=1e-5
    )


def test_exporting_leaves_the_model_in_its_mode(tmp_path):
    cfg, model = build("baselines/tiny/fcos_tiny.yaml")
    export_model(cfg, model.train(), tmp_path / "model.ts", format="torchscript")
    assert model.training
    assert model.head.cls_logits.weight.requires_grad
    assert input_names(build_graph(model)) == ["image", "image_size"]


def test_every_input_is_a_tensor_of_its_own():
    """An exporter takes a tensor that comes twice for one input: platform and band would become the same."""
    _, model = build("auxdet/tiny/auxdet_tiny.yaml")
    graph = build_graph(model)
    inputs = example_inputs(graph, (64, 96), num_images=1)
    assert input_names(graph) == ["image", "image_size", "platform", "band", "original_size"]
    assert len({tensor.data_ptr() for tensor in inputs}) == 5


def test_edge_kernels_as_shifts():
    maps, kernels = torch.randn(3, 2, 7, 9), torch.randn(3, 2, 3, 3)
    torch.testing.assert_close(_sum_of_shifted(maps, kernels), apply_edge_kernels(maps, kernels))


def test_what_cannot_be_exported_is_refused(tmp_path):
    cfg, model = build("baselines/tiny/fcos_tiny.yaml")
    with pytest.raises(ConfigError, match="format is 'tensorrt'"):
        export_model(cfg, model, tmp_path / "model.onnx", format="tensorrt")
    with pytest.raises(ConfigError, match=r"\*.onnx"):
        export_model(cfg, model, tmp_path / "model.onnx", format="torchscript")
    with pytest.raises(ConfigError, match="any number and size"):
        export_model(cfg, model, tmp_path / "model.ts", format="torchscript", fixed=FixedShape(1, (32, 32)))

    class Foreign(nn.Module):
        pass

    with pytest.raises(ConfigError, match="Foreign has no exported form"):
        build_graph(Foreign())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_are_refused_by_name(name, tmp_path):
    cfg, model = build(name)
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE: \w+ cannot be exported"):
        export_model(cfg, model, tmp_path / "model.ts", format="torchscript")
    assert not list(tmp_path.iterdir())
