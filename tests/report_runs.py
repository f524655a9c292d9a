"""A small data set and runs on it, for tests of the report; ``register_set`` is the body of their ``data_set``."""

import json
from html.parser import HTMLParser

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from irstd_d2.evaluation.collection import PREDICTIONS_FILE
from irstd_d2.reporting import Options, write_report

HOSTILE = "<img src=x onerror=document.title=1> $\\bad"
QUICK = Options(gallery=0, examples=0, draws=0)
VOID = {"meta", "link", "img", "br", "wbr"}


def register_set(folder):
    """Yield the name and the records of a registered set of six images with hostile names in ``folder``."""
    name = "report_test_set"
    rng = np.random.default_rng(0)
    dicts = []
    for i in range(6):
        image = rng.integers(20, 60, (64, 80), np.uint8)
        corner = rng.integers(5, 50, (2, 2))
        boxes = np.concatenate([corner, corner + 3], 1)
        for x1, y1, x2, y2 in boxes:
            image[y1:y2, x1:x2] = 220
        path = folder / f"{i} {HOSTILE.replace('/', '')}.png"
        sky = np.zeros((64, 80), np.uint8)
        sky[:30] = 255
        for file, pixels in ((path, image), (folder / f"sky {i}.png", sky)):
            file.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        dicts.append(
            {
                "file_name": str(path),
                "sem_seg_file_name": str(folder / f"sky {i}.png"),
                "image_id": f"im{i}",
                "height": 64,
                "width": 80,
                "metadata": {"platform": "Air" if i % 2 else HOSTILE, "band": "LWIR", "width": 80, "height": 64},
                "annotations": [
                    {"bbox": b.tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0} for b in boxes
                ],
            }
        )
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=["target"])
    yield name, dicts
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def make_run(folder, data_set, *, shift=0, iterations=30):
    name, dicts = data_set
    rng = np.random.default_rng(1)
    rows = []
    for record in dicts:
        for annotation in record["annotations"]:
            x1, y1, x2, y2 = annotation["bbox"]
            bbox = [x1 + shift, y1, x2 - x1, y2 - y1]
            rows.append({"image_id": record["image_id"], "category_id": 0, "bbox": bbox, "score": rng.random()})
        rows.append({"image_id": record["image_id"], "category_id": 0, "bbox": [1, 1, 4, 4], "score": rng.random()})
    (folder / "inference" / name).mkdir(parents=True)
    (folder / "inference" / name / PREDICTIONS_FILE).write_text(json.dumps(rows))
    lines = [{"iteration": i, "total_loss": 3 / (1 + i), "lr": 0.01, "roi_head/num": 1} for i in range(iterations)]
    lines.append({"iteration": iterations, "bbox/AP50": 1.0, "sky/IoU": 61.5, "sky/platform/Air/IoU": 62.25})
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in lines))
    (folder / "config.yaml").write_text(
        f"DATASETS:\n  TEST: [{name}]\nNOTE: '{HOSTILE}'\nSHIFT: {shift}\nSOLVER: {{MAX_ITER: {iterations}}}\n"
    )
    (folder / "log.txt").write_text(
        "[11/21 05:00:00 d2]: Environment info:\n----\nPyTorch  2.x\n----\n[11/21 05:00:01 d2]: next line\n"
    )
    return folder


def report(folders, tmp_path, options=QUICK):
    return write_report(folders, tmp_path / "out" / "report.html", options=options).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Elements of a page, with a check that tags are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]
