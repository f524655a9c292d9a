"""The HTML report: complete, self-contained, and safe with hostile names."""

import json
import math
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from report_runs import HOSTILE, QUICK, Page, make_run, register_set, report
from voc_files import VocSet

from irstd_d2.evaluation.collection import PREDICTIONS_FILE, add_predictions_file
from irstd_d2.evaluation.ground_truth import GroundTruth
from irstd_d2.evaluation.table_evaluation import VOCDetectionEvaluator
from irstd_d2.reporting import Options, write_report
from irstd_d2.reporting.charts import group_chart, series_chart
from irstd_d2.reporting.examples import spread_over_targets
from irstd_d2.reporting.metrics import difference_cells, setting_differences
from irstd_d2.reporting.run import load_run, weights_of

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def data_set(tmp_path):
    yield from register_set(tmp_path)


def test_sets_that_a_run_registered_are_registered_for_its_report(tmp_path):
    name = "report_own_set"
    VocSet(tmp_path / "mine").add("a").split("val", "a\n")
    run = tmp_path / "run"
    (run / "inference" / name).mkdir(parents=True)
    row = {"image_id": "a", "category_id": 0, "bbox": [3, 4, 3, 4], "score": 0.9}
    (run / "inference" / name / PREDICTIONS_FILE).write_text(json.dumps([row]))
    (run / "config.yaml").write_text(f"DATASETS: {{OWN: [[{name}, {tmp_path / 'mine'}, val]], TEST: [{name}]}}\n")
    try:
        text = write_report([run], tmp_path / "report.html", options=QUICK).read_text()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert "1 images, 1 targets" in text
    for own in ("[[a, b]]", "3"):
        (run / "config.yaml").write_text(f"DATASETS: {{OWN: {own}}}\n")
        assert "Its own data sets are not registered" in write_report([run], tmp_path / "b.html").read_text()


def test_report_of_two_runs(tmp_path, data_set):
    first = make_run(tmp_path / "baseline", data_set, shift=2)
    second = make_run(tmp_path / HOSTILE, data_set)
    text = report([first, second], tmp_path, Options(gallery=4, examples=2, draws=50))
    assert "6 images, 12 targets" in text
    row = re.search(r"<th scope=\"row\">AP50_area</th><td>(.*?)</td><td>(.*?)</td><td class=\"(.*?)\">(.*?)<", text)
    assert float(row[2]) - float(row[1]) == pytest.approx(float(row[4]), abs=0.011)
    assert row[3] == "difference better"  # every image gains, so the interval excludes zero
    assert "PyTorch  2.x" in text
    assert ">SHIFT</th>" in text
    page = Page(text)
    # Nothing is loaded from elsewhere, nothing runs, and no hostile name became markup.
    assert not page.all("script")
    assert not [a for _, a in page.elements if any(key.startswith("on") for key in a)]
    links = [a[key] for _, a in page.elements for key in ("src", "href", "xlink:href") if key in a]
    assert all(link.startswith(("data:", "#")) for link in links)
    assert {"x", "javascript:"}.isdisjoint(links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "&lt;img src=x onerror=document.title=1&gt;" in text
    # Everything that is a picture says what it shows; no two things have one name.
    assert len(page.all("img")) >= 2 + 2 * 2 + 4
    assert all(attributes["alt"] for attributes in page.all("img"))
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names))
    assert {link[1:] for link in links if link.startswith("#")} <= set(names)
    charts = [a["aria-label"] for a in page.all("div") if a.get("role") == "img"]
    for title in ("Precision and recall", "Pd and Fa", "FROC", "AP50 by platform", "AP50 by size", "Best F1 by sky"):
        assert any(title in label for label in charts), title
    assert any("total_loss. Last values: 0.1 at iteration 29; 0.1 at iteration 29" in label for label in charts)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on the PATH")
def test_hostile_names_do_nothing_in_a_browser(tmp_path, data_set):
    def elements_of(path):
        """The page after its scripts have run."""
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--virtual-time-budget=3000", "--dump-dom", path.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    open_to_all = tmp_path / "open.html"
    open_to_all.write_text(f"<title>safe</title><p>{HOSTILE}</p>")
    assert "<title>1</title>" in elements_of(open_to_all)
    run = make_run(tmp_path / HOSTILE, data_set, shift=2)
    path = write_report([run], tmp_path / "report.html", options=Options(gallery=4, examples=2, draws=0))
    written, shown = path.read_text(encoding="utf-8"), elements_of(path)
    titles = [re.search(r"<title>(.*?)</title>", text, re.DOTALL)[1] for text in (written, shown)]
    assert titles[0] == titles[1] != "1"
    assert shown.count("&lt;img src=x onerror") >= 5
    assert "<img src=x" not in shown


