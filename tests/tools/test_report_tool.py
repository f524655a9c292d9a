"""tools/report.py on models of both systems: feature maps before and after their modules, predicted skies."""

import json
import re
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
import toy_training as toy
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.engine.checkpoint import IRSTDCheckpointer

NAME = "report_tool_set"


@pytest.fixture
def tool(repo_root, tmp_path, monkeypatch):
    monkeypatch.chdir(repo_root)
    dicts = toy.make_dicts(tmp_path, 2, 7)
    for record in dicts:
        record["sem_seg_file_name"] = record["file_name"].replace(".png", "_sky.png")
        cv2.imwrite(record["sem_seg_file_name"], np.repeat(np.uint8([255, 0]), 32)[:, None].repeat(64, 1))
    DatasetCatalog.register(NAME, lambda: dicts)
    MetadataCatalog.get(NAME).set(thing_classes=["target"])

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path("tools/report.py", run_name="__main__")
        return end.value.code

    yield run
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def save_run(folder, config):
    size = ["INPUT.RESIZE_MODE", "fixed", "INPUT.FIXED_SIZE", "(64, 64)", "MODEL.DEVICE", "cpu"]
    cfg = get_config(config, size)
    torch.manual_seed(0)
    (folder / "inference" / NAME).mkdir(parents=True)
    IRSTDCheckpointer(build_model(cfg), str(folder)).save("model_best")
    (folder / "config.yaml").write_text(cfg.dump())
    box = {"image_id": "7_0", "category_id": 0, "bbox": [3, 4, 5, 6], "score": 0.5}
    (folder / "inference" / NAME / "coco_instances_results.json").write_text(json.dumps([box]))
    return folder


def test_feature_maps_and_skies_of_both_systems(tool, tmp_path):
    runs = [
        save_run(tmp_path / name, f"configs/{config}.yaml")
        for name, config in (("aux", "auxdet/tiny/auxdet_tiny"), ("bafe", "bafe/tiny/bafe_tiny"))
    ]
    (tmp_path / "bare").mkdir()
    output = tmp_path / "out" / "report.html"
    arguments = ["--output", output, "--features", 1, "--gallery", 1, "--examples", 2, "--draws", 0]
    assert tool(*runs, tmp_path / "bare", *arguments, "--title", "A & B") == 0
    text = output.read_text(encoding="utf-8")
    assert "<title>A &amp; B</title>" in text
    assert text.count("Feature maps of aux</summary>") == 1
    aux, bafe = text.split("Feature maps of aux</summary>")[1].split("Feature maps of bafe</summary>")
    titles = ["before M2DM", "after M2DM", "edges by LEEM", "after LEEM", "neck: what the heads see"]
    assert re.findall(r'<th scope="row">([^<]*)</th>', aux) == titles
    titles = [f"{task}, {when} exchange" for task in ("background", "classification") for when in ("before", "after")]
    rows = bafe[: bafe.index("</table>")]
    assert re.findall(r'<th scope="row">([^<]*)</th>', rows) == [*titles, "neck: what the heads see"]
    assert re.findall(r"level (\d), \d+×\d+, targets ×[\d.]+</figcaption>", rows[: rows.index("</tr>")])[0] == "1"
    assert "True sky: 50 % of the image" in text
    assert re.search(r"bafe: predicted sky, IoU [\d.]+ %", text)
    assert "aux: predicted sky" not in text
    assert "<b>bare</b>: No feature maps and sky masks: config.yaml is missing or cannot be read." in text


def test_a_run_that_does_not_exist(tool, tmp_path, capsys):
    assert tool(tmp_path / "nowhere") == 2
    assert f"{tmp_path / 'nowhere'}: run: is not a folder" in capsys.readouterr().err
