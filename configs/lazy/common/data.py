"""Loaders and evaluators of the two papers' data sets."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from omegaconf import OmegaConf

from bafe_d2.data import BackgroundDatasetMapper
from irstd_d2.data import IRSTDDatasetMapper
from irstd_d2.data.transforms import Resize, ResizeShortestEdge
from irstd_d2.evaluation import IRSTDCOCOEvaluator

wideirstd = OmegaConf.create()
wideirstd.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="wideirstd_train", filter_empty=False),
    mapper=L(IRSTDDatasetMapper)(
        is_train=True,
        augmentations=[L(ResizeShortestEdge)(short_edge_length=1024, max_size=1024), L(T.RandomFlip)()],
        image_format="RGB",
    ),
    total_batch_size=4,
    num_workers=4,
)
wideirstd.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="wideirstd_val", filter_empty=False),
    mapper=L(IRSTDDatasetMapper)(
        is_train=False,
        augmentations=[L(ResizeShortestEdge)(short_edge_length=1024, max_size=1024)],
        image_format="RGB",
    ),
    num_workers=4,
)
wideirstd.evaluator = L(IRSTDCOCOEvaluator)(dataset_name="${..test.dataset.names}")

densesirst = OmegaConf.create()
densesirst.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="densesirst_v2_trainval", filter_empty=False),
    mapper=L(BackgroundDatasetMapper)(
        is_train=True, augmentations=[L(Resize)(shape=(512, 512)), L(T.RandomFlip)()], image_format="BGR"
    ),
    total_batch_size=2,
    num_workers=4,
)
densesirst.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="densesirst_v2_test", filter_empty=False),
    mapper=L(BackgroundDatasetMapper)(is_train=False, augmentations=[L(Resize)(shape=(512, 512))], image_format="BGR"),
    num_workers=4,
)
densesirst.evaluator = L(IRSTDCOCOEvaluator)(dataset_name="${..test.dataset.names}")
