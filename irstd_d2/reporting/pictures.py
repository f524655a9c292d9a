"""Pictures of a report as data URIs."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np

from ..visualization import to_bytes

LOSSLESS = 101  # OpenCV's quality above 100


def data_uri(picture: np.ndarray) -> str:
    """Encode (H, W, 3) uint8 RGB as lossless WebP, in which enlarged pixels cost next to nothing."""
    done, data = cv2.imencode(".webp", picture[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, LOSSLESS])
    if not done:
        raise ValueError(f"OpenCV could not encode a picture of shape {picture.shape}")
    return "data:image/webp;base64," + base64.b64encode(data.tobytes()).decode("ascii")


def heat_map(values: np.ndarray, size: tuple[int, int], covered: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Paint a map of activations, every cell as a block.

    Args:
        values: (h, w); the range from the 1st to the 99.8th percentile goes from dark to bright.
        size: (height, width) of the picture.
        covered: shares of the map's height and width that lie on the image; the rest is padding and cut off.

    Returns:
        (height, width, 3) uint8 RGB
    """
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) / n * share * m).astype(int), m - 1)
        for n, share, m in zip(size, covered, values.shape)
    )
    used = values[: rows[-1] + 1, : columns[-1] + 1]
    low, high = np.percentile(used, [1, 99.8])
    scaled = np.clip((values - low) / max(float(high - low), 1e-12), 0, 1)
    painted = cv2.applyColorMap((255 * scaled).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.ascontiguousarray(painted[rows][:, columns, ::-1])


def sky_picture(
    image: np.ndarray, sky: np.ndarray, size: tuple[int, int], truth: np.ndarray | None = None
) -> np.ndarray:
    """Tint the sky of an image blue; given the truth, orange where a prediction differs from it.

    Args:
        image: (H, W, 3) RGB in any range.
        sky: (H, W) bool.
        size: (height, width) of the picture.
        truth: (H, W) 0 other, 1 sky, 255 for pixels that do not count.

    Returns:
        (height, width, 3) uint8 RGB
    """
    picture = 0.6 * to_bytes(image).astype(float)
    picture[sky] += (20, 60, 100)
    if truth is not None:
        wrong = (truth != 255) & ((truth == 1) != sky)
        picture[wrong] = 0.6 * picture[wrong] + (100, 45, 0)
    return cv2.resize(picture.clip(0, 255).astype(np.uint8), size[::-1], interpolation=cv2.INTER_AREA)


def surface_picture(values: np.ndarray, title: str, limits: tuple[float, float] | None = None) -> np.ndarray:
    """A part of an image as a surface: height and colour are its values.

    Args:
        values: (h, w)
        title: above it.
        limits: of the height; by default those of the values.

    Returns:
        (height, width, 3) uint8 RGB
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4, 2.9), dpi=110, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot(projection="3d")
    low, high = limits or (float(values.min()), float(values.max()))
    y, x = np.mgrid[: values.shape[0], : values.shape[1]]
    axes.plot_surface(x, y, values, cmap="inferno", vmin=low, vmax=high, rcount=64, ccount=64, linewidth=0)
    axes.set_zlim(low, max(high, low + 1e-6))
    axes.invert_yaxis()
    axes.tick_params(labelsize=6, pad=-2)
    axes.set_title(title.replace("$", r"\$"), fontsize=9)
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, :3])
