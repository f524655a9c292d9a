#!/usr/bin/env python3
"""What BAG-CP pastes over many seeded runs on the real DenseSIRST: its rules held to account, drawn and looked at.

    DETECTRON2_DATASETS=datasets python benchmarks/bag_cp_statistics.py

Every run pastes into one real image at the network's size, once with 8 and once with 16 bits. The rules are checked on
the pictures before and after; the parameters are recorded where they are drawn.

Writes docs/images/bag_cp_{histograms.png,sheet.jpg} and benchmarks/results/bag_cp_statistics.md.
"""

from __future__ import annotations

import argparse
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from matplotlib.figure import Figure
from tabulate import tabulate
from tqdm import tqdm

from bafe_d2.data import BAGCopyPaste, PasteRule, TargetLibrary
from bafe_d2.data.bag_cp import Blend, PasteTransform
from irstd_d2.data import IRSTDAugInput, read_image, read_sky_mask

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/bag_cp_statistics.md"
IMAGES = ROOT / "docs/images"
VIEW = 72  # pixels of the image in each picture of the contact sheet
ZOOM = 3
_INVISIBLE = "boxes with an invisible edge"
_GREEN, _BLUE, _SKY_LINE = (70, 200, 90), (90, 150, 255), (230, 160, 40)


class Pasted(NamedTuple):
    """An image (H, W, C), all of its boxes (N, 4) and the pasted pixels (H, W) after a run."""

    image: np.ndarray
    boxes: np.ndarray
    pixels: np.ndarray


class RecordedBAGCopyPaste(BAGCopyPaste):
    """Keeps what it drew: blends, and the layout of each dense area as (sizes, corners)."""

    def __init__(self, library: TargetLibrary, rule: PasteRule):
        super().__init__(library, rule)
        self.blends: list[Blend] = []
        self.layouts: list[tuple[np.ndarray, np.ndarray]] = []

    def _draw_blend(self, count: int) -> Blend:
        self.blends.append(super()._draw_blend(count))
        return self.blends[-1]

    def _pack(self, sizes: np.ndarray, edge: int) -> tuple[np.ndarray, np.ndarray]:
        kept, corners = super()._pack(sizes, edge)
        self.layouts.append((sizes[kept], corners))
        return kept, corners


def row_gaps(sizes: np.ndarray, corners: np.ndarray) -> tuple[list[int], list[int]]:
    """Pixels between neighbours in a row, and between the highest target of a row and the next row."""
    x, y = corners.T
    ends = x + sizes[:, 0]
    same = y[1:] == y[:-1]
    tops = np.unique(y)
    bottoms = np.array([(y + sizes[:, 1])[y == top].max() for top in tops])
    return (x[1:] - ends[:-1])[same].tolist(), (tops[1:] - bottoms[:-1]).tolist()


