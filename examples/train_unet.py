"""A small U-Net trained on masks, whose probability maps are then judged beside any detector's boxes.

python examples/train_unet.py --train nudtsirst_train --test nudtsirst_test --iterations 2000 --output output/unet
irstd evaluate output/unet output/fcos --dataset nudtsirst_test --evaluators voc pd_fa mask --compare
"""

import argparse
import tempfile
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog
from torch import nn
from torch.nn import functional as F
from tqdm import trange

from irstd_d2.data import read_image, register_voc_folder
from irstd_d2.evaluation import GroundTruth
from irstd_d2.evaluation.mask_evaluation import TargetMasks
from irstd_d2.synthetic import write_wideirstd

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--train", default="unet_train", help="registered set with masks; synthetic scenes by default")
parser.add_argument("--test", default="unet_val")
parser.add_argument("--iterations", type=int, default=3)
parser.add_argument("--output", type=Path, default=Path(tempfile.mkdtemp()) / "unet")
args, _ = parser.parse_known_args()
if args.train == "unet_train":
    root = Path(tempfile.mkdtemp())
    write_wideirstd(root, train=4, val=2, progress=False)
    for split in ("train", "val"):
        register_voc_folder(f"unet_{split}", next(root.rglob("VOC2007")).parent, split, layout="wideirstd")


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions."""
    layers = [(nn.Conv2d(n, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()) for n in (inputs, outputs)]
    return nn.Sequential(*layers[0], *layers[1])


class UNet(nn.Module):
    """(N, 1, H, W) in 0 to 1 -> (N, 1, H, W) logits; H and W are multiples of 8."""

    def __init__(self, widths: tuple[int, ...] = (8, 16, 32, 64)):
        super().__init__()
        self.down = nn.ModuleList(block(i, o) for i, o in zip((1, *widths), widths))
        self.up = nn.ModuleList(block(i + o, o) for i, o in zip(widths[:0:-1], widths[-2::-1]))
        self.last = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for layer in self.down:
            x = layer(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        for layer, skip in zip(self.up, skips[-2::-1]):
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0), skip], 1))
        return self.last(x)


@lru_cache(maxsize=2000)
def load(path: str) -> np.ndarray:
    """(H, W) in 0 to 1."""
    return read_image(path)[:, :, 0] / 255


def crop(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, size: int = 96) -> np.ndarray:
    """A part of both, mostly around a target, (2, size, size), turned at random, padded if the image is smaller."""
    both = np.stack([image, mask.astype(np.float32)])
    both = np.pad(both, ((0, 0), *((0, max(0, size - n)) for n in image.shape)))
    targets = np.argwhere(both[1])
    centre = rng.choice(targets) if len(targets) and rng.random() < 0.8 else rng.integers(0, both.shape[1:])
    y, x = np.clip(centre - rng.integers(0, size, 2), 0, np.subtract(both.shape[1:], size))
    part = np.rot90(both[:, y : y + size, x : x + size], rng.integers(4), (1, 2))
    return part[:, :, :: rng.choice([1, -1])].copy()


torch.manual_seed(0)
rng = np.random.default_rng(0)
records, masks = DatasetCatalog.get(args.train), TargetMasks.of(args.train, GroundTruth.from_dataset(args.train))
model = UNet()
optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, args.iterations + 1)
for _ in trange(args.iterations, desc="training"):
    chosen = rng.choice(len(records), 8)
    parts = [crop(load(records[i]["file_name"]), masks[i], rng) for i in chosen]
    batch = torch.tensor(np.stack(parts))
    logits, target = model(batch[:, :1].float()), batch[:, 1:].float()
    found = logits.sigmoid()
    overlap = (found * target).sum((1, 2, 3)) / (found + target - found * target).sum((1, 2, 3)).clamp(min=1)
    loss = F.binary_cross_entropy_with_logits(logits, target) + 1 - overlap.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()

model.eval()
args.output.mkdir(parents=True, exist_ok=True)
for record in DatasetCatalog.get(args.test):
    image = torch.tensor(load(record["file_name"]))[None, None]
    height, width = image.shape[2:]
    with torch.no_grad():
        found = model(F.pad(image, (0, -width % 8, 0, -height % 8)))[0, 0, :height, :width].sigmoid()
    name = Path(record["file_name"]).stem
    cv2.imwrite(str(args.output / f"{name}.png"), (255 * found.numpy()).round().astype(np.uint8))
