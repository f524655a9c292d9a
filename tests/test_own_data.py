"""The commands and the Python of docs/own_data.md, run as they stand in an empty folder with twenty images."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from documented import Shell, blocks

from irstd_d2.data.convert import read_voc
from irstd_d2.synthetic import SceneConfig, SceneGenerator

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own_data.md"


def write_raw_data(folder):
    """Four sequences of five frames in ``raw/``, a table of cameras, and one large image."""
    generator = SceneGenerator(SceneConfig(seed=3, size=(128, 128), balance="uniform", bits=16))
    table = ["id,platform,band"]
    for kind in ("images", "masks"):
        (folder / "raw" / kind).mkdir(parents=True)
    for i in range(20):
        scene, name = generator.scene(i), f"seq{i // 5}_{i % 5}"
        cv2.imwrite(str(folder / "raw" / "images" / f"{name}.png"), scene.image)
        cv2.imwrite(str(folder / "raw" / "masks" / f"{name}.png"), (scene.target_mask > 0).astype(np.uint8) * 255)
        table.append(f"{name},{scene.metadata['platform']},{scene.metadata['band']}")
    (folder / "cameras.csv").write_text("\n".join(table))
    large = np.concatenate([np.concatenate([generator.scene(i + j).image for i in range(3)], 1) for j in range(2)])
    cv2.imwrite(str(folder / "large.tif"), large)


@pytest.fixture
def _own_sets():
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.slow
@pytest.mark.usefixtures("_own_sets")
def test_the_page_works_as_written(tmp_path, tmp_path_factory, monkeypatch):
    write_raw_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    other = tmp_path_factory.mktemp("other")
    script = "\n".join(blocks(PAGE, "bash"))
    code, calls = Shell(other / "bin").run(script, tmp_path, {"ITERATIONS": "3"}, other / "log")
    printed = (other / "log").read_text()
    assert code == 0, printed
    assert [Path(call[1]).stem for call in calls] == [
        *("convert_dataset", "merge_metadata", "check_dataset", "split_dataset"),
        *("train_net", "train_net", "report", "evaluate", "demo", "demo", "export_model", "runtime"),
    ]

    found = read_voc(tmp_path / "mine")
    assert len(found.records) == 20
    assert all(record.platform and record.band for record in found.records)
    sequences = [{name.split("_")[0] for name in names} for names in found.splits.values()]
    assert not sequences[0] & sequences[1]
    assert len(sequences[0] | sequences[1]) == 4
    assert "20 images" in printed
    exported = [json.loads(line) for line in printed.splitlines() if line.startswith('{"file_name"')]
    assert len(exported) == 20
    assert all(len(row["boxes"]) == len(row["scores"]) for row in exported)
    assert list((tmp_path / "check").glob("*.png"))
    assert "mine_val" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "platform" in printed
    for folder in ("output", "evaluation"):
        assert (tmp_path / folder / "inference" / "mine_val" / "coco_instances_results.json").is_file()
    names = {record.name for record in found.records}
    assert {path.stem for path in (tmp_path / "found").glob("*.png")} == names
    assert {path.stem for path in (tmp_path / "found" / "voc").glob("*.xml")} == names
    assert isinstance(json.loads((tmp_path / "found" / "detections.json").read_text()), list)
    assert (tmp_path / "found" / "detections.csv").is_file()
    assert (tmp_path / "found_large" / "large.png").is_file()

    (program,) = blocks(PAGE, "python")
    namespace: dict = {}
    exec(program, namespace)  # noqa: S102  our own page
    assert namespace["instances"].image_size == (256, 384)
    assert namespace["boxes"].shape == (len(namespace["scores"]), 4)


def test_every_tool_and_file_on_the_page_exists(repo_root):
    text = PAGE.read_text(encoding="utf-8")
    for path in re.findall(r"(?:tools|configs|tests|datasets)/[\w/.]+\.(?:py|md|yaml)", text):
        assert (repo_root / path).exists(), path
