"""Metadata of your own source, here the name of the file, in a mapper of your own that a configuration names."""

import tempfile
from pathlib import Path

from detectron2.data import DatasetCatalog

from auxdet_d2.data import MetadataDatasetMapper
from irstd_d2 import get_config
from irstd_d2.data import MAPPER_REGISTRY, build_mapper, register_voc_folder
from irstd_d2.synthetic import write_wideirstd


@MAPPER_REGISTRY.register()
class FileNameMapper(MetadataDatasetMapper):
    """Images of the satellite are called ``sat_*``, those of the mast ``mast_*``; both cameras see LWIR."""

    def __call__(self, dataset_dict):
        platform = "Space" if Path(dataset_dict["file_name"]).name.startswith("sat_") else "Land"
        return super().__call__({**dataset_dict, "metadata": {"platform": platform, "band": "LWIR"}})


root = Path(tempfile.mkdtemp())
write_wideirstd(root, train=4, val=1, progress=False)  # stands for your data
register_voc_folder("mine_train", next(root.rglob("VOC2007")), "train")
cfg = get_config(None, ["INPUT.MAPPER", "FileNameMapper", "DATASETS.TRAIN", ("mine_train",)])
mapper = build_mapper(cfg, is_train=True)
samples = [mapper(record) for record in DatasetCatalog.get("mine_train")]
