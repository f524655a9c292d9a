"""Masks judged over a data set: files of a segmenter, masks made from boxes, boxes made from masks."""

import json

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm
from programs import load_program

from irstd_d2 import get_config
from irstd_d2.data.image_io import read_raw
from irstd_d2.data.target_masks import component_boxes
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.evaluation import EVALUATOR_REGISTRY
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.mask_evaluation import MaskEvaluator, TargetMasks, compare_masks, mask_intervals
from irstd_d2.evaluation.mask_metrics import count_masks
from irstd_d2.evaluation.masks_and_boxes import box_mask, boxes_to_map, mask_to_boxes
from irstd_d2.evaluation.predictions import read_any_predictions
from irstd_d2.evaluation.rescoring import (
    matrix_to_markdown,
    resample,
    rescore,
    score_predictions,
    to_json,
    to_markdown,
)
from irstd_d2.evaluation.table_evaluation import DetectionProbabilityEvaluator, VOCDetectionEvaluator

NAME = "mask_evaluation_test"
SHAPE = (48, 64)


@pytest.fixture
def data_set(tmp_path):
    """Eight images with bright targets of known masks, one without any."""
    rng = np.random.default_rng(0)
    (tmp_path / "truth").mkdir()
    dicts = []
    for number in range(8):
        image, mask = rng.integers(40, 60, SHAPE).astype(np.uint8), np.zeros(SHAPE, np.uint8)
        for _ in range(number % 4):
            x, y = rng.integers(3, 58), rng.integers(3, 42)
            cv2.circle(mask, (int(x), int(y)), int(rng.integers(1, 3)), 255, -1)
        image[mask > 0] = 200
        record = {"image_id": f"i{number}", "height": 48, "width": 64, "metadata": {"platform": "AL"[number % 2]}}
        record["file_name"] = str(tmp_path / f"i{number}.png")
        cv2.imwrite(record["file_name"], image)
        cv2.imwrite(str(tmp_path / "truth" / f"i{number}.png"), mask)
        record["annotations"] = [
            {"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
            for b in component_boxes(mask).tolist()
        ]
        dicts.append(record)
    DatasetCatalog.register(NAME, lambda: dicts)
    MetadataCatalog.get(NAME).set(thing_classes=["target"])
    yield dicts
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def config(tmp_path, **values):
    pairs = {"EVALUATORS": ("voc", "pd_fa", "mask"), "TARGET_MASKS": str(tmp_path / "truth"), **values}
    return get_config(opts=[part for key, value in pairs.items() for part in (f"TEST.{key}", value)])


def write_maps(folder, dicts, shift):
    folder.mkdir()
    for record in dicts:
        truth = cv2.imread(record["file_name"].replace("/i", "/truth/i"), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(folder / f"{record['image_id']}.png"), np.roll(truth, shift, 1) // 2 * 2)
    return folder


def write_boxes(path, dicts):
    rows = []
    for record in dicts:
        for annotation in record["annotations"]:
            x1, y1, x2, y2 = annotation["bbox"]
            box = [x1, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": record["image_id"], "category_id": 0, "bbox": box, "score": 0.75})
    path.write_text(json.dumps(rows))
    return path


def test_a_segmenter_and_a_detector_stand_in_one_table(data_set, tmp_path):
    paths = [write_maps(tmp_path / "unet", data_set, 0), write_boxes(tmp_path / "fcos.json", data_set)]
    runs = rescore(paths, NAME, config(tmp_path, GROUP_BY=("platform",)))
    for run in runs:  # right both ways: boxes made from masks, masks made from boxes
        assert run.results["voc_exact"]["AP50_area"] == pytest.approx(100)
        for metric in ("IoU", "F1", "Pd", "hIoU_exact", "IoU_best", "platform/A/IoU", "platform/L/Pd"):
            assert run.results["mask"][metric] == pytest.approx(100), (run.name, metric)
        assert run.results["mask"]["Fa"] == run.results["pd_fa"]["Fa"] == 0
        # Two images have no target; the published code counts their IoU as 0.
        assert run.results["mask"]["nIoU"] == pytest.approx(75)
    text = to_markdown(runs)
    assert "unet: boxes are the bounds of its masks' components" in text
    assert "fcos: masks are made from its boxes" in text
    assert to_json(NAME, runs)["runs"]["unet"]["format"] == "masks"


def test_masks_are_resampled_and_compared(data_set, tmp_path):
    paths = [write_maps(tmp_path / f"shift{shift}", data_set, shift) for shift in (2, 0)]
    runs = rescore(paths, NAME, config(tmp_path, EVALUATORS=("mask",)))
    found = resample(runs, draws=100)
    for name in ("mask/IoU", "mask/nIoU", "mask/F1", "mask/hIoU"):
        metric = name.removeprefix("mask/")
        interval = found.intervals["shift2"][name]
        assert interval.value == pytest.approx(runs[0].results["mask"][metric])
        assert interval.low <= interval.value <= interval.high
        comparison = found.comparisons["shift0"][name]
        assert comparison.difference.value == pytest.approx(runs[1].results["mask"][metric] - interval.value)
        assert comparison.difference.low > 0
    assert "| mask/IoU" in to_markdown(runs, found)
    table = runs[0].masks
    assert compare_masks(table, table, draws=20)["mask/IoU"].p_value == 1
    # A draw that counts every image twice changes nothing; one of a single image is that image's.
    twice = table.metrics(np.full((1, 8), 2))
    assert twice["IoU"][0] == pytest.approx(runs[0].results["mask"]["IoU"])
    assert np.isnan(table.metrics(np.zeros((1, 8)))["IoU"][0])
    assert set(mask_intervals(table, draws=5)) == {f"mask/{name}" for name in ("IoU", "nIoU", "F1", "Pd", "Fa", "hIoU")}
    wide, half = (mask_intervals(table, draws=100, level=level)["mask/IoU"] for level in (0.95, 0.5))
    assert wide == mask_intervals(table, draws=100)["mask/IoU"]
    assert wide.low < half.low < half.high < wide.high
    wide, half = (
        compare_masks(table, runs[1].masks, draws=100, level=level)["mask/IoU"].difference for level in (0.95, 0.5)
    )
    assert wide.low < half.low < wide.value == half.value < half.high < wide.high


def test_images_without_a_mask_count_as_empty(data_set, tmp_path, caplog):
    folder = write_maps(tmp_path / "unet", data_set, 0)
    (folder / "i3.png").unlink()
    (folder / "elsewhere.png").write_bytes((folder / "i1.png").read_bytes())
    (run,) = rescore([folder], NAME, config(tmp_path))
    counts = [len(record["annotations"]) for record in data_set]
    assert run.results["mask"]["Pd"] == pytest.approx(100 - 100 * counts[3] / sum(counts)) != 100
    assert "1 images have no predictions and count as empty; 1 predicted images are not in the set" in caplog.text
    document = to_json(NAME, [run])["runs"]["unet"]
    assert (document["missing_images"], document["surplus_images"]) == (1, 1)


def test_masks_below_the_threshold_are_pointed_out(data_set, tmp_path, caplog):
    folder = write_maps(tmp_path / "unet", data_set, 0)
    for path in folder.iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 3)
    (run,) = rescore([folder], NAME, config(tmp_path))
    assert run.results["mask"]["IoU_best"] == pytest.approx(100)
    assert "no pixel of any mask is above 0.5, the highest is 0.329" in caplog.text


def test_without_targets_only_false_alarms_count(data_set, tmp_path):
    for record in data_set:
        record["annotations"] = []
    for path in (tmp_path / "truth").iterdir():
        cv2.imwrite(str(path), np.zeros(SHAPE, np.uint8))
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:6, 7:9] = 255
    (tmp_path / "unet").mkdir()
    cv2.imwrite(str(tmp_path / "unet" / "i2.png"), mask)
    (run,) = rescore([tmp_path / "unet"], NAME, config(tmp_path))
    measured = {name: value for name, value in run.results["mask"].items() if not np.isnan(value)}
    assert measured == pytest.approx(dict.fromkeys(("Fa", "Fa_area", "Fa_shooting"), 4e6 / (8 * 48 * 64)))


def test_each_run_has_its_threshold(data_set, tmp_path):
    maps = write_maps(tmp_path / "unet", data_set, 0)
    for path in maps.iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 5 * 3)
    paths = [maps, write_boxes(tmp_path / "fcos.json", data_set), write_boxes(tmp_path / "strict.json", data_set)]
    runs = rescore(paths, NAME, config(tmp_path), score_thresh=(0.5, 0.7, 0.8))
    assert [run.results["pd_fa"]["Pd"] for run in runs] == [100, 100, 0]
    assert [run.results["mask"]["Pd"] for run in runs] == [100, 100, 0]
    found = resample(runs, draws=20)
    assert [found.intervals[run.name]["pd_fa/Pd"].value for run in runs] == [100, 100, 0]
    assert [found.comparisons[name]["pd_fa/Pd"].difference.value for name in ("fcos", "strict")] == [0, -100]
    assert "- strict: Pd, Fa and masks from score 0.8 on." in to_markdown(runs)
    assert to_json(NAME, runs)["runs"]["fcos"]["score_threshold"] == 0.7
    for count in (2, 4):
        with pytest.raises(ConfigError, match=f"{count} score thresholds for 3 runs"):
            rescore(paths, NAME, config(tmp_path), score_thresh=(0.5,) * count)


