"""Some images of a data set with the work of all runs side by side: detections, sky masks, feature maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data import read_image
from ..data.image_io import SKY, read_sky_mask
from ..evaluation.ground_truth import GroundTruth
from ..evaluation.results import format_number
from ..evaluation.sky import confusion, sky_metrics
from ..visualization import INSET_PIXELS, Part, choose_parts, draw_brackets, draw_detections
from .features import FeatureMap, Insight, Lens, target_ratio
from .metrics import RunOnSet
from .pictures import data_uri, heat_map, sky_picture, surface_picture

INSETS, INSET_ZOOM = 3, 4
EDGE = INSETS * (INSET_ZOOM * INSET_PIXELS + 4)  # width of a picture in pixels
SKY_EDGE = 320
MAP_EDGE = 176
MARK = (255, 255, 255)
_draw = partial(draw_detections, edge=EDGE, inset_zoom=INSET_ZOOM, below=True)


@dataclass(frozen=True)
class Picture:
    """A picture with its caption; ``alt`` says more for those who cannot see it."""

    caption: str
    alt: str
    source: str


@dataclass(frozen=True)
class Example:
    """One image.

    Attributes:
        name: of the file.
        detections: the image with its targets, then one picture per run.
        sky: the true mask, then the predicted one of each run; empty where no model that was run predicts one.
        maps: of the runs with feature maps, name and: title of the tap -> heat maps, finest first.
        surfaces: the first enlarged part as a surface, of the image and of the runs that gave probability maps.
        notes: what could not be shown.
    """

    name: str
    detections: Sequence[Picture] = ()
    sky: Sequence[Picture] = ()
    maps: Sequence[tuple[str, Mapping[str, Sequence[Picture]]]] = ()
    surfaces: Sequence[Picture] = ()
    notes: Sequence[str] = ()


def spread_over_targets(truth: GroundTruth, count: int) -> list[int]:
    """Images with targets, spread evenly over the data set and not chosen by result; any where none has a target."""
    candidates = np.unique(truth.targets.image) if len(truth.targets) else np.arange(len(truth.image_ids))
    if not len(candidates) or count < 1:
        return []
    return candidates[np.unique(np.linspace(0, len(candidates) - 1, count).astype(int))].tolist()


def make_example(
    index: int,
    dicts: Sequence[dict[str, Any]],
    truth: GroundTruth,
    runs: Sequence[RunOnSet],
    lenses: Mapping[int, Lens],
) -> Example:
    """Show the image ``index`` of a data set; ``lenses`` are models by run number, for sky masks and feature maps."""
    record = dicts[index]
    name = Path(record["file_name"]).name
    try:
        image = read_image(record["file_name"])
        mask = read_sky_mask(record["sem_seg_file_name"]) if record.get("sem_seg_file_name") else None
    except (OSError, ValueError) as error:
        return Example(name, notes=[f"The image cannot be shown: {error}"])
    targets = truth.targets.boxes[truth.targets.image == index]
    notes: list[str] = []
    insights: dict[int, Insight] = {}
    for run in runs:
        if run.number in lenses:
            try:
                insights[run.number] = lenses[run.number](record)
            except (RuntimeError, ValueError) as error:
                notes.append(f"{run.name} could not be run on this image: {error}")
    insets = _insets(image, targets, index, runs)
    maps = [
        (run.name, {title: [_map(image, title, x, targets) for x in maps] for title, maps in found.rows.items()})
        for run in runs
        if (found := insights.get(run.number))
    ]
    return Example(
        name,
        [
            _truth_picture(image, targets, insets, name),
            *(_detections(image, targets, insets, index, run, truth) for run in runs),
        ],
        _sky(image, mask, runs, insights),
        maps,
        _surfaces(image, insets, record["image_id"], runs),
        notes,
    )


def _surfaces(image: np.ndarray, insets: Sequence[Part], image_id: Any, runs: Sequence[RunOnSet]) -> list[Picture]:
    if not insets:
        return []
    x, y, side = insets[0]
    part = np.s_[y : y + side, x : x + side]
    text = f"part 1 of the image, from x {x}, y {y}"
    pictures = [
        Picture("Image", f"Gray values of {text}", data_uri(surface_picture(image[part].mean(-1), "gray value")))
    ]
    for run in runs:
        predictions = run.rescored.predictions
        if image_id in predictions.masks:
            probability = predictions.read_mask(predictions.masks[image_id], image.shape[:2])
            values = probability[part] / (255 if probability.dtype == np.uint8 else 1)
            picture = surface_picture(values, "probability", (0, 1))
            pictures.append(Picture(run.name, f"Probability of {run.name} in {text}", data_uri(picture)))
    return pictures


def _insets(image: np.ndarray, targets: np.ndarray, index: int, runs: Sequence[RunOnSet]) -> list[Part]:
    """Parts that all pictures of an image enlarge: a target, the best false alarm of each run, then other targets."""
    false = []
    for run in runs:
        table = run.rescored.detections
        wrong = (table.image == index) & (table.scores >= run.threshold) & run.rescored.verdicts.false
        false += list(table.boxes[wrong][:1])
    return choose_parts([*targets[:1], *false, *targets[1:]], INSETS, image.shape[:2])


def _truth_picture(image: np.ndarray, targets: np.ndarray, insets: Sequence[Part], name: str) -> Picture:
    text = f"{len(targets)} target{'s' if len(targets) != 1 else ''}"
    picture = _draw(image, targets=targets, insets=insets)
    return Picture(f"Ground truth: {text}", f"Image {name} with {text} in green brackets", data_uri(picture))


def _detections(
    image: np.ndarray, targets: np.ndarray, insets: Sequence[Part], index: int, run: RunOnSet, truth: GroundTruth
) -> Picture:
    table, verdicts = run.rescored.detections, run.rescored.verdicts
    mine = np.flatnonzero((table.image == index) & (table.scores >= run.threshold))
    hits, false = int(verdicts.true[mine].sum()), int(verdicts.false[mine].sum())
    missed = int((~truth.targets.ignored[truth.targets.image == index]).sum()) - hits
    text = f"{hits} found, {missed} missed, {false} false"
    boxes, scores, correct = table.boxes[mine], table.scores[mine], verdicts.true[mine]
    picture = _draw(image, targets=targets, boxes=boxes, scores=scores, correct=correct, insets=insets)
    return Picture(
        f"{run.name}: {text}",
        f"Detections of {run.name} with scores from {run.threshold:.2f}: {text}",
        data_uri(picture),
    )


def _size(image: np.ndarray, edge: int) -> tuple[int, int]:
    height, width = image.shape[:2]
    scale = edge / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _sky(
    image: np.ndarray, mask: np.ndarray | None, runs: Sequence[RunOnSet], insights: Mapping[int, Insight]
) -> list[Picture]:
    if all(insight.sky is None for insight in insights.values()):
        return []
    size = _size(image, SKY_EDGE)
    pictures = []
    if mask is not None:
        share = 100 * float((mask == SKY).mean())
        text = f"True sky: {share:.0f} % of the image"
        pictures.append(Picture(text, f"{text}, tinted blue", data_uri(sky_picture(image, mask == SKY, size))))
    for run in runs:
        insight = insights.get(run.number)
        if insight is None or insight.sky is None:
            continue
        text = f"{run.name}: predicted sky"
        usable = mask is not None and mask.shape == insight.sky.shape
        if mask is not None and usable:
            text += f", IoU {format_number(sky_metrics(confusion(insight.sky, mask))['IoU'])} %"
        picture = sky_picture(image, insight.sky, size, mask if usable else None)
        pictures.append(Picture(text, f"{text}, tinted blue, errors orange", data_uri(picture)))
    return pictures


def _map(image: np.ndarray, title: str, feature_map: FeatureMap, targets: np.ndarray) -> Picture:
    size = _size(image, MAP_EDGE)
    canvas = heat_map(feature_map.values, size, feature_map.covered)
    zoom = size[0] / image.shape[0]
    for box in targets:
        draw_brackets(canvas, box, MARK, zoom=zoom)
    height, width = feature_map.values.shape
    ratio = target_ratio(feature_map, targets, image.shape[:2])
    text = f"{feature_map.level}, {width}\u00d7{height}" + ("" if math.isnan(ratio) else f", targets \u00d7{ratio:.1f}")
    return Picture(text, f"Heat map of activations {title}, {text}", data_uri(canvas))
