#!/usr/bin/env python3
"""Train the context network of BAFE-Net alone, on whole images, and say how well it tells sky from the rest.

    python benchmarks/sky_context.py --train densesirst_v2_train --val densesirst_v2_val \
        --iterations 4500 --batch 8 --rate 3e-3

With flips and zoom; gain and offset would go in the standardisation. IoU of sky and of the rest are those of all
pixels of the set, as the sky evaluator counts them: a cell of the context counts as many pixels as it covers. Four
lines are printed on the way.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import cv2
import torch
from detectron2.data import DatasetCatalog
from torch import Tensor
from torch.nn import functional as F

from bafe_d2.data.context import IGNORED, context_image, context_mask
from bafe_d2.modeling.context import Context, ContextEncoder, context_sky_loss, standardise
from irstd_d2.data.image_io import read_sky_mask


def load(name: str, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts (N, 1, A, B), their share of sky (ignored: negative), and pixels per cell (N,)."""
    images, skies, areas = [], [], []
    for record in DatasetCatalog.get(name):
        image = cv2.imread(record["file_name"], cv2.IMREAD_GRAYSCALE)
        small, sky = context_image(image, size), context_mask(read_sky_mask(record["sem_seg_file_name"]), size)
        padding = (0, size[1] - small.shape[1], 0, size[0] - small.shape[0])
        images.append(F.pad(small, padding))
        skies.append(F.pad(sky, padding, value=IGNORED))
        areas.append(image.size / small.numel())
    sky = torch.stack(skies)[:, None]
    return standardise(torch.stack(images)[:, None], (sky >= 0).float()), sky, torch.tensor(areas)


def augment(images: Tensor, sky: Tensor) -> tuple[Tensor, Tensor]:
    """Flip and zoom each image by itself; what remains is standardised anew, as every context is."""
    count = len(images)
    flip = (torch.rand(count) < 0.5)[:, None, None, None]
    images, sky = torch.where(flip, images.flip(3), images), torch.where(flip, sky.flip(3), sky)
    scale, aspect = 0.6 + 0.6 * torch.rand(count), torch.exp(0.4 * (torch.rand(count) - 0.5))
    view = torch.zeros(count, 2, 3)
    view[:, 0, 0], view[:, 1, 1] = scale * aspect, scale / aspect
    view[:, :, 2] = (torch.rand(count, 2) - 0.5) * (1 - scale).abs()[:, None]
    grid = F.affine_grid(view, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    sky = F.grid_sample(sky - IGNORED, grid, mode="nearest", align_corners=False) + IGNORED
    return standardise(images, (sky >= 0).float()), sky


@torch.no_grad()
def evaluate(net: ContextEncoder, images: Tensor, sky: Tensor, areas: Tensor) -> str:
    net.eval()
    logits = torch.cat([net(Context(batch, batch, batch))[1] for batch in images.split(32)])
    found = F.interpolate(logits, size=sky.shape[-2:], mode="bilinear", align_corners=False) > 0
    weight, truth = (sky >= 0) * areas[:, None, None, None], sky > 0.5
    net.train()

    def iou(a: Tensor, b: Tensor) -> float:
        return float(100 * ((a & b) * weight).sum() / ((a | b) * weight).sum())

    return f"{iou(found, truth):.1f} / {iou(~found, ~truth):.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="registered set with sky masks")
    parser.add_argument("--val", required=True)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    net = ContextEncoder()
    images, sky, areas = load(args.train, net.size)
    val = load(args.val, net.size)
    some = slice(0, 200)  # of the training images
    optimizer = torch.optim.AdamW(net.parameters(), args.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, args.iterations, pct_start=0.1)
    start = time.process_time()
    print("| iterations | processor seconds | sky / rest, val | sky / rest, training images |\n|---|---|---|---|")
    for iteration in range(1, args.iterations + 1):
        chosen = torch.randint(len(images), (args.batch,))
        batch, target = augment(images[chosen], sky[chosen])
        loss = context_sky_loss(net(Context(batch, batch, batch))[1], target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10)
        optimizer.step()
        schedule.step()
        if iteration % max(1, args.iterations // 4) == 0:
            seconds = time.process_time() - start
            own = evaluate(net, images[some], sky[some], areas[some])
            print(f"| {iteration} | {seconds:.0f} | {evaluate(net, *val)} | {own} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
