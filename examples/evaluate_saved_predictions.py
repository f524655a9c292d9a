"""All evaluators on a saved predictions file in COCO's result format, without the model that made it."""

import json
import tempfile
from pathlib import Path

from detectron2.data import DatasetCatalog

from irstd_d2.data import register_voc_folder
from irstd_d2.evaluation import (
    CentreDistanceEvaluator,
    DetectionProbabilityEvaluator,
    GroundTruth,
    VOCDetectionEvaluator,
    add_predictions_file,
    format_results,
)
from irstd_d2.synthetic import write_wideirstd

root = Path(tempfile.mkdtemp())  # stands for your data and for predictions that hit every second target
write_wideirstd(root, train=1, val=4, progress=False)
register_voc_folder("saved_val", next(root.rglob("VOC2007")), "val")
boxes = [(d["image_id"], a["bbox"]) for d in DatasetCatalog.get("saved_val") for a in d["annotations"]]
rows = [
    {"image_id": image, "category_id": 0, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": 0.9}
    for image, (x0, y0, x1, y1) in boxes[::2]
]
(root / "predictions.json").write_text(json.dumps(rows))

truth = GroundTruth.from_dataset("saved_val")
results = {}
for evaluator in (VOCDetectionEvaluator(truth), DetectionProbabilityEvaluator(truth), CentreDistanceEvaluator(truth)):
    add_predictions_file(evaluator, root / "predictions.json")
    results.update(evaluator.evaluate())
table = format_results(results)
