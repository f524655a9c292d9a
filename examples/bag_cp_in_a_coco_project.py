"""BAG-CP for a COCO file with sky masks: the targets of the set are pasted into the sky of its training images."""

import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog

import bafe_d2  # noqa: F401  registers its parts
from irstd_d2 import get_config
from irstd_d2.data import build_mapper, register_coco_folder

root = Path(tempfile.mkdtemp())  # stands for your project: an image, its sky mask (1 is sky), a COCO file
image = np.full((200, 300), 60, np.uint8)
image[40:43, 50:53] = 220
cv2.imwrite(str(root / "a.png"), image)
cv2.imwrite(str(root / "a_sky.png"), np.repeat([1, 0], 100).astype(np.uint8)[:, None].repeat(300, 1))
coco = {
    "images": [{"id": 1, "file_name": "a.png", "width": 300, "height": 200, "sem_seg_file_name": "a_sky.png"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [50, 40, 3, 3], "area": 9, "iscrowd": 0}],
    "categories": [{"id": 1, "name": "target"}],
}
(root / "coco.json").write_text(json.dumps(coco))

register_coco_folder("my_coco", root / "coco.json", root)
cfg = get_config(None, ["DATASETS.TRAIN", ("my_coco",), "OUTPUT_DIR", str(root)])
cfg.INPUT.MAPPER = "BackgroundDatasetMapper"
cfg.INPUT.BAG_CP.ENABLED = cfg.INPUT.BAG_CP.BEFORE_RESIZE = True
mapper = build_mapper(cfg, is_train=True)
sample = mapper(DatasetCatalog.get("my_coco")[0])
