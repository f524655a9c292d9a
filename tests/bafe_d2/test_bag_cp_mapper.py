"""BAG-CP in the mapper of a training: its place among the augmentations, its library, classes, faults."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from bafe_d2.data import BAGCopyPaste
from irstd_d2 import get_config
from irstd_d2.data import build_mapper, read_image
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.synthetic import dense_config, write_densesirst


def test_mapper_adds_targets_in_training_only(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_densesirst(tmp_path / "synthetic_dense", dense_config(), 4, 1, progress=False)
    options = ["INPUT.MAPPER", "BackgroundDatasetMapper", "INPUT.BAG_CP.ENABLED", True, "OUTPUT_DIR", str(tmp_path)]
    options += [
        "DATASETS.TRAIN",
        ("synthetic_dense_train",),
        "INPUT.RESIZE_MODE",
        "fixed",
        "INPUT.FIXED_SIZE",
        (256, 256),
    ]
    cfg = get_config(None, options)
    mapper, plain = build_mapper(cfg, True), build_mapper(cfg, False)
    np.random.seed(0)
    grown = 0
    for record in DatasetCatalog.get("synthetic_dense_train"):
        sample = mapper(record)
        grown += len(sample["instances"]) > len(record["annotations"])
        assert sample["sem_seg"].shape == sample["image"].shape[1:]
        assert "instances" not in plain(record)
    assert grown >= 3
    before = get_config(None, [*options, "INPUT.BAG_CP.BEFORE_RESIZE", True, "INPUT.CROP.ENABLED", True])
    names = [type(step).__name__ for step in build_mapper(before, True).augmentations.augs]
    assert names == ["TargetCrop", "BAGCopyPaste", "Resize", "RandomFlip"]


def set_of_two_kinds(folder, dtype=np.uint8, high=200):
    """Images with a wide target of class 1 and a tall one of class 2, on sky, where boxes tell the classes apart."""
    dicts = []
    for i in range(2):
        image = np.full((80, 90), high // 4, dtype)
        image[10:12, 10:15] = image[30:35, 40:42] = high
        cv2.imwrite(str(folder / f"{i}.png"), image)
        cv2.imwrite(str(folder / f"{i}_sky.png"), np.full((80, 90), 255, np.uint8))
        boxes = [([10, 10, 15, 12], 1), ([40, 30, 42, 35], 2)]
        rows = [{"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label} for box, label in boxes]
        names = {"file_name": str(folder / f"{i}.png"), "sem_seg_file_name": str(folder / f"{i}_sky.png")}
        dicts.append({**names, "image_id": i, "height": 80, "width": 90, "annotations": rows})
    return dicts


@pytest.fixture
def two_kinds(tmp_path):
    DatasetCatalog.register("two_kinds", lambda: dicts)
    dicts = set_of_two_kinds(tmp_path)
    options = [
        "DATASETS.TRAIN",
        ("two_kinds",),
        "INPUT.MAPPER",
        "BackgroundDatasetMapper",
        "INPUT.RESIZE_MODE",
        "scale",
    ]
    options += ["INPUT.BAG_CP.ENABLED", True, "OUTPUT_DIR", str(tmp_path), "INPUT.RANDOM_FLIP", "none"]
    yield dicts, options
    DatasetCatalog.remove("two_kinds")


@pytest.mark.parametrize("gaussian", [True, False])
def test_targets_of_several_classes_keep_theirs(two_kinds, gaussian):
    dicts, options = two_kinds
    options += ["INPUT.BAG_CP.GAUSSIAN", gaussian, "INPUT.BAG_CP.BRIGHTNESS", (0.9, 1.0)]
    for _ in range(2):  # the second from the stored library
        mapper, seen = build_mapper(get_config(None, options), True), set()
        for seed in range(6):
            np.random.seed(seed)
            new = mapper(dicts[0])["instances"][2:]
            size = new.gt_boxes.tensor[:, 2:] - new.gt_boxes.tensor[:, :2]
            for (width, height), label in zip(size.tolist(), new.gt_classes.tolist()):
                seen.add(label)
                if not gaussian:
                    assert (width, height) == {1: (5, 2), 2: (2, 5)}[label]
                elif max(width, height) > 2:
                    assert label == (1 if width > 2 else 2)
        assert seen == {1, 2}


@pytest.mark.parametrize("mode", ["full_range", "percentile", "minmax"])
def test_the_library_is_as_bright_as_the_images(tmp_path, two_kinds, mode):
    dicts, options = two_kinds
    dicts[:] = set_of_two_kinds(tmp_path, np.uint16, 2000)
    augmentations = build_mapper(get_config(None, [*options, "INPUT.HIGH_BIT_DEPTH", mode]), True).augmentations.augs
    library = next(aug for aug in augmentations if isinstance(aug, BAGCopyPaste)).library
    expected = read_image(dicts[0]["file_name"], high_bit_depth=mode).max() / 255
    assert library.patches.max() == pytest.approx(expected)


def test_an_image_that_is_skipped_is_in_no_library(two_kinds, monkeypatch):
    dicts, options = two_kinds
    Path(dicts[0]["file_name"]).write_bytes(b"torn")
    with pytest.raises(DatasetError, match=r"0\.png"):
        build_mapper(get_config(None, options), True)
    monkeypatch.setattr("bafe_d2.data.target_library.get_skip_bad", lambda: True)
    mapper = build_mapper(get_config(None, [*options, "DATASETS.SKIP_BAD", True]), True)
    np.random.seed(0)
    assert mapper(dicts[0]) is None
    assert len(mapper(dicts[1])["instances"]) > 2


@pytest.mark.parametrize(
    "more", [{}, {"INPUT.CROP.ENABLED": True, "INPUT.CROP.TYPE": "absolute", "INPUT.CROP.SIZE": (70, 70)}]
)
@pytest.mark.parametrize("before_resize", [False, True])
def test_gain_and_polarity_act_on_pasted_targets_as_on_others(two_kinds, before_resize, more):
    dicts, options = two_kinds
    more = {
        **more,
        "INPUT.INVERT_PROB": 1.0,
        "INPUT.GAIN_RANGE": (1.5, 1.5),
        "INPUT.BAG_CP.BEFORE_RESIZE": before_resize,
    }
    mapper = build_mapper(get_config(None, options + [item for pair in more.items() for item in pair]), True)
    for seed in range(4):
        np.random.seed(seed)
        sample = mapper(dicts[1])
        sky = sample["image"].median()
        assert len(sample["instances"]) > 2
        for x1, y1, x2, y2 in sample["instances"].gt_boxes.tensor.int().tolist():
            assert sample["image"][0, y1:y2, x1:x2].min() < sky - 10  # dark, as all are with hot and cold exchanged


def test_what_keeps_bag_cp_from_pasting_is_said(two_kinds, caplog):
    dicts, options = two_kinds
    with pytest.raises(ConfigError, match=r"INPUT\.LOAD_SEM_SEG is False"):
        build_mapper(get_config(None, [*options, "INPUT.LOAD_SEM_SEG", False]), True)
    anywhere = [*options, "INPUT.LOAD_SEM_SEG", False, "INPUT.BAG_CP.BACKGROUND_AWARE", False]
    assert len(build_mapper(get_config(None, anywhere), True)(dicts[0])["instances"]) > 2
    mapper = build_mapper(get_config(None, options), True)
    for _ in range(2):
        sample = mapper({key: value for key, value in dicts[0].items() if key != "sem_seg_file_name"})
        assert len(sample["instances"]) == 2
    assert caplog.text.count("nothing into images without a sky mask") == 1
