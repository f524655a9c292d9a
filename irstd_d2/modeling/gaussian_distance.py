"""Similarity of boxes that need not overlap: the normalised Wasserstein distance between Gaussians.

A box with centre c, width w and height h stands for the Gaussian with mean c and covariance diag(w^2 / 4, h^2 / 4). The
2-Wasserstein distance of two such Gaussians is

    W^2 = |c1 - c2|^2 + ((w1 - w2) / 2)^2 + ((h1 - h2) / 2)^2

and, as w / 2 and c are half the difference and half the sum of a box's two sides, it is half the squared distance of
the four sides: W^2 = |b1 - b2|^2 / 2 for boxes b = (x1, y1, x2, y2). The similarity is NWD = exp(-W / C).

Source: Wang et al., "A Normalized Gaussian Wasserstein Distance for Tiny Object Detection" (arXiv 2110.13389).
"""

from __future__ import annotations

import math

import torch
from detectron2.structures import Boxes
from torch import Tensor


def wasserstein_similarity(sides1: Tensor, sides2: Tensor, scale: float) -> Tensor:
    """NWD of paired boxes (..., 4), corners x1 y1 x2 y2 or side distances from a common point.

    They and C, the ``scale``, are in pixels.

    Returns:
        (...,) from 0 to 1. Where the boxes are equal the value is 1 and the gradient 0, elsewhere the gradient points
        towards the other box, whether they overlap or not.
    """
    return torch.exp(-torch.linalg.vector_norm(sides1 - sides2, dim=-1) / (math.sqrt(2) * scale))


def wasserstein_similarities(boxes1: Tensor, boxes2: Tensor, scale: float) -> Tensor:
    """NWD of all pairs of boxes, (..., M, 4) and (..., A, 4), C (``scale``) and they in pixels: (..., M, A) in 0..1."""
    # The fast mode by matrix products loses the small differences of large coordinates.
    distance = torch.cdist(boxes1, boxes2, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.exp(-distance / (math.sqrt(2) * scale))


def pairwise_nwd(boxes1: Boxes, boxes2: Boxes, scale: float) -> Tensor:
    """NWD of all pairs, (M, A) in 0..1, in place of detectron2's ``pairwise_iou`` in front of a ``Matcher``.

    ``scale`` is C in pixels.
    """
    return wasserstein_similarities(boxes1.tensor, boxes2.tensor, scale)