@pytest.mark.parametrize(("threshold", "pd"), [(0.7, 100), (0.8, 0)])
def test_intervals_are_at_the_threshold_of_the_evaluators(data_set, tmp_path, threshold, pd):
    truth = GroundTruth.from_dataset(NAME)
    predictions = read_any_predictions(write_boxes(tmp_path / "fcos.json", data_set), truth)
    evaluators = [VOCDetectionEvaluator(truth), DetectionProbabilityEvaluator(truth, score_thresh=threshold)]
    run = score_predictions("fcos", predictions, truth, evaluators)
    assert (run.score_thresh, run.results["pd_fa"]["Pd"]) == (threshold, pd)
    assert resample([run], draws=5).intervals["fcos"]["pd_fa/Pd"].value == pd
    other = score_predictions("fcos", predictions, truth, evaluators[:1], score_thresh=threshold)
    assert resample([other], draws=5).intervals["fcos"]["pd_fa/Pd"].value == pd


def test_one_process_of_several_can_judge_saved_predictions(data_set, tmp_path, monkeypatch):
    truth = GroundTruth.from_dataset(NAME)
    predictions = read_any_predictions(write_boxes(tmp_path / "fcos.json", data_set), truth)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for name in ("gather", "synchronize"):
        monkeypatch.setattr(comm, name, lambda *_, **__: pytest.fail("waits for the other process"))
    run = score_predictions("fcos", predictions, truth, [VOCDetectionEvaluator(truth, distributed=False)])
    assert run.results["voc_exact"]["AP50_area"] == 100
    assert len(run.detections) == len(truth.targets)