def test_equal_numbers_in_report_and_evaluator(tmp_path, data_set):
    run = make_run(tmp_path / "a", data_set, shift=1)
    text = report([run], tmp_path)
    evaluator = VOCDetectionEvaluator(GroundTruth.from_dataset(data_set[0]), iou_thresholds=(0.25, 0.5, 0.75))
    add_predictions_file(evaluator, run / "inference" / data_set[0] / PREDICTIONS_FILE)
    table = text[text.index("<b>voc_exact</b>") :]
    for metric, value in evaluator.evaluate()["voc_exact"].items():
        row = re.search(rf'<th scope="row">{metric}</th><td>(.*?)</td>', table)
        assert row[1] == f"{value:.2f}", metric
    assert "<img" not in text
    assert "95 % intervals" not in text


def test_masks_are_judged_beside_boxes(tmp_path, data_set):
    name, dicts = data_set
    boxes, maps, truth = (
        make_run(tmp_path / "boxes", data_set),
        tmp_path / "maps" / "inference" / name,
        tmp_path / "truth",
    )
    for folder, value in ((truth, 255), (maps, 200)):
        folder.mkdir(parents=True)
        for record in dicts:
            mask = np.zeros((64, 80), np.uint8)
            for x1, y1, x2, y2 in (annotation["bbox"] for annotation in record["annotations"]):
                mask[y1:y2, x1:x2] = value
            cv2.imwrite(str(folder / f"{record['image_id']}.png"), mask)
    (maps / "im5.png").unlink()
    options = Options(gallery=0, examples=0, draws=20, figures=tmp_path / "figures")
    text = write_report([boxes, tmp_path / "maps"], tmp_path / "r.html", options=options).read_text()
    assert "Masks are not judged: report_test_set: target masks: the set has none" in text
    assert "ROC of pixels" not in text
    (boxes / "config.yaml").write_text(f"TEST:\n  TARGET_MASKS: {truth}\n")
    text = write_report([boxes, tmp_path / "maps"], tmp_path / "r.html", options=options).read_text()
    assert "Masks are not judged" not in text
    assert "boxes: masks are made from its boxes" in text
    assert "maps: boxes are the bounds of its masks" in text
    assert "1 images have no predictions and count as empty" in text
    assert "Precision and recall of pixels" in text
    assert "ROC of pixels" in text
    row = re.search(r"<tr>\s*<t[hd][^>]*>seg_IoU</t[hd]>.*?</tr>", text, re.DOTALL)
    assert row is not None
    assert "100.00" in row[0]
    assert len(list((tmp_path / "figures").rglob("*of_pixels.pdf"))) == 2


def test_what_training_logged_is_shown_where_it_cannot_be_computed(tmp_path, data_set):
    text = report([make_run(tmp_path / "a", data_set, iterations=5)], tmp_path)
    assert "as logged by the training: a at iteration 5" in text
    assert re.search(r'<b>sky</b>.*?<th scope="row">IoU</th><td>61.50</td>', text, re.DOTALL)
    assert "1.00</td>" not in re.search(r"<b>bbox</b>.*?</table>", text, re.DOTALL)[0]  # computed from the detections
    assert "roi_head" not in text
    run = load_run(tmp_path / "a")
    assert run.logged_results("x") == (5, {"bbox": {"AP50": 1.0}, "sky": {"IoU": 61.5, "platform/Air/IoU": 62.25}})


def test_intervals_and_paired_comparison(tmp_path, data_set):
    runs = [make_run(tmp_path / "a", data_set, shift=2), make_run(tmp_path / "b", data_set)]
    text = report(runs, tmp_path, Options(gallery=0, examples=0, draws=60))
    row = re.search(r'<th scope="row">voc_exact AP50_area</th>(.*?)</tr>', text)[1]
    first, second, difference, p = re.findall(r"<td.*?>(.*?)</td>", row)
    assert re.fullmatch(r"0\.00 \(0\.00 to 0\.00\)", first)
    value, low, high = map(float, re.findall(r"[\d.]+", second))
    assert low <= value <= high
    assert difference.startswith(f"+{value:.2f} (+{low:.2f} to ")
    assert 0 < float(p) < 0.2


def test_runs_of_the_same_name_are_told_apart(tmp_path, data_set):
    runs = [make_run(tmp_path / part / "run", data_set) for part in "ab"]
    text = report([*runs, make_run(tmp_path / "a_<b>", data_set)], tmp_path)
    assert '<th scope="col">run (1)</th><th scope="col">run (2)</th>' in text
    assert '<th scope="col">a_<wbr>&lt;b&gt;</th>' in text


