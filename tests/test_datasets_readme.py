"""The commands of datasets/README.md, on sets of the published form, and the names that they make usable."""

from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from documented import Shell, blocks


def write_set(root, images, masks, lists):
    for folder in (images, masks):
        (root / folder).mkdir(parents=True)
    for i in range(4):
        mask = np.zeros((32, 32), np.uint8)
        mask[i : i + 3, 5:8], mask[20, 20], mask[21, 21] = 255, 255, 255
        cv2.imwrite(str(root / images / f"{i}.png"), mask // 2 + 20)
        cv2.imwrite(str(root / masks / f"{i}.png"), mask)
    for path, names in lists.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(names)


def test_sets_of_masks_become_registered_sets(tmp_path, repo_root, monkeypatch):
    downloads, datasets = tmp_path / "downloads", tmp_path / "datasets"
    write_set(downloads / "IRSTD-1k", "IRSTD1k_Img", "IRSTD1k_Label", {"trainval.txt": "0\n1\n2\n", "test.txt": "3\n"})
    write_set(downloads / "NUDT-SIRST", "images", "masks", {"50_50/train.txt": "0\n1\n", "50_50/test.txt": "2\n3\n"})
    write_set(downloads / "NUAA-SIRST", "images", "masks", {"50_50/train.txt": "1\n", "50_50/test.txt": "0\n3\n"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    script = "\n".join(blocks(repo_root / "datasets" / "README.md", "bash"))
    code, calls = Shell(tmp_path / "bin").run(script, tmp_path, {}, tmp_path / "log")
    assert code == 0, (tmp_path / "log").read_text()
    assert [Path(call[1]).stem for call in calls] == ["convert_dataset"] * 3
    counts = {"irstd1k_trainval": 3, "irstd1k_test": 1, "nudtsirst_train": 2, "nudtsirst_test": 2}
    counts |= {"nuaasirst_train": 1, "nuaasirst_test": 2}
    for name, count in counts.items():
        dicts = DatasetCatalog.get(name)
        assert len(dicts) == count
        platform = "Air" if name.startswith("nudtsirst") else "Land"
        for sample in dicts:
            assert (sample["metadata"]["platform"], sample["metadata"]["band"]) == (platform, "LWIR")
            i = int(sample["image_id"])
            boxes = sorted(obj["bbox"] for obj in sample["annotations"])
            assert boxes == [[5, i, 8, i + 3], [20, 20, 22, 22]]
    assert len(list((datasets / "IRSTD-1K" / "VOC2007" / "Masks").glob("*.png"))) == 4
