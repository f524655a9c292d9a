"""Judging saved predictions without the model: the command's tables, files, comparison and messages."""

import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from programs import load_program

from irstd_d2 import get_config, model_zoo
from irstd_d2.cli.evaluate import EVALUATORS
from irstd_d2.engine import IRSTDTrainer
from irstd_d2.engine.evaluating import model_names
from irstd_d2.evaluation import build_evaluator
from irstd_d2.evaluation.collection import add_predictions_file
from irstd_d2.evaluation.rescoring import find_predictions, rescore, run_name, to_json, to_markdown

NAME = "evaluate_tool_test"
REPORT = Path(__file__).resolve().parents[2] / "tools" / "report.py"


@pytest.fixture(scope="module")
def tool(repo_root):
    return load_program(repo_root / "tools" / "evaluate.py")


def draw_scene(folder, number):
    rng = np.random.default_rng(number)
    image = rng.integers(80, 120, (48, 64)).astype(np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    mask[:30] = 1
    corner = rng.integers(0, 40, (3, 2))
    boxes = np.concatenate([corner, corner + rng.integers(2, 7, (3, 2))], 1)
    for x1, y1, x2, y2 in boxes:
        image[y1:y2, x1:x2] = rng.integers(130, 255)
    record = {"image_id": f"i{number}", "height": 48, "width": 64, "metadata": {"platform": "AL"[number % 2]}}
    for key, array in (("file_name", image), ("sem_seg_file_name", mask)):
        record[key] = str(folder / f"{number}-{key}.png")
        cv2.imwrite(record[key], array)
    record["annotations"] = [
        {"bbox": b, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0} for b in boxes.tolist()
    ]
    return record


@pytest.fixture
def dataset(tmp_path):
    dicts = [draw_scene(tmp_path, number) for number in range(12)]
    DatasetCatalog.register(NAME, lambda: dicts)
    MetadataCatalog.get(NAME).set(thing_classes=["target"])
    yield dicts
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def write_run(folder, dicts, quality):
    rng = np.random.default_rng(5)
    rows = []
    for record in dicts:
        for annotation in record["annotations"]:
            x1, y1, x2, y2 = annotation["bbox"]
            box = [x1, y1, x2 - x1, y2 - y1] if rng.random() < quality else rng.integers(1, 30, 4).tolist()
            rows.append({"image_id": record["image_id"], "category_id": 0, "bbox": box, "score": float(rng.random())})
    path = folder / "inference" / NAME / "coco_instances_results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def runs(dataset, tmp_path):
    write_run(tmp_path / "weak", dataset, 0.2)
    write_run(tmp_path / "strong", dataset, 0.95)
    return [str(tmp_path / name) for name in ("weak", "strong")]


def row(**values):
    return json.dumps([{"image_id": "i0", "category_id": 0, "bbox": [0, 0, 1, 1], "score": 1, **values}])


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_one_run_gives_the_evaluators_table_and_leaves_the_predictions_alone(tool, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "strong" / "inference" / NAME / "coco_instances_results.json"
    before = file.read_bytes()
    keys = ("platform", "resolution", "size", "contrast", "sky")
    arguments = [runs[1], "--dataset", NAME, "--group-by", *keys, "--output", str(tmp_path / "new" / "out")]
    assert tool.main(arguments) == 0
    printed = capsys.readouterr().out
    assert file.read_bytes() == before
    assert not (tmp_path / "output").exists()
    found = json.loads((tmp_path / "new" / "out.json").read_text())
    assert (tmp_path / "new" / "out.md").read_text() in printed + "\n"
    cfg = get_config(opts=["TEST.EVALUATORS", EVALUATORS, "TEST.GROUP_BY", keys])
    expected = {}
    for evaluator in build_evaluator(cfg, NAME, str(tmp_path / "again"))._evaluators[1:]:
        add_predictions_file(evaluator, file)
        expected.update(evaluator.evaluate())
    results = found["runs"]["strong"]["results"]
    assert list(results) == ["bbox", "voc_exact", "voc_paper", "pd_fa", "centre"]
    for evaluator, metrics in expected.items():
        assert list(metrics) == list(results[evaluator])
        for name, value in metrics.items():
            shown = None if math.isnan(value) else str(value) if math.isinf(value) else value
            assert results[evaluator][name] == shown
    whole, *blocks = printed.split("\n\n")
    assert [cells(line)[1] for line in whole.splitlines()[2:4]] == ["AP50-<9", "recall50-<9"]
    assert [cells(block.splitlines()[0])[3] for block in blocks] == [
        *("platform/A", "resolution/<=256", "size/<9", "contrast/<1.2", "sky/sky")
    ]
    assert max(len(line) for line in printed.splitlines()) < 130


def test_runs_are_compared(tool, runs, tmp_path, capsys):
    output = tmp_path / "both"
    arguments = [*runs, "--dataset", NAME, "--compare", "--bootstrap", "200", "--group-by", "sky"]
    assert tool.main([*arguments, "--evaluators", "voc", "pd_fa", "--output", str(output)]) == 0
    blocks = [block.splitlines() for block in capsys.readouterr().out.split("\n\n")]
    assert [cells(block[0])[:3] for block in blocks] == [
        ["group", "evaluator", "metric"],
        ["group", "evaluator", "metric"],
        ["metric", "run", "value"],
        ["metric", "runs", "difference"],
    ]
    assert cells(blocks[0][0])[3:] == ["weak", "strong"]
    found = json.loads(output.with_suffix(".json").read_text())
    comparison = found["comparisons"]["strong"]["voc_exact/AP50_area"]
    values = [found["runs"][run]["results"]["voc_exact"]["AP50_area"] for run in ("weak", "strong")]
    assert comparison["value"] == pytest.approx(values[1] - values[0])
    assert 0 < comparison["low"] < comparison["value"] < comparison["high"]
    assert comparison["p_value"] < 0.02
    intervals = found["runs"]["strong"]["intervals"]
    assert intervals["pd_fa/Fa"]["value"] == pytest.approx(found["runs"]["strong"]["results"]["pd_fa"]["Fa"])
    assert found["draws"] == 200
    assert cells(blocks[3][2])[:2] == ["bbox/AP", "strong - weak"]


def test_runs_of_the_same_name_and_plain_files_have_names(runs, dataset, tmp_path):
    cfg = get_config(opts=["TEST.EVALUATORS", ("centre",)])
    file = tmp_path / "mine.json"
    file.write_text("[]")
    paths = [runs[0], tmp_path / "weak" / "inference", file]
    (tmp_path / "coco_instances_results.json").write_text("[]")
    found = rescore([*paths, tmp_path], NAME, cfg)
    assert [run.name for run in found] == ["weak (1)", "weak (2)", "mine", tmp_path.name]
    assert "| all     | centre" in to_markdown(found)
    assert to_json(NAME, found)["runs"]["mine"]["results"]["centre"]["AP"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "predictions: cannot be read"),
        (row(image_id="z"), "image 'z' is not in the evaluated data set"),
        (row(score=math.nan), "'i0' has detections whose score or box is not finite"),
        (row(category_id=1), "category 1 is none of the data set's, which are 0 (target)"),
    ],
)
def test_faulty_predictions_are_named(tool, dataset, tmp_path, capsys, content, message):
    path = tmp_path / "faulty.json"
    path.write_text(content)
    assert tool.main([str(path), "--dataset", NAME]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("fcos/inference/evaluate_set/coco_instances_results.json", "fcos"),
        ("fcos/inference_TTA/evaluate_set/coco_instances_results.json", "fcos_TTA"),
        ("fcos/inference/another/coco_instances_results.json", "fcos"),
        ("fcos/evaluate_set/coco_instances_results.json", "fcos"),
        ("inference_results/unet/coco_instances_results.json", "unet"),
        ("inference_2026/unet/", "unet"),
        ("unet/evaluate_set/", "unet"),
        ("runs/yolo.json", "yolo"),
    ],
)
def test_runs_are_called_by_their_folders(tmp_path, path, name):
    file = tmp_path / path
    if path.endswith("/"):
        file.mkdir(parents=True)
    assert run_name(file, "evaluate_set") == name


