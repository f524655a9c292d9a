"""BAG-CP in an augmentation list, and feature exchange between two heads, in a project of your own."""

import numpy as np
import torch
from detectron2.data import transforms as T

from bafe_d2.data import BAGCopyPaste, TargetLibrary
from bafe_d2.modeling import FeatureExchange

crops = [np.full((3, 3), 0.8), np.full((5, 4), 0.6)]  # or TargetLibrary.from_datasets(["my_train"], "cache")
augmentations = T.AugmentationList([T.RandomFlip(), BAGCopyPaste(TargetLibrary.from_crops(crops))])
aug_input = T.AugInput(
    np.full((128, 128, 3), 40, np.uint8), boxes=np.array([[5.0, 5, 8, 8]]), sem_seg=np.ones((128, 128), np.uint8)
)
augmentations(aug_input)  # aug_input.boxes now holds the new targets too

exchange = FeatureExchange(channels=64, fraction=0.5, selection="straight_through")
mask_features, box_features = exchange(torch.rand(2, 64, 32, 32), torch.rand(2, 64, 32, 32))
