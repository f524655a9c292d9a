"""ONNX files run by onnxruntime equal the model: FCOS in the fast tests, the others in the slow ones."""

import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_export_graphs import METADATA, assert_equal, build, by_model, images, without_resizing

from irstd_d2.data import build_mapper
from irstd_d2.export import Detections, ExportedDetector, FixedShape, compare_detections, export_model, runtime
from irstd_d2.export.runtime import FACTS_KEY

# Pixels and probabilities by which the two may differ: rounding of single precision.
BOXES, SCORES = 0.02, 1e-4


def check(name, path, keys=(), **options):
    cfg, model = build(name, keys)
    export_model(cfg, model, path, **options)
    detector = without_resizing(ExportedDetector(path, threads=1))
    # Three images of sizes that were not traced, then one alone.
    assert_equal(by_model(model, images(), METADATA), detector(images(), METADATA), BOXES, SCORES)
    assert_equal(by_model(model, images()[1:2], METADATA[1:2]), detector(images()[1:2], METADATA[1]), BOXES, SCORES)
    return cfg, model, detector


@pytest.fixture(scope="module")
def fcos(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "fcos.onnx"
    return *check("bafe/tiny/fcos_tiny.yaml", path), path


def test_onnx_equals_the_model_and_says_what_it_needs(fcos):
    cfg, model, detector, path = fcos
    facts = detector.facts
    assert facts["inputs"] == ["image", "image_size"]
    assert facts["outputs"] == ["boxes", "scores", "classes"]
    assert facts["preprocessing"]["pixel_mean"] == list(cfg.MODEL.PIXEL_MEAN)
    assert facts["preprocessing"]["resize"] == {"mode": "fixed", "size": [96, 128]}
    assert facts["preprocessing"]["divisor"] == model.backbone.size_divisibility
    assert facts["metadata"] is None
    stored = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert json.loads(stored[FACTS_KEY]) == facts
    graph = onnx.load(path).graph
    shape = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    assert shape[1] == 3
    assert all(isinstance(shape[i], str) for i in (0, 2, 3))


def test_files_of_any_size_are_scaled_back(fcos, tmp_path, capsys):
    path = fcos[-1]
    detector = ExportedDetector(path, threads=1)
    files = []
    for i, (height, width) in enumerate([(48, 64), (96, 128), (200, 70)]):
        pixels = np.random.default_rng(i).integers(0, 255, (height, width), np.uint8)
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(files[-1])
    found = detector(files)
    for result, (height, width) in zip(found, [(48, 64), (96, 128), (200, 70)]):
        assert len(result.scores) > 5
        assert (result.boxes >= 0).all()
        assert (result.boxes <= [width, height, width, height]).all()
        assert (np.diff(result.scores) <= 0).all()
    assert detector([]) == []
    with pytest.raises(ValueError, match="3 images came with metadata of 1"):
        detector(files, [None])

    assert runtime.main([str(path), *map(str, files), "--threshold", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file_name"] for row in rows] == list(map(str, files))
    for row, result in zip(rows, found):
        assert np.allclose(row["boxes"], result.boxes, atol=1e-2)
        assert set(row["classes"]) == set(detector.class_names)
    assert runtime.main([str(path), "--facts"]) == 0
    assert json.loads(capsys.readouterr().out) == detector.facts

    torn = tmp_path / "torn.png"
    torn.write_bytes(b"torn")
    assert runtime.main([str(path), str(torn), str(files[0]), str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert [json.loads(line)["file_name"] for line in printed.out.splitlines()] == [str(files[0])]  # the rest is done
    faults = printed.err.splitlines()
    assert [line.split(": ")[1] for line in faults] == [str(torn), str(tmp_path)]
    assert all(line.endswith(". Fix: give an image that can be read") for line in faults)
    for absent in (tmp_path / "absent.onnx", torn.rename(tmp_path / "torn.onnx")):
        assert runtime.main([str(absent), str(files[0])]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {absent}: ")
    with pytest.raises(SystemExit):
        runtime.main([str(path)])
    assert capsys.readouterr().err.endswith("error: give images, or --facts\n")


def test_real_images_give_the_same_detections(fcos, omni_mini):
    """From the file on: reading, resizing, network and scaling back, beside mapper and model."""
    cfg, model, _, path = fcos
    mapper, detector = build_mapper(cfg, is_train=False), ExportedDetector(path, threads=1)
    files = sorted((omni_mini / "VOC2007" / "PNGImages").iterdir())[::60]
    assert len(files) == 5
    with torch.no_grad():
        results = [model([mapper({"file_name": str(file)})])[0]["instances"] for file in files]
    expected = [
        Detections(r.pred_boxes.tensor.numpy(), r.scores.numpy(), r.pred_classes.numpy()) for r in results
    ]  # fmt: skip
    assert_equal(expected, detector(files), BOXES, SCORES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("auxdet/tiny/auxdet_tiny.yaml", ()),
        ("auxdet/tiny/auxdet_tiny.yaml", ("MODEL.AUXDET.LEEM.WINDOW", 64)),  # larger and smaller than the images
        ("bafe/tiny/bafe_tiny.yaml", ()),
    ],
)
def test_onnx_of_both_systems_equals_the_model(name, keys, tmp_path):
    check(name, tmp_path / "model.onnx", keys)


@pytest.mark.slow
def test_fixed_shape_without_suppression(tmp_path):
    fixed = FixedShape(2, (192, 160))
    cfg, model = build("baselines/tiny/retinanet_tiny.yaml")
    path = tmp_path / "model.onnx"
    export_model(cfg, model, path, with_nms=False, fixed=fixed)
    detector = without_resizing(ExportedDetector(path, threads=1))
    two = images()[:2]
    assert_equal(by_model(model, two, METADATA[:2]), detector(two), BOXES, SCORES)
    # A batch that is not full gives the same.
    alone = detector(two[:1])[0]
    assert compare_detections(detector(two)[0], alone).within(BOXES, SCORES)
    with pytest.raises(ValueError, match="takes 2 images of up to 160x192 pixels, not 3"):
        detector(images())
