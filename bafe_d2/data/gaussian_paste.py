"""The maths of pasting small targets: Gaussian weights, blending, counted pixels.

Source: DenseSIRST and BAG-CP, Eq. 1 to 3. Letters in shapes: T targets, S edge of the padded target window.
"""

from __future__ import annotations

import numpy as np

# A pixel whose weight would add less than this to a black 8-bit background does not count as target.
COUNTED_ABOVE = 25 / 255


def gaussian_weights(
    sizes: np.ndarray, offsets: np.ndarray, sigmas: np.ndarray, angles: np.ndarray, edge: int
) -> np.ndarray:
    """Rotated, anisotropic Gaussians on [-1, 1]^2, each scaled to min 0 and max 1 over its target.

    Args:
        sizes: (T, 2) width and height of the targets in pixels.
        offsets: (T, 2) shift of the centre in x and y, as a share of the target's size.
        sigmas: (T, 2) along the two axes, in half sizes.
        angles: (T,) in radians.
        edge: S, at least the largest size.

    Returns:
        (T, S, S) float64, rows are y; 0 outside a target. A target of one pixel has weight 1.
    """
    pixel = np.arange(edge)
    last = np.maximum(sizes - 1, 1)[:, :, None]
    axis = np.where(sizes[:, :, None] > 1, 2 * pixel / last - 1, 0.0)  # (T, 2, S)
    # The grid is two units wide, so a share of the size is twice that in its units.
    axis = axis - 2 * offsets[:, :, None]
    x, y = axis[:, 0, None, :], axis[:, 1, :, None]
    cos, sin = np.cos(angles)[:, None, None], np.sin(angles)[:, None, None]
    u = (cos * x - sin * y) / sigmas[:, 0, None, None]
    v = (sin * x + cos * y) / sigmas[:, 1, None, None]
    weight = np.exp(-(u * u + v * v) / 2)
    inside = target_window(sizes, edge)
    low = np.where(inside, weight, np.inf).min((1, 2), keepdims=True)
    high = np.where(inside, weight, -np.inf).max((1, 2), keepdims=True)
    spread = high - low
    # All weights of one or of two symmetric pixels are equal: nothing to scale.
    flat = spread < 1e-9
    scaled = np.where(flat, 1.0, (weight - low) / np.where(flat, 1.0, spread))
    return np.where(inside, scaled, 0.0)


def target_window(sizes: np.ndarray, edge: int) -> np.ndarray:
    """(T, S, S) bool, true inside each target's width and height (T, 2) at the upper left."""
    pixel = np.arange(edge)
    inside_y = pixel[None, :, None] < sizes[:, 1, None, None]
    inside_x = pixel[None, None, :] < sizes[:, 0, None, None]
    return np.logical_and(inside_y, inside_x)


def tight_boxes(counted: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Boxes (T, 4) float32 x1 y1 x2 y2, half-open, of the counted pixels.

    ``counted`` is (T, S, S) bool, at least one true per target, ``corners`` (T, 2) x and y of the windows in the image.
    """
    edge = counted.shape[-1]
    columns, rows = np.logical_or.reduce(counted, axis=1), np.logical_or.reduce(counted, axis=2)
    low = np.stack([columns.argmax(1), rows.argmax(1)], 1)
    high = edge - np.stack([columns[:, ::-1].argmax(1), rows[:, ::-1].argmax(1)], 1)
    return np.concatenate([corners + low, corners + high], 1).astype(np.float32)
