"""The part that runs exported files alone: reading, resizing, metadata and suppression as in training."""

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import batched_nms

from auxdet_d2.metadata import MetadataVocabulary
from irstd_d2 import get_config
from irstd_d2.data import read_image
from irstd_d2.data.transforms import Resize, ResizeByFactor, ResizeShortestEdge
from irstd_d2.export import Detections, compare_detections, runtime

RUNTIME = Path(runtime.__file__)


def write_images(folder):
    """One file per kind of image that people have."""
    rng = np.random.default_rng(0)
    gray8, gray16 = rng.integers(0, 256, (9, 13), np.uint8), rng.integers(0, 65536, (9, 13), np.uint16)
    colour = rng.integers(0, 256, (9, 13, 3), np.uint8)
    Image.fromarray(gray8).save(folder / "gray8.png")
    Image.fromarray(gray16).save(folder / "gray16.png")
    Image.fromarray(gray16).save(folder / "gray16.tif")
    Image.fromarray(gray8).save(folder / "gray8.bmp")
    Image.fromarray(colour).save(folder / "colour.png")
    Image.fromarray(colour).convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(colour).quantize(16).save(folder / "palette.tif")
    Image.fromarray(gray8 > 128).save(folder / "bits.png")
    Image.fromarray(rng.random((9, 13), np.float32)).save(folder / "float.tif")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(colour).save(folder / "turned.jpg", exif=exif)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("mode", ["auto", "full_range", "minmax", "percentile"])
def test_images_are_read_as_in_training(tmp_path, mode):
    paths = write_images(tmp_path)
    assert len(paths) == 10
    for path in paths:
        expected = read_image(path, "RGB", mode)
        found = runtime.read_image(path, mode)
        assert found.shape == expected.shape, path
        np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=str(path))


def test_damage_is_refused(tmp_path):
    path = tmp_path / "deep.png"
    cv2.imwrite(str(path), np.zeros((4, 4, 3), np.uint16))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises((OSError, ValueError)):
        runtime.read_image(path)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), new_height=st.integers(1, 60), new_width=st.integers(1, 60),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_resize_equals_the_mapper(height, width, new_height, new_width, seed):
    image = np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype(np.float32)
    expected = Resize((new_height, new_width)).get_transform(image).apply_image(image)
    # OpenCV weighs with single-precision coordinates.
    np.testing.assert_allclose(runtime.resize(image, (new_height, new_width)), expected, atol=0.02)


@settings(deadline=None, max_examples=100)
@given(height=st.integers(1, 2000), width=st.integers(1, 2000), short=st.integers(8, 1500), extra=st.integers(0, 800))
def test_shortest_edge_size_equals_the_mapper(height, width, short, extra):
    image = np.broadcast_to(np.zeros((1, 1, 3), np.float32), (height, width, 3))
    plan = ResizeShortestEdge(short, short + extra, "choice").get_transform(image)
    expected = (plan.new_h, plan.new_w) if hasattr(plan, "new_h") else (height, width)
    assert runtime.shortest_edge_size((height, width), short, short + extra) == expected


@pytest.mark.parametrize("factor", [0.01, 0.5, 1.3, 2.0])
def test_scaled_size_equals_the_mapper(factor):
    detector = object.__new__(runtime.ExportedDetector)
    detector.facts = {"preprocessing": {"resize": {"mode": "scale", "factor": factor}}}
    for size in [(31, 45), (512, 640), (1, 3)]:
        plan = ResizeByFactor(factor).get_transform(np.zeros((*size, 3), np.float32))
        assert detector._network_size(size) == (plan.new_h, plan.new_w)


def test_names_are_understood_as_in_training(caplog):
    cfg = get_config()
    vocabulary = MetadataVocabulary.from_config(cfg)
    aliases = dict(entry.split("=") for entry in cfg.MODEL.METADATA.ALIASES)
    for name in ("Air", "air", "space-borne", "Space", "UAV", "drone", "land based", None, "", "unknown", "n/a"):
        expected = vocabulary.platforms.index(name)
        assert runtime.name_index(name, vocabulary.platforms.names, aliases, "platform") == expected, name
    assert not caplog.records
    assert runtime.name_index("Submarine", vocabulary.platforms.names, aliases, "platform") == -1
    assert "platform 'Submarine' is not among ['Air', 'Space', 'Land']" in caplog.text


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 25), threshold=st.sampled_from([0.2, 0.5, 0.8]))
def test_suppression_equals_torchvision(seed, count, threshold):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 8, (count, 2))], axis=1).astype(np.float32)
    scores, classes = rng.random(count).astype(np.float32), rng.integers(0, 2, count)
    expected = batched_nms(*map(torch.from_numpy, (boxes, scores, classes)), threshold)
    assert runtime.suppress(boxes, scores, classes, threshold).tolist() == expected.tolist()


def test_the_file_runs_without_the_project(tmp_path):
    shutil.copy(RUNTIME, tmp_path / "runtime.py")
    code = (
        "import sys, runtime; "
        "foreign = {'torch', 'detectron2', 'irstd_d2', 'cv2', 'torchvision'} & set(sys.modules); "
        "sys.exit(str(foreign) if foreign else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_foreign_file_is_refused(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), tmp_path / "foreign.ts")
    with pytest.raises(ValueError, match=r"foreign\.ts: holds no irstd_d2\.json"):
        runtime.ExportedDetector(tmp_path / "foreign.ts")


def detections(boxes, scores, classes=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    classes = np.zeros(len(boxes), np.int64) if classes is None else np.array(classes)
    return Detections(boxes, np.array(scores, np.float32), classes)


def test_difference_pairs_by_place():
    a = detections([[0, 0, 4, 4], [10, 10, 14, 14], [30, 30, 33, 33]], [0.9, 0.9, 0.2])
    b = detections([[10, 10, 14, 14.25], [0, 0, 4, 4], [50, 50, 53, 53]], [0.875, 0.9, 0.6])
    difference = compare_detections(a, b)
    assert (difference.pairs, difference.unpaired) == (2, 2)
    assert difference.boxes == pytest.approx(0.25)
    assert difference.scores == pytest.approx(0.025)
    assert difference.unpaired_score == pytest.approx(0.6)
    assert not difference.within(1, 1)
    assert compare_detections(a, a).within(0, 0)
    other_class = detections(a.boxes, a.scores, [0, 1, 0])
    assert compare_detections(a, other_class).unpaired == 2


@pytest.mark.parametrize(("left", "right"), [(0, 0), (0, 2), (2, 0)])
def test_difference_of_empty_sets(left, right):
    box, score = [1, 1, 4, 4], 0.5
    difference = compare_detections(
        detections([box] * left, [score] * left), detections([box] * right, [score] * right)
    )
    assert (difference.pairs, difference.unpaired) == (0, left + right)