def test_the_gallery_names_the_worst_and_survives_images_that_are_gone(tmp_path, data_set):
    dicts = data_set[1]
    run = make_run(tmp_path / "a", data_set, shift=40)
    text = report([run], tmp_path, Options(gallery=2, examples=1, draws=0))
    assert len(re.findall(r"False alarm \(.*?\), score 0\.\d\d, at x", text)) == 2 * 2  # caption and alternative text
    assert len(re.findall(r"Missed target of 3×3 pixels", text)) == 2 * 2
    assert "0 found, 2 missed" in text
    for record in dicts:
        (tmp_path / record["file_name"].rpartition("/")[2]).unlink()
    text = report([run], tmp_path, Options(gallery=2, examples=1, draws=0))
    assert "no picture" in text
    assert "The image cannot be shown" in text
    assert "Not broken down by contrast: 6 files are missing" in text
    assert "AP50 by platform" in text
    assert "AP50 by contrast" not in text
    Page(text)


def test_a_perfect_run_has_an_empty_gallery(tmp_path, data_set):
    run = make_run(tmp_path / "a", data_set)
    path = run / "inference" / data_set[0] / PREDICTIONS_FILE
    path.write_text(json.dumps([row for row in json.loads(path.read_text()) if row["bbox"] != [1, 1, 4, 4]]))
    text = report([run], tmp_path, Options(gallery=3, examples=0, draws=0))
    assert "0 false alarms, 0 missed targets" in text
    assert text.count("<p>None.</p>") == 2


def test_the_best_weights_of_a_run(tmp_path, data_set):
    folder = make_run(tmp_path / "a", data_set)
    elsewhere = tmp_path / "given.pth"
    elsewhere.touch()
    with (folder / "config.yaml").open("a") as file:
        file.write(f"MODEL: {{WEIGHTS: '{elsewhere}'}}\n")
    assert weights_of(load_run(folder)) is None  # what a training started from
    (folder / "last_checkpoint").write_text("../model_0000009.pth")
    for name in ("model_0000009.pth", "model_final.pth", "model_best.pth"):
        (folder / name).touch()
        assert weights_of(load_run(folder)) == folder / name
    for name in ("metrics.json", "model_0000009.pth", "model_final.pth", "model_best.pth"):
        (folder / name).unlink()
    assert weights_of(load_run(folder)) == elsewhere  # what an evaluation used


def test_differences_of_configurations(tmp_path, data_set):
    a, b, c = (make_run(tmp_path / n, data_set, shift=s) for n, s in (("a", 1), ("b", 2), ("c", 3)))
    (b / "config.yaml").write_text("SHIFT: 1\nSOLVER: {BASE_LR: 0.1}\nOUTPUT_DIR: x\n")
    (a / "config.yaml").write_text(f"SHIFT: [{'9, ' * 60}]\nSOLVER: {{BASE_LR: 0.1, MAX_ITER: 3}}\nOUTPUT_DIR: y\n")
    (c / "config.yaml").unlink()
    rows, partial = setting_differences([load_run(folder) for folder in (a, b, c)])
    assert [key for key, _ in rows] == ["SHIFT"]
    long, short, none = rows[0][1]
    assert (len(long), short, none) == (80, "1", "–")
    assert partial == ["SOLVER.MAX_ITER"]
    assert setting_differences([load_run(c)]) == ([], [])


def test_differences_are_coloured_by_the_verdict_of_the_interval_alone():
    values = [10.0, 12.5, 9.0, 10.001, math.nan, math.inf]
    cells = difference_cells(values, ["", "", "worse", "", "", ""])
    assert [(c.text, c.difference, c.verdict) for c in cells] == [
        ("10.00", "", ""),
        ("12.50", "+2.50", ""),
        ("9.00", "-1.00", "worse"),
        ("10.00", "+0.00", ""),
        ("-", "-", ""),
        ("inf", "-", ""),
    ]


def test_charts_hold_values_that_are_not_finite_and_hostile_labels():
    chart = series_chart({0: ([1, 2, 3], [1.0, math.inf, math.nan]), 8: (list(range(2000)), [1.0] * 2000)}, "loss")
    assert "currentColor" in chart.svg
    assert "#010203" not in chart.svg
    chart = group_chart({HOSTILE: {0: math.nan, 1: 2.0}, "b": {1: math.inf}}, "x")
    assert chart.text.endswith("bad: -, 2.0; b: -, inf")
    assert "<img" not in chart.svg
    assert "$\\bad" in chart.svg.replace("&lt;", "<")
    Page(chart.svg)
    assert "<svg" in group_chart({}, "nothing").svg


def test_examples_are_spread_over_the_images_with_targets(data_set):
    _, dicts = data_set
    without = [{**record, "image_id": f"without {i}", "annotations": []} for i, record in enumerate(dicts)]
    assert spread_over_targets(GroundTruth.from_dicts([*without, *dicts]), 3) == [6, 8, 11]
    assert spread_over_targets(GroundTruth.from_dicts(without), 2) == [0, 5]
    assert spread_over_targets(GroundTruth.from_dicts(dicts), 0) == []
    assert spread_over_targets(GroundTruth.from_dicts([]), 3) == []
    assert spread_over_targets(GroundTruth.from_dicts(dicts), 100) == list(range(6))
