"""Configuration keys of the data layer."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_data_config(cfg: CfgNode) -> None:
    """Add the keys of the data layer to ``cfg``, in place."""
    # Mapper from a dataset dict to a sample: a name in ``irstd_d2.data.MAPPER_REGISTRY``.
    cfg.INPUT.MAPPER = "IRSTDDatasetMapper"
    # "shortest_edge": aspect ratio kept, by detectron2's MIN_SIZE_* and MAX_SIZE_*.
    # "fixed": every image becomes FIXED_SIZE, aspect ratio not kept (BAFE-Net).
    # "scale": every image is enlarged or shrunk by the same factor SCALE; no target gets lost in the resize.
    cfg.INPUT.RESIZE_MODE = "shortest_edge"
    # (height, width) in pixels.
    cfg.INPUT.FIXED_SIZE = (512, 512)
    cfg.INPUT.SCALE = 1.0
    # In training, "scale" varies between SCALE / SCALE_JITTER and SCALE * SCALE_JITTER.
    cfg.INPUT.SCALE_JITTER = 1.0
    # In training: contrast times a factor of this range, brightness plus up to so many levels of 255 either way, and
    # the share of images whose hot and cold are exchanged. Infrared images have no common scale.
    cfg.INPUT.GAIN_RANGE = (1.0, 1.0)
    cfg.INPUT.OFFSET_RANGE = 0.0
    cfg.INPUT.INVERT_PROB = 0.0
    # Share of the training crops (detectron2's INPUT.CROP) that hold a whole target, in images that have one.
    cfg.INPUT.CROP.TARGET_PROB = 0.0
    # How pixels of more than 8 bits become [0, 255]: "auto", "full_range", "minmax" or "percentile"
    # (irstd_d2.data.read_image). "auto" leaves images that fill their number type as "full_range" does.
    cfg.INPUT.HIGH_BIT_DEPTH = "auto"
    # Whether training samples carry `sem_seg` where the data set has sky masks.
    cfg.INPUT.LOAD_SEM_SEG = True
    # Leave faulty images out, with one counted summary, in place of stopping at the first.
    cfg.DATASETS.SKIP_BAD = False
    # Sets of one's own: (name, folder in a VOC layout, split or "") or (name, COCO file, image folder); a fourth
    # element has further arguments of register_voc_folder or register_coco_folder: {"class_names": ("drone",)}.
    cfg.DATASETS.OWN = ()
    # Classes of the model, in order; objects of other classes are left out. Empty: those of the first training set,
    # which all sets must then have (in any order, under any ids).
    cfg.DATASETS.CLASSES = ()
    # Other names of these classes: "name in the files=name that counts".
    cfg.DATASETS.CLASS_ALIASES = ()