def test_faulty_arguments_are_named(tool, runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([str(tmp_path / "absent.json"), "--dataset", NAME], "absent.json: predictions: no such file"),
        ([str(tmp_path / "empty"), "--dataset", NAME], f"holds no inference/{NAME}/coco_instances_results.json"),
        ([runs[0], "--dataset", "nonsense"], "error: --dataset has 'nonsense', which is not registered"),
        (
            [runs[0], "--dataset", NAME, "--evaluators", "nonsense"],
            "error: TEST.EVALUATORS has 'nonsense'; known are 'centre', 'coco'",
        ),
        ([runs[0], "--dataset", NAME, "--config-file", "absent.yaml"], "error: configuration absent.yaml: "),
        ([runs[0], "--dataset", NAME, "--evaluators", "sky"], "TEST.EVALUATORS: sky cannot judge saved predictions"),
    ):
        assert tool.main(arguments) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
    assert tool.main([*runs, "--dataset", NAME, "--score-thresh", "0.1", "0.2", "0.3"]) == 2
    assert "--score-thresh: give one for all PREDICTIONS and --weights, or one for each" in capsys.readouterr().err
    assert tool.main([runs[0], "--dataset", NAME, "--compare"]) == 2
    assert capsys.readouterr().err.startswith("error: --compare")
    assert tool.main(["absent", "--dataset", NAME]) == 2
    assert capsys.readouterr().err.startswith("error: absent: predictions: no such file or folder. Fix: give the ")