def test_draws_and_tables_are_as_asked_for(data_set, tmp_path):
    paths = [write_maps(tmp_path / "unet", data_set, 1), write_boxes(tmp_path / "fcos.json", data_set)]
    runs = rescore(paths, NAME, config(tmp_path))
    one, again, other = (resample(runs, draws=20, seed=seed) for seed in (1, 1, 2))
    assert one == again
    for name in ("mask/IoU", "bbox/AP"):
        assert one.intervals["unet"][name].value == other.intervals["unet"][name].value
        assert one.intervals["unet"][name] != other.intervals["unet"][name]
    table = matrix_to_markdown({NAME: (runs, None)}, ("mask/Pd", "mask/none"))
    assert "mask/Pd" in table
    assert "none" not in table
    assert "voc_exact/AP50_area" in matrix_to_markdown({NAME: (runs, None)})


def test_masks_of_several_sets_lie_in_folders_of_their_names(data_set, tmp_path):
    for folder in (tmp_path / "unet" / NAME, tmp_path / "run" / "inference" / NAME):
        folder.parent.mkdir(parents=True)
        write_maps(folder, data_set, 0)
    (tmp_path / "run" / "config.yaml").write_text("VERSION: 2\n")
    runs = rescore([tmp_path / "unet", tmp_path / "run"], NAME, config(tmp_path))
    assert [(run.name, run.results["mask"]["IoU"]) for run in runs] == [("unet", 100), ("run", 100)]


def test_the_evaluator_takes_what_a_detector_gives_and_keeps_counts_alone(data_set, tmp_path):
    cfg = config(tmp_path)
    evaluator = EVALUATOR_REGISTRY.get("mask")(cfg, NAME, None)
    assert isinstance(evaluator, MaskEvaluator)
    for record in data_set:
        boxes = np.array([a["bbox"] for a in record["annotations"]], float).reshape(-1, 4)
        evaluator.add(record["image_id"], boxes, np.full(len(boxes), 0.4), np.zeros(len(boxes), int))
    results = evaluator.evaluate()["mask"]
    assert results["IoU"] == 0  # below the threshold of 0.5
    assert results["IoU_best"] == pytest.approx(100)
    assert results["IoU_threshold"] == pytest.approx(102 / 255)


def test_true_masks_must_be_there(data_set, tmp_path):
    with pytest.raises(DatasetError, match=r"target masks: the set has none.*--masks"):
        rescore([write_maps(tmp_path / "unet", data_set, 0)], NAME, config(tmp_path, TARGET_MASKS=""))
    (tmp_path / "truth" / "i3.png").unlink()
    with pytest.raises(DatasetError, match=r"i3: target mask: 1 of 8 images with targets have no mask"):
        rescore([tmp_path / "unet"], NAME, config(tmp_path))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("levels", [(1, 3, 7), (90, 255, 60), (255, 255, 255), (1, 2, 3)])
