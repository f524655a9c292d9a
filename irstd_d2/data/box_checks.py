"""What the boxes of a whole set give away: repeated ones, all in another convention, those that masks contradict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from ..errors import first_of
from .voc_xml import BOX_CONVENTIONS

_FARTHEST = 3  # pixels between the corners of a box and of its target in the mask
_SHARE = 0.8  # of the boxes that must be off in the same way
_LIGHT_SHARE = 0.5  # of the boxes that must show light at all

Boxes = NDArray[np.float64]


def boxes_of(sample: dict[str, Any]) -> Boxes:
    """``(N, 4)``, XYXY, of a dataset dict."""
    return np.array([obj["bbox"] for obj in sample["annotations"]], dtype=np.float64).reshape(-1, 4)


def repeated_boxes(dicts: Iterable[dict[str, Any]]) -> list[str]:
    """One remark for each box that an earlier one of the same image equals: it can never be found twice."""
    notes = []
    for sample in dicts:
        first: dict[tuple[float, ...], int] = {}
        for i, box in enumerate(map(tuple, boxes_of(sample).tolist())):
            if first.setdefault(box, i) != i:
                where = ", ".join(f"{value:g}" for value in box)
                notes.append(f"{sample['image_id']}: object[{i}] repeats object[{first[box]}]: ({where})")
    return notes


def common_offset(pairs: Iterable[tuple[Boxes, NDArray[np.integer]]]) -> tuple[tuple[float, ...], int, int] | None:
    """The way in which nearly all boxes of a set differ from their masks.

    ``pairs`` are of each image the boxes (N, 4) and the bounds (M, 4) of the targets in its mask.

    Returns:
        Box minus mask for xmin, ymin, xmax, ymax, the number of boxes with that difference and the number of boxes with
        a target near; ``None`` if most boxes equal their mask or differ in several ways.
    """
    offsets: Counter[tuple[float, ...]] = Counter()
    for boxes, bounds in pairs:
        if not (len(boxes) and len(bounds)):
            continue
        difference = boxes[:, None] - bounds[None]
        nearest = np.abs(difference).max(axis=2).argmin(axis=1)
        chosen = difference[np.arange(len(boxes)), nearest]
        offsets.update(map(tuple, chosen[np.abs(chosen).max(axis=1) <= _FARTHEST].tolist()))
    total = sum(offsets.values())
    if total < 2:
        return None
    offset, count = offsets.most_common(1)[0]
    return (offset, count, total) if any(offset) and count >= max(2, _SHARE * total) else None


def offset_note(offset: Sequence[float], count: int, total: int, convention: str | None) -> str:
    """One line on what :func:`common_offset` found, with the convention that mends it."""
    where = ", ".join(f"{value:+g}" for value in offset)
    text = f"{count} of {total} boxes differ from their masks in the same way, by ({where}) in xmin, ymin, xmax, ymax"
    if convention is None:
        return f"{text}; correct the whole set"
    low, high = BOX_CONVENTIONS[convention]
    for name, (other_low, other_high) in BOX_CONVENTIONS.items():
        if name != "paper" and tuple(offset) == (low - other_low,) * 2 + (high - other_high,) * 2:
            return f"{text}: the boxes are {name}, read as {convention}; {_how(name)}"
    return f"{text}; read as {convention}, and no other convention explains it: correct the whole set"


def edge_note(dicts: Iterable[dict[str, Any]], convention: str | None) -> list[str]:
    """A remark if boxes from 0 never begin at 0, but do begin at 1 and end at the edge of the image."""
    if convention != "half_open":
        return []
    begins, ends = Counter[float](), 0
    for sample in dicts:
        boxes = boxes_of(sample)
        begins.update(boxes[:, :2].ravel().tolist())
        ends += int((boxes[:, 2:] == (sample["width"], sample["height"])).sum())
    if begins[0.0] or not (begins[1.0] and ends):
        return []
    return [
        f"no box begins at column or row 0, but {begins[1.0]} begin at 1 and {ends} end at the edge of the image: they "
        f"may count from 1, with xmax and ymax the last column and row; {_how('inclusive')} if so"
    ]


def light_note(offsets: Sequence[NDArray[np.floating]], convention: str | None) -> list[str]:
    """A remark if the light of a set's boxes lies where boxes of another convention have their centres.

    ``offsets`` are (N, 2) of each image, see :func:`irstd_d2.data.statistics.light_offsets`; ``convention`` is what
    the boxes were read in, ``None`` where there is no choice.
    """
    if convention not in ("half_open", "one_based", "inclusive"):
        return []
    every = np.concatenate([np.zeros((0, 2)), *offsets])
    off = every[np.isfinite(every).all(axis=1)].mean(axis=1)  # the conventions move both axes alike
    if len(off) < max(2, _LIGHT_SHARE * len(every)):
        return []
    centres = {name: sum(BOX_CONVENTIONS[name]) / 2 for name in ("half_open", "inclusive", "one_based")}
    steps = {name: centre - centres[convention] for name, centre in centres.items()}
    likely = min(steps, key=lambda name: abs(float(np.median(off)) - steps[name]))
    count = int((np.abs(off - steps[likely]) < np.abs(off)).sum())
    if likely == convention or count < _SHARE * len(off):
        return []
    return [
        f"the light of {count} of {len(off)} targets is off the centre of its box in the same way, by "
        f"{np.median(off):+.1f} pixels in x and y: the boxes seem to be {likely}, read as {convention}; look at some "
        f"of them and {_how(likely)} if so"
    ]


def mask_notes(
    masked: Sequence[tuple[dict[str, Any], NDArray[np.integer]]],
    dicts: Sequence[dict[str, Any]],
    splits: dict[str, list[str]],
    convention: str | None,
) -> list[str]:
    """Remarks on boxes and masks that contradict each other; one line where a whole set does so in the same way.

    Args:
        masked: dataset dicts of images with a target mask, with the bounds of its targets, (M, 4).
        dicts: all images of the set.
        splits: names of the images of each split.
        convention: that the boxes were read by, where it is known.
    """
    offset: tuple[float, ...]
    common = common_offset([(boxes_of(sample), bounds) for sample, bounds in masked])
    if common is None:
        offset, notes = (0.0,) * 4, [] if masked else edge_note(dicts, convention)
    else:
        offset, notes = common[0], [offset_note(*common, convention)]
    found = {str(sample["image_id"]): _compare_boxes(sample, bounds, offset) for sample, bounds in masked}
    notes += [note for image in found.values() for note in image]
    total = sum(map(len, found.values()))
    if total:
        by_split = {split: sum(len(found.get(name, ())) for name in names) for split, names in splits.items()}
        shares = ", ".join(f"{split}: {count}" for split, count in by_split.items() if count)
        notes.append(f"{total} boxes or targets of masks contradict each other{f' ({shares})' if shares else ''}")
    return notes


def _compare_boxes(sample: dict[str, Any], bounds: np.ndarray, offset: Sequence[float] = (0.0,) * 4) -> list[str]:
    """Remarks on boxes that are not the bounds (M, 4) of a target in the mask, and on such targets without a box.

    Several boxes that fill one target of the mask are left alone: targets that touch share one component. The
    ``offset``, by which all boxes of the set differ from their masks, is not remarked on again.
    """
    written = boxes_of(sample)
    boxes = written - np.array(offset)
    low, high = bounds[None, :, :2] <= boxes[:, None, :2], bounds[None, :, 2:] >= boxes[:, None, 2:]
    inside = (low & high).all(axis=2)  # box, target of the mask
    filled = np.zeros(len(bounds), bool)
    for j in range(len(bounds)):
        own = boxes[inside[:, j]]
        filled[j] = (
            len(own) > 0 and (own[:, :2].min(0) == bounds[j, :2]).all() and (own[:, 2:].max(0) == bounds[j, 2:]).all()
        )
    notes = []
    for i, box in enumerate(boxes):
        if (inside[i] & filled).any():
            continue
        field_name = f"{sample['image_id']}: object[{i}].bndbox {_coordinates(written[i])}"
        overlap = box_iou(torch.from_numpy(box)[None], torch.from_numpy(bounds))[0].numpy()
        if overlap.size == 0 or overlap.max() == 0:
            notes.append(f"{field_name} holds no pixel of the target mask")
        else:
            best = bounds[overlap.argmax()]
            shift = box - best
            manner = f"shifted by {_coordinates(shift[:2])} from" if (shift[:2] == shift[2:]).all() else "differs from"
            notes.append(
                f"{field_name} {manner} its mask {_coordinates(best)}, IoU {overlap.max():.2f}; kept as written"
            )
    touched = (np.minimum(boxes[:, None, 2:], bounds[:, 2:]) > np.maximum(boxes[:, None, :2], bounds[:, :2])).all(
        axis=2
    )
    missing = bounds[~touched.any(axis=0)]
    if len(missing):
        places = first_of([_coordinates(box) for box in missing])
        notes.append(f"{sample['image_id']}: {len(missing)} targets of the mask have no box: {places}")
    return notes


def _coordinates(values: np.ndarray) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _how(convention: str) -> str:
    return f"give --box-convention {convention} (DATASETS.OWN: {{'box_convention': '{convention}'}})"