def test_a_data_sets_own_category_ids_are_saved_and_read(dataset, tmp_path):
    MetadataCatalog.remove(NAME)
    MetadataCatalog.get(NAME).set(thing_classes=["target", "other"], thing_dataset_id_to_contiguous_id={7: 0, 3: 1})
    cfg = get_config(opts=["TEST.EVALUATORS", ("coco", "voc"), "TEST.VOC_IOU_THRESHOLDS", (0.25, 0.75)])
    evaluator = build_evaluator(cfg, NAME, str(tmp_path / "own"))
    for part in evaluator._evaluators:
        for record in dataset:
            boxes = np.array([a["bbox"] for a in record["annotations"]], float)
            part.add(record["image_id"], boxes, np.full(3, 0.5), np.array([0, 1, 0]))
    results = evaluator.evaluate()
    file = tmp_path / "own" / "coco_instances_results.json"
    assert {row["category_id"] for row in json.loads(file.read_text())} == {7, 3}
    (again,) = rescore([file], NAME, cfg)
    assert json.dumps(again.results) == json.dumps(results)
    assert results["voc_exact"]["recall25"] == pytest.approx(200 / 3)
    assert "recall75" in results["voc_exact"]


def test_runs_by_data_sets_are_a_matrix_with_intervals(tool, runs, dataset, tmp_path, capsys):
    other = f"{NAME}_other"
    DatasetCatalog.register(other, lambda: dataset[:6])
    MetadataCatalog.get(other).set(thing_classes=["target"])
    try:
        write_run(tmp_path / "both", dataset, 0.6)
        rows = json.loads((tmp_path / "both" / "inference" / NAME / "coco_instances_results.json").read_text())
        path = tmp_path / "both" / "inference" / other / "coco_instances_results.json"
        path.parent.mkdir()
        kept = {record["image_id"] for record in dataset[:6]}
        path.write_text(json.dumps([row for row in rows if row["image_id"] in kept]))
        arguments = [runs[1], str(tmp_path / "both"), "--dataset", NAME, other, "--bootstrap", "50"]
        output = tmp_path / "matrix"
        assert tool.main([*arguments, "--evaluators", "voc", "pd_fa", "--errors", "--output", str(output)]) == 0
    finally:
        DatasetCatalog.remove(other)
        MetadataCatalog.remove(other)
    printed = capsys.readouterr().out
    table = printed.split("\n\n")[0].splitlines()
    assert cells(table[0]) == ["voc_exact/AP50_area", NAME, other]
    assert [cells(line)[0] for line in table[2:]] == ["strong", "both"]
    assert cells(table[2])[2] == "-"  # no predictions on the second set
    value, low, high = map(float, re.findall(r"[\d.]+", cells(table[3])[1]))
    assert low <= value <= high
    assert f"## {other}" in printed
    assert "AP50 if mended" in printed
    found = json.loads(output.with_suffix(".json").read_text())
    assert found[NAME]["runs"]["both"]["results"]["voc_exact"]["AP50_area"] == pytest.approx(value, abs=0.005)


def test_runs_of_one_name_have_one_number_on_every_set(tool, dataset, tmp_path, capsys):
    """Where the first is missing on a set, the second one does not take its row."""
    other = f"{NAME}_other"
    DatasetCatalog.register(other, lambda: dataset)
    MetadataCatalog.get(other).set(thing_classes=["target"])
    try:
        for folder, quality in (("a", 0.2), ("b", 0.95), ("c", 0.6)):
            path = write_run(tmp_path / folder / "run", dataset, quality)
            if folder != "a":
                (path.parent.parent / other).mkdir()
                (path.parent.parent / other / path.name).write_bytes(path.read_bytes())
        arguments = [*(str(tmp_path / folder / "run") for folder in "abc"), "--dataset", NAME, other]
        assert tool.main([*arguments, "--evaluators", "voc"]) == 0
    finally:
        DatasetCatalog.remove(other)
        MetadataCatalog.remove(other)
    table = [cells(line) for line in capsys.readouterr().out.split("\n\n")[0].splitlines()[2:]]
    assert [row[0] for row in table] == ["run (1)", "run (2)", "run (3)"]
    assert table[0][2] == "-"
    assert [row[2] for row in table[1:]] == [row[1] for row in table[1:]]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/run/best.pth", "b/run/best.pth"], ["run_best", "run_best_2"]),
        (["run/best.pth", "run/last.pth"], ["run_best", "run_last"]),
        (["fcos_dense", "fcos_dense"], ["fcos_dense_fcos_dense", "fcos_dense_fcos_dense_2"]),
        (["a/one/best.pth", "b/two/best.pth"], ["one", "two"]),
    ],
)
def test_every_model_has_a_folder_of_its_own(files, names):
    """Or the detections of the second would be judged as those of both."""
    assert model_names(files) == names