def test_true_masks_in_arrays_say_what_they_say_in_pictures(data_set, tmp_path, levels, dtype):
    """Numbers of targets and classes, with gaps too, are targets; of levels that touch, those above half the top."""
    (tmp_path / "arrays").mkdir()
    (tmp_path / "pictures").mkdir()
    for record in data_set:
        values = np.zeros(SHAPE, dtype)
        for (x1, y1, x2, y2), level in zip((a["bbox"] for a in record["annotations"]), levels):
            values[y1:y2, x1:x2] = level
        if record is data_set[3]:
            values[20:23, 30:33] = np.array([[40, 90, 40], [90, 100, 90], [40, 90, 40]])
        name = record["image_id"]
        np.save(tmp_path / "arrays" / f"{name}.npy", values / 255 if dtype == np.float32 else values)
        cv2.imwrite(str(tmp_path / "pictures" / f"{name}.png"), values.astype(np.uint8))
    truth = GroundTruth.from_dataset(NAME)
    arrays, pictures = (TargetMasks.of(NAME, truth, tmp_path / kind) for kind in ("arrays", "pictures"))
    assert pictures[2].any()
    for index in range(len(data_set)):
        np.testing.assert_array_equal(arrays[index], pictures[index])


def test_true_masks_may_lie_beside_other_files(data_set, tmp_path):
    truth = GroundTruth.from_dataset(NAME)
    before = [TargetMasks.of(NAME, truth, tmp_path / "truth")[index] for index in range(8)]
    for suffix in (".txt", ".xml"):
        for record in data_set:
            (tmp_path / "truth" / record["image_id"]).with_suffix(suffix).touch()
        targets = TargetMasks.of(NAME, truth, tmp_path / "truth")
        np.testing.assert_array_equal([targets[index] for index in range(8)], before)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty: folder: holds no masks"):
        TargetMasks.of(NAME, truth, tmp_path / "empty")