def broken_rules(
    before: np.ndarray, after: np.ndarray, boxes: np.ndarray, sky: np.ndarray, all_boxes: np.ndarray, pasted: np.ndarray
) -> Counter[str]:
    """Count what must never happen, from the images before and after and the boxes after.

    Args:
        before, after: (H, W, C).
        boxes: (N, 4) of the existing targets.
        sky: (H, W), 1 sky.
        all_boxes: (N + P, 4), pasted ones last.
        pasted: (H, W) bool, pixels that count as target.
    """
    changed = (before != after).any(-1)
    existing = np.zeros(sky.shape, bool)
    for x1, y1, x2, y2 in boxes.tolist():
        existing[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
    new = all_boxes[len(boxes) :].astype(int)
    cover = np.zeros(sky.shape, int)
    loose = invisible = 0
    for x1, y1, x2, y2 in new.tolist():
        cover[y1:y2, x1:x2] += 1
        loose += not _is_tight(pasted[y1:y2, x1:x2])
        invisible += not _is_tight(changed[y1:y2, x1:x2])
    sides = new[:, 2:] - new[:, :2]
    return Counter(
        {
            "pasted pixels outside the sky": int((pasted & (sky != 1)).sum()),
            "pasted pixels on existing targets": int((pasted & existing).sum()),
            "pasted pixels outside the boxes": int((pasted & (cover == 0)).sum()),
            "changed pixels that are not pasted": int((changed & ~pasted).sum()),
            "pixels in two pasted boxes": int((cover > 1).sum()),
            "pasted boxes on existing targets": sum(bool(existing[y1:y2, x1:x2].any()) for x1, y1, x2, y2 in new),
            "boxes that are not tight around their pasted pixels": loose,
            "boxes without area or beyond 5x5": int(((sides < 1) | (sides > 5)).any(1).sum()),
            "existing boxes that changed": int((all_boxes[: len(boxes)] != boxes).any(1).sum()),
            "darkened pixels": int((after < before).any(-1).sum()),
            _INVISIBLE: invisible,
        }
    )


def _is_tight(inside: np.ndarray) -> bool:
    return bool(inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any())


def paste(
    augmentation: BAGCopyPaste, image: np.ndarray, boxes: np.ndarray, sky: np.ndarray, seed: int
) -> tuple[Pasted, T.Transform]:
    np.random.seed(seed)
    aug_input = IRSTDAugInput(image, boxes=boxes.copy(), classes=np.zeros(len(boxes), np.int64), sem_seg=sky)
    transform = augmentation(aug_input)
    pixels = np.zeros(sky.shape, bool)
    if isinstance(transform, PasteTransform):
        pixels[transform.rows, transform.columns] = True
    return Pasted(aug_input.image, np.asarray(aug_input.boxes), pixels), transform


def read_sample(record: dict[str, Any], size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image (S, S, 3) uint8, boxes (N, 4) and sky (S, S), resized as for the network."""
    image, sky = read_image(record["file_name"]), read_sky_mask(record["sem_seg_file_name"])
    resize = T.ResizeTransform(image.shape[0], image.shape[1], size, size)
    boxes = np.array([item["bbox"] for item in record["annotations"]], np.float32).reshape(-1, 4)
    boxes = resize.apply_box(boxes).astype(np.float32).reshape(-1, 4)
    pixels = np.clip(np.round(resize.apply_image(image)), 0, 255).astype(np.uint8)
    return pixels, boxes, resize.apply_segmentation(sky)


def sheet_picture(image: np.ndarray, boxes: np.ndarray, count: int, sky: np.ndarray) -> np.ndarray:
    """An enlarged view of one area: pasted targets green, the others blue, the edge of the sky orange."""
    new = boxes[len(boxes) - count :]
    centre = (new[0, :2] + new[0, 2:]) / 2
    x, y = np.clip(centre - VIEW / 2, 0, np.array(image.shape[1::-1]) - VIEW).astype(int)
    window = np.s_[y : y + VIEW, x : x + VIEW]
    view = cv2.resize(image[window], None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_NEAREST)
    mask = cv2.resize((sky[window] == 1).astype(np.uint8), None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(view, outlines, -1, _SKY_LINE, 1)
    for i, (x1, y1, x2, y2) in enumerate((boxes - (x, y, x, y)) * ZOOM):
        colour = _GREEN if i >= len(boxes) - count else _BLUE
        cv2.rectangle(view, (int(x1) - 1, int(y1) - 1), (int(x2), int(y2)), colour, 1)
    return cv2.copyMakeBorder(view, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def draw_histograms(panels: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Figure:
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    for axes, (title, values, edges) in zip(figure.subplots(2, 4).flat, panels):
        axes.hist(values, bins=edges.tolist(), color="#2f6fab", edgecolor="white", lw=0.4)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="densesirst_v2_trainval")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, default=IMAGES, metavar="DIR", help="where the two pictures go")
    args = parser.parse_args(argv)
    dicts = DatasetCatalog.get(args.dataset)
    library, rule = TargetLibrary.from_datasets([args.dataset]), PasteRule()
    augmentation, plain = RecordedBAGCopyPaste(library, rule), BAGCopyPaste(library, rule)
    broken: dict[str, Counter[str]] = {"8 bits": Counter(), "16 bits": Counter()}
    areas, sides, differing, untouched = [], [], 0, 0
    pictures: list[np.ndarray] = []
    samples = {}
    order = np.random.RandomState(0).permutation(len(dicts))
    for run in tqdm(range(args.runs), disable=None):
        index = int(order[run % len(dicts)])
        if index not in samples:
            samples = {index: read_sample(dicts[index], args.size)}
        image, boxes, sky = samples[index]
        known = len(augmentation.layouts)
        narrow, transform = paste(augmentation, image, boxes, sky, run)
        wide_image = image.astype(np.uint16) * 257
        wide, _ = paste(plain, wide_image, boxes, sky, run)
        broken["8 bits"].update(broken_rules(image, narrow.image, boxes, sky, narrow.boxes, narrow.pixels))
        broken["16 bits"].update(broken_rules(wide_image, wide.image, boxes, sky, wide.boxes, wide.pixels))
        difference = np.abs(wide.image / 257.0 - narrow.image)
        differing += int(not np.array_equal(wide.boxes, narrow.boxes) or difference.max() > 0.51)
        if not isinstance(transform, PasteTransform):
            untouched += 1
            continue
        areas.append(len(augmentation.layouts) - known)
        new = transform.pasted_boxes
        sides.append(new[:, 2:] - new[:, :2])
        if len(pictures) < 20 and run % 7 == 0:
            pictures.append(sheet_picture(narrow.image, narrow.boxes, len(new), sky))
    counts = np.array([len(corners) for _, corners in augmentation.layouts])
    gaps = [row_gaps(*layout) for layout in augmentation.layouts]
    across, down = (np.array([gap for pair in gaps for gap in pair[axis]]) for axis in (0, 1))
    extent = np.array([(corners + sizes).max() for sizes, corners in augmentation.layouts])
    blends = [np.concatenate(values) for values in zip(*augmentation.blends)]
    offsets, sigmas, angles, brightness = blends
    all_sides = np.concatenate(sides)
    measured = [
        ("dense areas per image", np.array(areas), rule.areas),
        ("targets per area", counts, rule.targets),
        ("lower right end within an area, pixels", extent, (1, rule.area_edge)),
        ("gap to the neighbour in the row, pixels", across, rule.gaps),
        ("gap between rows, pixels", down, rule.gaps),
        ("side of a pasted box, pixels", all_sides, (1, 5)),
        ("lambda", brightness, rule.brightness),
        ("offset, share of the size", offsets, rule.offset),
        ("sigma, half sizes", sigmas, rule.sigma),
        ("angle, degrees", np.rad2deg(angles), (-90, 90)),
    ]
    rows = []
    for name, values, (low, high) in measured:
        beyond = int(((values < low - 1e-9) | (values > high + 1e-9)).sum())
        figures = (f"{value:.4g}" for value in (values.min(), values.mean(), values.max()))
        rows.append([name, f"{low:g} to {high:g}", str(values.size), *figures, str(beyond)])
    panels = [
        ("targets per area", counts, np.arange(rule.targets[0] - 3.5, rule.targets[1] + 2)),
        ("dense areas per image", np.array(areas), np.arange(0.5, rule.areas[1] + 1)),
        ("gaps in and between rows (pixels)", np.concatenate([across, down]), np.arange(-0.5, 5)),
        ("sides of the pasted boxes (pixels)", all_sides.ravel(), np.arange(0.5, 7)),
        ("lambda", brightness, np.linspace(*rule.brightness, 21)),
        ("offsets (share of the size)", offsets.ravel(), np.linspace(*rule.offset, 21)),
        ("sigma (half sizes)", sigmas.ravel(), np.linspace(*rule.sigma, 21)),
        ("angle (degrees)", np.rad2deg(angles), np.linspace(-90, 90, 21)),
    ]
    args.images.mkdir(parents=True, exist_ok=True)
    draw_histograms(panels).savefig(args.images / "bag_cp_histograms.png", dpi=90)
    columns = 5
    pictures = pictures[: len(pictures) // columns * columns] or pictures
    sheet = np.vstack([np.hstack(pictures[i : i + columns]) for i in range(0, len(pictures), columns)])
    quality = (cv2.IMWRITE_JPEG_QUALITY, 75)
    cv2.imwrite(str(args.images / "bag_cp_sheet.jpg"), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), quality)
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    invisible = broken["8 bits"].pop(_INVISIBLE)
    boxes_pasted = sum(len(part) for part in sides)
    broken_table = [(name, broken["8 bits"][name], broken["16 bits"][name]) for name in broken["8 bits"]]
    text = "\n".join(
        [
            "# What BAG-CP pastes",
            "",
            f"`python benchmarks/bag_cp_statistics.py --dataset {args.dataset} --runs {args.runs}`, {date.today()}, "
            f"commit {commit}, 2 CPU cores (no figure depends on them).",
            "",
            f"{args.runs} runs, seeds 0 to {args.runs - 1}, on the {len(dicts)} images of `{args.dataset}` at "
            f"{args.size}x{args.size} pixels; library of {len(library)} targets. {untouched} runs left the image as it "
            f"is, for want of a free 20x20 square of sky. {differing} runs differ between 8 and 16 bits (other "
            f"boxes, or pixels by more than the rounding of 8 bits). Of {boxes_pasted} pasted boxes {invisible} have "
            "an edge whose pasted pixels do not show in 8 bits, where the background is white or the target black.",
            "",
            tabulate(broken_table, headers=["must never happen", "8 bits", "16 bits"], tablefmt="github"),
            "",
            tabulate(
                rows,
                headers=["drawn", "rule", "values", "least", "mean", "most", "beyond the rule"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
            "![Histograms](../../docs/images/bag_cp_histograms.png)",
            "",
            "Green: pasted; blue: targets that were there; orange: edge of the sky. Where the sky is white already, "
            "what is pasted cannot show; the paper's rule does not keep such places out.",
            "",
            "![Pasted clusters](../../docs/images/bag_cp_sheet.jpg)",
            "",
        ]
    )
    args.results.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