def test_the_protocol_comes_from_the_runs_configuration_unless_given(tool, runs, dataset, tmp_path, capsys, caplog):
    weak, strong = (tmp_path / name for name in ("weak", "strong"))
    (weak / "config.yaml").write_text("TEST: {SCORE_THRESHOLD: 0.9, DETECTIONS_PER_IMAGE: 1}\n")

    def metrics(*arguments):
        output = tmp_path / "found"
        assert tool.main([*arguments, "--dataset", NAME, "--output", str(output)]) == 0
        results = json.loads(output.with_suffix(".json").read_text())["runs"]
        return {name: (run["results"]["pd_fa"]["Pd"], run["results"]["bbox"]["AR"]) for name, run in results.items()}

    own = metrics(str(weak), str(strong))
    file = str(strong / "inference" / NAME / "coco_instances_results.json")
    given = metrics(file, "--score-threshold", "0.9", "--max-detections", "1")
    default = metrics(file)
    assert own["strong"] == given["strong"] != default["strong"]
    assert (
        metrics(str(weak), str(strong), "--score-threshold", "0.5", "--max-detections", "100")["strong"]
        == (default["strong"])
    )
    caplog.clear()
    (strong / "config.yaml").write_text("TEST: {SCORE_THRESHOLD: 0.5, DETECTIONS_PER_IMAGE: 1}\n")
    assert metrics(str(weak), str(strong)) == own
    assert "TEST.SCORE_THRESHOLD 0.9 in place of its own 0.5" in caplog.text


def test_models_run_by_name_and_by_file(tool, dataset, tmp_path, capsys, monkeypatch):
    """Without a training's folder; the detections are those of the model that is not made fast."""
    monkeypatch.chdir(tmp_path)
    cfg = model_zoo.get_config("fcos_dense")
    cfg.MODEL.DEVICE = "cpu"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text(cfg.dump())
    model = model_zoo.get("fcos_dense", device="cpu")
    torch.save({"model": model.state_dict()}, tmp_path / "mine" / "model_final.pth")
    weights = ["--weights", "fcos_dense", "mine/model_final.pth"]
    assert tool.main([*weights, "--dataset", NAME, "--evaluators", "voc", "pd_fa"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"evaluator +\| metric +\| fcos_dense +\| mine", table)
    rows = [
        json.loads(find_predictions(tmp_path / "evaluation" / run, NAME).read_text()) for run in ("fcos_dense", "mine")
    ]
    assert rows[0] == rows[1]
    loader = IRSTDTrainer.build_test_loader(cfg, NAME)
    for sample in (batch[0] for batch in loader):
        with torch.no_grad():
            expected = model([sample])[0]["instances"]
        found = [row for row in rows[0] if row["image_id"] == sample["image_id"]]
        assert len(found) == len(expected) > 0
        scores = np.sort([row["score"] for row in found])[::-1]
        assert np.allclose(scores, expected.scores.sort(descending=True).values, atol=1e-4)

    assert load_program(REPORT).main(["--weights", "fcos_dense", "--dataset", NAME, "--draws", "0"]) == 0
    assert "fcos_dense" in (tmp_path / "report.html").read_text()


def test_what_a_model_needs_is_said(tool, dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (["--dataset", NAME], "give PREDICTIONS, or models to run"),
        (["--weights", "fcos_dens", "--dataset", NAME], "neither a file nor a model of the zoo"),
        (["--weights", "fcos_dense", "--dataset", "nothing"], "'nothing', which is not registered"),
    ):
        assert tool.main(arguments) == 2
        assert said in capsys.readouterr().err.splitlines()[-1]
    MetadataCatalog.get(NAME).thing_classes[:] = ["drone"]
    assert tool.main(["--weights", "fcos_dense", "--dataset", NAME]) == 2
    assert "CLASS_ALIASES" in capsys.readouterr().err.splitlines()[-1]