def test_what_the_files_of_a_tool_mean_is_found_out_once(data_set, tmp_path, caplog):
    folder = write_maps(tmp_path / "unet", data_set, 0)
    for path in folder.iterdir():
        cv2.imwrite(str(path), cv2.connectedComponents(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))[1])
    truth = GroundTruth.from_dataset(NAME)
    run = score_predictions("unet", read_any_predictions(folder, truth), truth, [])
    for number, path in run.predictions.masks.items():
        expected = cv2.imread(str(tmp_path / "truth" / f"{number}.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(run.predictions.read_mask(path, SHAPE), expected)
    assert caplog.text.count("are read as numbers of targets") == 1


def test_the_command_judges_masks(data_set, tmp_path, repo_root, capsys):
    tool = load_program(repo_root / "tools" / "evaluate.py")
    folder = write_maps(tmp_path / "unet", data_set, 1)
    assert tool.main([str(folder), "--dataset", NAME, "--masks", str(tmp_path / "truth"), "--bootstrap", "20"]) == 0
    printed = capsys.readouterr().out
    assert "| mask        | hIoU" in printed
    assert "| mask/IoU" in printed
    MetadataCatalog.remove(NAME)
    MetadataCatalog.get(NAME).set(thing_classes=["target", "bird"])
    assert tool.main([str(folder), "--dataset", NAME, "--masks", str(tmp_path / "truth")]) == 2
    assert "masks: have no class, the data set has 2: target, bird" in capsys.readouterr().err


def test_masks_and_boxes_by_hand():
    probability = np.zeros((10, 12))
    probability[1:3, 2:5] = [[0.6, 0.9, 0.7], [0, 0.8, 0]]
    probability[7, 11] = 0.55
    probability[5, 5] = 0.5
    boxes, scores = mask_to_boxes(probability)
    assert boxes.tolist() == [[2, 1, 5, 3], [11, 7, 12, 8]]
    assert scores.tolist() == [0.9, 0.55]
    boxes, scores = mask_to_boxes((probability * 200).astype(np.uint8), 0.4)
    assert boxes.tolist()[0] == [2, 1, 5, 3]
    assert scores[0] == pytest.approx(180 / 255)
    assert mask_to_boxes(np.zeros((3, 3)))[0].shape == (0, 4)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_mask_of_a_box_is_what_stands_out_and_is_connected(sign):
    image = np.full((20, 20), 100.0)
    image[5:8, 5:8] += sign * np.array([[10, 30, 10], [30, 50, 20], [10, 30, 10]])
    image[4, 8] += sign * 40  # outside the box
    image[9, 4] += sign * 45  # inside, but not connected
    (left, top, right, bottom), mask = box_mask(image, [4, 4, 8, 10], 0.5)
    assert (left, top, right, bottom) == (4, 4, 8, 10)
    expected = np.zeros((6, 4), bool)
    expected[1:4, 1:4] = [[0, 1, 0], [1, 1, 0], [0, 1, 0]]
    np.testing.assert_array_equal(mask, expected)


def test_masks_of_boxes_at_the_edge_flat_or_outside():
    flat = np.full((10, 10), 7.0)
    assert box_mask(flat, [2, 2, 5, 4])[1].all()
    assert box_mask(flat, [-3, -3, 2, 2])[1].shape == (2, 2)
    assert box_mask(flat, [12, 12, 15, 15])[1].size == 0
    assert box_mask(flat, [0, 0, 10, 10])[1].all()
    best = boxes_to_map(flat, np.array([[2, 2, 5, 4], [4, 3, 6, 6], [20, 20, 30, 30]]), np.array([0.5, 0.25, 1]))
    assert best[3, 4] == 0.5
    assert best[5, 5] == 0.25
    assert best.max() == 0.5


def test_real_masks_come_back_from_their_boxes(real_masks):
    """The rule comes closer to real masks than filled boxes do."""
    truth = GroundTruth.from_dataset(real_masks)
    targets = TargetMasks.of(real_masks, truth)
    counts = {"rule": np.zeros(3), "filled": np.zeros(3)}
    for index in range(0, len(truth.image_ids), 6):
        target, image = targets[index], read_raw(truth.files[index].image)
        boxes, scores = mask_to_boxes(target.astype(float))
        made = {"rule": boxes_to_map(image, boxes, scores) > 0, "filled": np.zeros(target.shape, bool)}
        for x1, y1, x2, y2 in boxes.astype(int):
            made["filled"][y1:y2, x1:x2] = True
        for way, mask in made.items():
            row = count_masks(mask, target)
            counts[way] += row.true_pixels, row.false_pixels, row.missed_pixels
    iou = {way: values[0] / values.sum() for way, values in counts.items()}
    assert iou["rule"] > iou["filled"] + 0.1


def test_masks_of_the_layout_are_found(data_set, tmp_path):
    truth = TargetMasks.of(
        NAME, rescore([write_boxes(tmp_path / "a.json", data_set)], NAME, get_config())[0].truth, tmp_path / "truth"
    )
    assert truth[0].sum() == 0
    assert truth[3].dtype == bool
    assert truth[3].sum() > 0
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    for number, dtype in enumerate((bool, np.uint8, np.uint8, np.uint16, np.float32, np.int64, bool, np.uint8)):
        np.save(arrays / f"i{number}.npy", truth[number].astype(dtype) * dtype(1 if number % 2 else 255))
    same = TargetMasks.of(NAME, GroundTruth.from_dataset(NAME), arrays)
    assert all(np.array_equal(same[i], truth[i]) for i in range(8))
    with pytest.raises(DatasetError, match="nowhere: folder: holds no masks"):
        TargetMasks.of(NAME, GroundTruth.from_dataset(NAME), tmp_path / "nowhere")


@pytest.mark.parametrize("scores", [(97.5, 3), (-1.5, 0.5)])
def test_scores_that_are_no_probabilities_make_no_mask(data_set, tmp_path, scores):
    """Cut to 0 and 1 they would all be equal, and none above a threshold of their range."""
    path = write_boxes(tmp_path / "percent.json", data_set)
    rows = json.loads(path.read_text())
    rows[0]["score"], rows[1]["score"] = scores
    path.write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match=rf"scores: from {scores[0]:g} to .* probabilities"):
        rescore([path], NAME, config(tmp_path))
    rescore([path], NAME, config(tmp_path, EVALUATORS=("voc", "pd_fa")))


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_missing_images_are_told_of_once(data_set, tmp_path, caplog, kind):
    folder = write_maps(tmp_path / "unet", data_set[2:], 0)
    path = folder if kind == "masks" else write_boxes(tmp_path / "few.json", data_set[2:6])
    missing = 2 if kind == "masks" else len([r for r in data_set if r not in data_set[2:6] or not r["annotations"]])
    (run,) = rescore([path], NAME, config(tmp_path))
    text = f"{missing} images have no predictions"
    assert (to_markdown([run]) + caplog.text).count("have no predictions") == 1
    assert text in to_markdown([run])
