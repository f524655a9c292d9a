"""What holds for every evaluator: processes, empty sets, faulty detections, thousands of them, retries, memory."""

import json
import math
import pickle
import time

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from processes import run_processes

from irstd_d2 import get_config
from irstd_d2.evaluation import EVALUATOR_REGISTRY, build_evaluator

NAME = "all_evaluators_test"
DETECTORS = ("coco", "voc", "voc_paper", "pd_fa", "centre")
KEYS = ("platform", "resolution", "size", "contrast", "sky")


def make_record(folder, number, *, size=(48, 64), targets=4):
    rng = np.random.default_rng(number)
    corner = rng.integers(0, 36, (targets, 2))
    boxes = np.concatenate([corner, corner + rng.integers(2, 9, (targets, 2))], 1)
    mask = np.zeros(size, np.uint8)
    mask[: rng.integers(0, size[0])] = 1
    mask[size[0] // 2] = 255
    record = {"image_id": f"i{number}", "height": size[0], "width": size[1]}
    record["metadata"] = {"platform": ("Air", "Land", None)[number % 3]}
    for key, array in (("file_name", rng.integers(50, 255, size).astype(np.uint8)), ("sem_seg_file_name", mask)):
        record[key] = str(folder / f"{number}-{key}.png")
        cv2.imwrite(record[key], array)
    record["annotations"] = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": i % 2, "iscrowd": int(i == 3)}
        for i, box in enumerate(boxes.tolist())
    ]
    return record


def make_output(record, count=12):
    """Detections around the targets with equal scores among them, and a noisy sky."""
    rng = np.random.default_rng(int(record["image_id"][1:]) + 100)
    size = record["height"], record["width"]
    boxes = np.array([a["bbox"] for a in record["annotations"]] or [[1, 1, 5, 5]], np.float32)
    boxes = boxes[rng.integers(0, len(boxes), count)] + rng.normal(0, 0.7, (count, 4)).astype(np.float32)
    boxes[:, 2:] = boxes.reshape(-1, 2, 2).max(1)
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.from_numpy(boxes))
    instances.scores = torch.from_numpy(rng.integers(1, 6, count) / 5).float()
    instances.pred_classes = torch.from_numpy(rng.integers(0, 2, count))
    sky = torch.from_numpy(rng.random(size)).float()
    return {"instances": instances, "sem_seg": torch.stack([1 - sky, sky])}


def unregister():
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


@pytest.fixture
def register():
    def build(dicts):
        unregister()
        DatasetCatalog.register(NAME, lambda: dicts)
        MetadataCatalog.get(NAME).set(thing_classes=["a", "b"])
        return dicts

    yield build
    unregister()


def build(folder, names=(*DETECTORS, "sky"), keys=KEYS):
    opts = ["TEST.EVALUATORS", names, "TEST.GROUP_BY", keys, "TEST.SCORE_THRESHOLD", 0.3]
    evaluator = build_evaluator(get_config(opts=opts), NAME, str(folder))
    evaluator.reset()
    return evaluator


def judge(folder, dicts, share=lambda dicts: dicts):
    evaluator = build(folder)
    for record in share(dicts):
        evaluator.process([record], [make_output(record)])
    return json.dumps(evaluator.evaluate())


def every_second(dicts):
    # The last image comes twice, as a sampler that gives all processes the same number does.
    return [*dicts[comm.get_rank() :: 2], dicts[-1]]


def only_the_first(dicts):
    return dicts if comm.get_rank() == 0 else []


@pytest.mark.parametrize("share", [every_second, only_the_first])
def test_two_processes_give_the_numbers_of_one_to_the_last_digit(register, tmp_path, share):
    dicts = register([make_record(tmp_path, number, targets=number % 5) for number in range(9)])
    alone = judge(tmp_path / "alone", dicts)
    found = run_processes(2, judge, tmp_path / "together", dicts, share)
    assert [error for _, error in found] == [None, None]
    assert found[0][0] == alone
    assert found[1][0] == "{}"
    results = json.loads(alone)
    assert list(results) == ["bbox", "voc_exact", "voc_paper", "pd_fa", "centre", "sky"]
    for name in ("voc_exact", "voc_paper", "pd_fa", "centre", "bbox"):
        assert {key.split("/")[0] for key in results[name] if "/" in key} == set(KEYS)
    assert 0 < results["voc_exact"]["sky/sky/AP50_area"] != results["voc_exact"]["sky/non-sky/AP50_area"] > 0
    assert {key.split("/")[0] for key in results["sky"] if "/" in key} == {"platform", "resolution"}
    files = [(tmp_path / name / "coco_instances_results.json").read_bytes() for name in ("alone", "together")]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", DETECTORS)
