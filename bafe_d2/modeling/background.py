"""Background segmentation: sky masks of a batch, the loss over all levels, and the prediction per image.

A model of this package segments the background into sky and everything else from several pyramid levels at once. Its
result for an image has ``sem_seg`` (2, height, width) in the original size: the probabilities of other (0) and of sky
(1), so that ``argmax(0)`` is the mask, as detectron2 has it.

Letters in shapes: N images, (H, W) size of the padded batch, (h, w) of a level.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.utils.logger import log_first_n
from torch import Tensor
from torch.nn import functional as F

IGNORE = 255


def stack_sky_masks(batched_inputs: Sequence[dict[str, Any]], size: tuple[int, int], device: torch.device) -> Tensor:
    """Stack the masks of a batch; what lies outside an image, and images without ``sem_seg``, are to be ignored.

    ``sem_seg`` of a sample is (height, width): 1 sky, 0 other, 255 ignore; the result is (N, H, W) int64.
    """
    stacked = torch.full((len(batched_inputs), *size), IGNORE, device=device)
    if not any("sem_seg" in sample for sample in batched_inputs):
        log_first_n(logging.WARNING, "a batch without sky masks (sem_seg) teaches no background", name=__name__)
    for target, sample in zip(stacked, batched_inputs):
        if "sem_seg" in sample:
            mask = sample["sem_seg"]
            _check_labels(mask, sample.get("file_name", "a sample"))
            target[: mask.shape[0], : mask.shape[1]] = mask.to(device, non_blocking=True)
    return stacked


def _check_labels(mask: Tensor, name: str) -> None:
    """Refuse what is no mask of labels, and warn of what may be a binary one: detectron2's mapper reads both so."""
    sky, ignored = mask == 1, mask == IGNORE
    fix = "sem_seg is 1 for sky, 0 for other, 255 to ignore; read it by read_sky_mask, or INPUT.MAPPER"
    if not (sky | ignored | (mask == 0)).all():
        raise ValueError(f"{name}: the sky mask has the values {mask.unique()[:5].tolist()}; {fix}")
    if ignored.any() and not sky.any():
        log_first_n(logging.WARNING, f"{name}: the sky mask has 255, to be ignored, and no sky; {fix}", name=__name__)


def sky_loss(logits: Sequence[Tensor], sky: Tensor) -> Tensor:
    """Binary cross entropy of sky, averaged over the pixels of all levels together, logits (N, 1, h, w) each.

    ``sky`` (N, H, W), 1 sky, 0 other, 255 ignore, is resized to every level by the nearest pixel. Ignored pixels add
    nothing and still count in the mean, as in the published model.
    """
    masks = sky[:, None].float()
    target = torch.cat([F.interpolate(masks, size=level.shape[-2:], mode="nearest").flatten() for level in logits])
    counted = target != IGNORE
    loss = F.binary_cross_entropy_with_logits(
        torch.cat([level.float().flatten() for level in logits]), target * counted, reduction="none"
    )
    return (loss * counted).mean()


def add_sky(
    results: Sequence[dict[str, Any]],
    logits: Tensor,
    size: tuple[int, int],
    image_sizes: Sequence[tuple[int, int]],
    batched_inputs: Sequence[dict[str, Any]],
) -> None:
    """Add ``sem_seg`` to the results of a batch, in place, from logits (N, 1, h, w) of the finest level.

    The level covers ``size`` (H, W); ``image_sizes`` are (height, width) of each image in the batch, without padding,
    and samples have the original ``height`` and ``width``.
    """
    sky = F.interpolate(logits.float().sigmoid(), size=size, mode="bilinear", align_corners=False)
    for result, sample, image_size, probability in zip(results, batched_inputs, image_sizes, sky):
        both = torch.cat([1 - probability, probability])
        height, width = sample.get("height", image_size[0]), sample.get("width", image_size[1])
        result["sem_seg"] = sem_seg_postprocess(both, image_size, height, width)
