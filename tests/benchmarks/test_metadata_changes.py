"""Right, wrong and missing metadata of a trained AuxDet."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from metadata import changes, compared, detect, table

from irstd_d2 import get_config
from irstd_d2.data import load_voc
from irstd_d2.errors import ConfigError
from tests.voc_files import VocSet

PLATFORMS, BANDS = ("Air", "Space", "Land"), ("LWIR", "NIR")
OWN = [
    {"platform": "Air", "band": "LWIR", "width": 256, "height": 256},
    {"platform": "Land", "band": "LWIR", "width": 320, "height": 240},
    {"platform": "Space", "band": "NIR", "width": 320, "height": 240},
]


@pytest.mark.parametrize(
    ("field", "keys"), [("platform", ["platform"]), ("band", ["band"]), ("size", ["width", "height"])]
)
def test_one_field_changes_in_every_image_and_no_other(field, keys):
    made = changes(OWN, PLATFORMS, BANDS)
    for own, wrong, none in zip(OWN, made[f"wrong {field}"], made[f"no {field}"], strict=True):
        assert [wrong[key] for key in keys] != [own[key] for key in keys]
        assert all(none[key] is None for key in keys)
        others = set(own) - set(keys)
        assert all(wrong[key] == none[key] == own[key] for key in others)
    if field == "size":  # those of the set: no image has a width of 320 and a height of 256
        assert {(m["width"], m["height"]) for m in made["wrong size"]} <= {(256, 256), (320, 240)}


def test_all_at_once():
    made = changes(OWN, PLATFORMS, BANDS)
    assert made["right"] == OWN
    assert all(value is None for metadata in made["none"] for value in metadata.values())
    assert sorted(map(str, made["of another image"])) == sorted(map(str, OWN))
    assert "wrong size" not in changes(OWN[:1] * 3, PLATFORMS, BANDS)


@pytest.fixture
def conditioned_set(tmp_path):
    voc = VocSet(tmp_path / "data", "wideirstd")
    for name, (view, band) in {"a": ("Air", "LWIR"), "b": ("Land", "LWIR"), "c": ("Space", "NIR")}.items():
        voc.add(name, 64, 48, boxes=((20, 10, 26, 15),), extra=f"<view>{view}</view><band_type>{band}</band_type>")
    voc.split("val", "a\nb\nc\n")
    name = "metadata_changes_val"
    DatasetCatalog.register(name, lambda: load_voc(tmp_path / "data", "val", layout="wideirstd"))
    MetadataCatalog.get(name).set(thing_classes=["Target"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_a_run_is_tested_with_every_change_once(conditioned_set, tmp_path):
    run = tmp_path / "auxdet_0"
    run.mkdir()
    cfg = get_config(
        "configs/auxdet/tiny/auxdet_fine.yaml", ["MODEL.DEVICE", "cpu", "DATASETS.TEST", (conditioned_set,)]
    )
    (run / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, run / "model_final.pth")
    folders = detect(run, conditioned_set, tmp_path / "out")
    files = {name: next(folder.rglob("*.json")) for name, folder in folders.items()}
    assert files["right"].read_bytes() != files["none"].read_bytes()
    assert files["right"].read_bytes() != files["wrong platform"].read_bytes()
    kept = {name: file.stat().st_mtime_ns for name, file in files.items()}
    assert detect(run, conditioned_set, tmp_path / "out") == folders
    assert kept == {name: file.stat().st_mtime_ns for name, file in files.items()}
    again = detect(run, conditioned_set, tmp_path / "some", ["none"])
    assert list(again) == ["none"]
    assert next(again["none"].rglob("*.json")).read_bytes() == files["none"].read_bytes()
    with pytest.raises(ConfigError, match="--only has 'no bands'; known are 'right',"):
        detect(run, conditioned_set, tmp_path / "some", ["none", "no bands"])
    text = table(compared([folders] * 3, conditioned_set), "metadata")
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == list(folders)
    assert np.all(["too few" not in line for line in text.splitlines()])
    assert "too few seeds" in compared([folders], conditioned_set)[1][2]