def test_without_predictions_every_rate_is_zero(register, tmp_path, name):
    register([make_record(tmp_path, number) for number in range(2)])
    results = next(iter(build(tmp_path, (name,), ()).evaluate().values()))
    for metric, value in results.items():
        worst = math.inf if metric.startswith(("FAPI", "F1_threshold", "threshold@FAPI")) else 0
        # Classes of areas without a target have no number.
        assert value == worst or (math.isnan(value) and "50-" in metric), metric


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("images", [0, 2])
def test_without_targets_only_false_alarms_have_numbers(register, tmp_path, name, images):
    dicts = register([make_record(tmp_path, number, targets=0) for number in range(images)])
    evaluator = build(tmp_path, (name,), ("platform", "size", "sky"))
    for record in dicts:
        evaluator.process([record], [make_output(record)])
    results = next(iter(evaluator.evaluate().values()))
    with_numbers = {metric for metric, value in results.items() if not math.isnan(value)}
    assert {metric.split("/")[-1] for metric in with_numbers} == ({"Fa", "Fa_boxes"} if name == "pd_fa" else set())
    if name == "pd_fa":
        assert (results["Fa"] > 0) == (images > 0)


@pytest.mark.parametrize("name", DETECTORS)
def test_faulty_detections_are_refused_and_leave_no_trace(register, tmp_path, name):
    dicts = register([make_record(tmp_path, number) for number in range(3)])
    expected = build(tmp_path, (name,))
    expected.process(dicts, [make_output(record) for record in dicts])
    evaluator = build(tmp_path, (name,))
    for field, value, message in (
        ("scores", math.nan, "'i1' has detections whose score or box is not finite"),
        ("scores", math.inf, "'i1' has detections whose score or box is not finite"),
        ("pred_boxes", math.nan, "'i1' has detections whose score or box is not finite"),
        ("pred_classes", 2, "'i1' has detections of classes outside 0 to 1"),
        ("pred_classes", -1, "'i1' has detections of classes outside 0 to 1"),
    ):
        outputs = [make_output(record) for record in dicts]
        column = outputs[1]["instances"].get(field)
        (column.tensor if field == "pred_boxes" else column)[0] = value
        with pytest.raises(ValueError, match=message):
            evaluator.process(dicts, outputs)
    with pytest.raises(ValueError, match="image 'z' is not in the evaluated data set"):
        evaluator.process([{"image_id": "z"}], [make_output(dicts[0])])
    evaluator.process(dicts, [make_output(record) for record in dicts])
    first = json.dumps(evaluator.evaluate())
    assert first == json.dumps(evaluator.evaluate()) == json.dumps(expected.evaluate())
    evaluator.reset()
    evaluator.process(dicts[:1], [make_output(dicts[0])])
    assert json.dumps(evaluator.evaluate()) != first


def test_a_failing_library_leaves_the_output_where_it_was(register, tmp_path, monkeypatch, capsys):
    dicts = register([make_record(tmp_path, 0)])
    evaluator = build(tmp_path, ("coco",), ())
    evaluator.process(dicts, [make_output(dicts[0])])

    class Failing:
        def createIndex(self):  # noqa: N802
            raise MemoryError("none left")

    monkeypatch.setattr("irstd_d2.evaluation.coco_evaluation._coco_api", lambda use_faster: (Failing, None))
    with pytest.raises(MemoryError):
        evaluator.evaluate()
    monkeypatch.undo()
    print("heard")
    assert capsys.readouterr().out == "heard\n"
    assert evaluator.evaluate()["bbox"]["AP25"] > 0


def test_thousands_of_detections_in_one_image(register, tmp_path):
    record = make_record(tmp_path, 0, targets=3)
    register([record])
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (20_000, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 8, corner.shape)], 1)
    boxes[-3:] = [a["bbox"] for a in record["annotations"]]
    classes = np.zeros(len(boxes), int)
    classes[-2] = 1
    start = time.process_time()
    results = {}
    for name in DETECTORS:
        evaluator = EVALUATOR_REGISTRY.get(name)(get_config(opts=["TEST.EVALUATORS", (name,)]), NAME, None)
        evaluator.add("i0", boxes, np.linspace(1, 0.5, len(boxes)), classes)
        results.update(evaluator.evaluate())
    assert time.process_time() - start < 20
    # All but COCO judge every detection; COCO keeps the hundred best of each class.
    assert results["voc_exact"]["recall50"] == results["pd_fa"]["Pd"] == 100
    assert results["bbox"]["recall50"] < 100


def test_what_is_kept_does_not_grow_with_the_image(register, tmp_path):
    sizes = []
    for number, size in enumerate(((48, 64), (960, 1280))):
        register([make_record(tmp_path, number, size=size)])
        evaluator = build(tmp_path)
        for record in DatasetCatalog.get(NAME):
            evaluator.process([record], [make_output(record)])
        sizes.append(sum(len(pickle.dumps(vars(part))) for part in evaluator._evaluators))
    assert sizes[1] < 1.1 * sizes[0]
