"""Validation of a whole data set: every fault at once, and what the set holds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tabulate import tabulate
from tqdm import tqdm

from ..errors import DatasetError, first_of
from ..systems import registered_systems
from .box_checks import boxes_of, common_offset, edge_note, light_note, mask_notes, offset_note, repeated_boxes
from .datasets import CocoSource, VocSource
from .faults import Fault, FaultKind, count_by_kind
from .image_io import check_size, count_pages, read_raw, read_sky_mask, to_float_image
from .layout import FolderIndex, VocLayout, get_layout, list_splits
from .pixel_values import uses_small_part
from .splits import read_split
from .statistics import (
    BRIGHTNESS_EDGES,
    CONTRAST_EDGES,
    SIZE_EDGES,
    DatasetStatistics,
    ImageStatistics,
    histogram_rows,
    measure_image,
    range_notes,
)
from .target_masks import label_boxes, read_target_labels
from .voc import scan_voc

# Splits of one version that must not share images.
_DISJOINT = (("train", "val"), ("train", "test"), ("val", "test"), ("trainval", "test"))


@dataclass(frozen=True)
class Collection:
    """A set as its annotations describe it, before any image is opened.

    Args:
        title: what was read.
        dicts: of all sound images, each once.
        splits: image ids by split.
        faults: found so far.
        notes: remarks on what is unusual but sound.
        target_mask: from an image id to its target mask, where the layout has them.
        box_convention: that the boxes were read in, ``None`` where the format has only one.
    """

    title: str
    dicts: Sequence[dict[str, Any]]
    splits: dict[str, list[str]]
    faults: Sequence[Fault]
    notes: Sequence[str] = ()
    target_mask: Callable[[str], Path | None] = field(default=lambda _: None)
    box_convention: str | None = None


@dataclass(frozen=True)
class CheckReport:
    """Result of :func:`check_collection`."""

    title: str
    statistics: DatasetStatistics
    faults: Sequence[Fault]
    notes: Sequence[str]

    def __str__(self) -> str:
        return "\n\n".join([self.title, *_statistics_sections(self.statistics), *self._findings()])

    def _findings(self) -> list[str]:
        sections = []
        if self.notes:
            notes = [(re.sub(r"[\d.]+|^\S+:", "#", note), note) for note in self.notes]
            sections.append("\n".join([f"Notes ({len(self.notes)}, no fault):", *_shorten(notes)]))
        if self.faults:
            counts = ", ".join(f"{count} x {kind}" for kind, count in count_by_kind(self.faults).items())
            faults = [(f"{fault.kind} {re.sub('[0-9.]+', '#', fault.problem)}", str(fault)) for fault in self.faults]
            sections.append("\n".join([f"Faults: {counts}", *_shorten(faults)]))
        else:
            sections.append("Faults: none")
        return sections


def collect(
    source: str | PathLike,
    *,
    layout: str | VocLayout | None = None,
    splits: Sequence[str] | None = None,
    sidecar: str | PathLike | None = None,
    image_root: str | PathLike | None = None,
    class_names: Sequence[str] | None = None,
    box_convention: str | None = None,
) -> Collection:
    """Read the annotations of a set.

    Args:
        source: the name of a registered set, a folder in a VOC layout, or a COCO file.
        layout: of a folder; ``None`` finds it out.
        splits: of a folder; ``None`` takes every split file. Without any split file all images count.
        sidecar: metadata table of a folder.
        image_root: of a COCO file; ``None`` takes the folder it is in.
        class_names: classes to take from a folder or a file; ``None`` takes all.
        box_convention: of a folder; ``None`` takes that of the layout.

    Raises:
        DatasetError: there is no such set.
    """
    if str(source) in DatasetCatalog.list():
        return _collect_registered(str(source))
    path = Path(source)
    if path.is_file():
        coco = CocoSource(path, image_root if image_root is not None else path.parent, class_names)
        return _collect_coco(coco, str(path))
    return _collect_folder(
        path, get_layout(layout, path), splits, sidecar=sidecar, class_names=class_names, box_convention=box_convention
    )


def check_collection(
    collection: Collection, *, high_bit_depth: str = "auto", workers: int = 1, progress: bool = False
) -> CheckReport:
    """Open every image and mask of a set, in ``workers`` threads, and measure its targets.

    ``high_bit_depth`` as for :func:`irstd_d2.data.read_image`; ``progress`` shows a progress bar.
    """
    faults, notes, images = list(collection.faults), list(collection.notes), []
    masked: list[tuple[dict[str, Any], np.ndarray]] = []
    with ThreadPoolExecutor(workers) as pool:
        inspect = partial(_inspect, find_mask=collection.target_mask, high_bit_depth=high_bit_depth)
        results = pool.map(inspect, collection.dicts)
        progressed = tqdm(results, total=len(collection.dicts), unit="image", disable=not progress)
        for sample, result in zip(collection.dicts, progressed):
            faults += result.faults
            if result.statistics is not None:
                images.append(result.statistics)
            if result.bounds is not None:
                masked.append((sample, result.bounds))
    notes += repeated_boxes(collection.dicts)
    notes += mask_notes(masked, collection.dicts, collection.splits, collection.box_convention)
    if not masked:
        notes += light_note([image.offsets for image in images if image.offsets is not None], collection.box_convention)
    notes += range_notes(images)
    notes += _metadata_notes(collection.dicts)
    notes += _page_notes(collection.dicts)
    colour = [image.name for image in images if not image.pixel_kind.startswith("gray")]
    if 0 < len(colour) < len(images):
        notes.append(
            f"{len(colour)} of {len(images)} images have colour channels; all are read as three: {first_of(colour)}"
        )
    return CheckReport(collection.title, DatasetStatistics(images, collection.splits), faults, notes)


def convention_notes(collection: Collection, limit: int = 200) -> list[str]:
    """What speaks against the box convention of a set, as :func:`check_collection` says it, at less cost.

    At most ``limit`` images are opened, spread evenly.
    """
    masked, offsets = [], []
    for sample in collection.dicts[:: max(1, -(-len(collection.dicts) // limit))]:
        found = _inspect(sample, collection.target_mask, "auto")
        if found.bounds is not None:
            masked.append((boxes_of(sample), found.bounds))
        if found.statistics is not None and found.statistics.offsets is not None:
            offsets.append(found.statistics.offsets)
    if masked:
        common = common_offset(masked)
        return [] if common is None else [offset_note(*common, collection.box_convention)]
    return edge_note(collection.dicts, collection.box_convention) or light_note(offsets, collection.box_convention)


def _collect_registered(name: str) -> Collection:
    source = getattr(MetadataCatalog.get(name), "source", None)
    if isinstance(source, CocoSource):
        return _collect_coco(source, name)
    if isinstance(source, VocSource):
        scan, root = source.scan(), source.resolve_root()
        layout, title, splits = get_layout(source.layout, root), f"{name}: {root}", {name: _ids(scan.dicts)}
        mask = partial(layout.target_mask_of, root)
        convention = source.box_convention or layout.box_convention
        return Collection(title, scan.dicts, splits, scan.faults, scan.remarks(), mask, convention)
    dicts = DatasetCatalog.get(name)
    return Collection(name, dicts, {name: _ids(dicts)}, [])


def _collect_coco(source: CocoSource, title: str) -> Collection:
    scan = source.scan()
    present, faults = [], scan.faults
    for sample in scan.dicts:
        if Path(sample["file_name"]).is_file():
            present.append(sample)
        else:
            fix = "add the image or give its folder"
            faults.append(Fault.of(FaultKind.MISSING_IMAGE, sample["file_name"], "file", "no such image", fix))
    return Collection(title, present, {}, faults, scan.remarks())


def _collect_folder(root: Path, layout: VocLayout, splits: Sequence[str] | None, **options: Any) -> Collection:
    found = list_splits(root, layout) if splits is None else splits
    named: dict[str, list[str]] = {}
    faults: list[Fault] = []
    for split in found:
        try:
            named[split], line_faults = read_split(root / layout.split.format(split=split))
        except DatasetError as error:
            faults.append(Fault.from_error(FaultKind.BAD_SPLIT, error))
            continue
        faults += line_faults
    names = list(dict.fromkeys(name for split in named.values() for name in split)) if named else None
    scan = scan_voc(root, layout=layout, names=names, **options)
    notes = [*_split_overlaps(named), *scan.remarks()]
    if names is not None:
        unused = sorted(set(FolderIndex(root / layout.images).stems()) - set(names))
        if unused:
            notes.append(f"{len(unused)} images are in no split: {first_of(unused)}")
    mask = partial(layout.target_mask_of, root)
    convention = options["box_convention"] or layout.box_convention
    return Collection(str(root), scan.dicts, named, [*faults, *scan.faults], notes, mask, convention)


def _split_overlaps(splits: dict[str, list[str]]) -> list[str]:
    """Remarks on splits of one version (``train_v2``, ``test_v2``) that should have no image in common but do."""
    notes = []
    for split, names in splits.items():
        base, underscore, version = split.partition("_")
        for first, second in _DISJOINT:
            other = second + underscore + version
            shared = set(names) & set(splits.get(other, ())) if base == first else set()
            if shared:
                notes.append(f"the splits {split} and {other} share {len(shared)} images: {first_of(sorted(shared))}")
    return notes


@dataclass(frozen=True)
class _Inspection:
    """``bounds``: of the targets in the mask, where there is a sound one."""

    statistics: ImageStatistics | None
    faults: list[Fault]
    bounds: np.ndarray | None = None


def _inspect(sample: dict[str, Any], find_mask: Callable[[str], Path | None], high_bit_depth: str) -> _Inspection:
    path, size = sample["file_name"], (sample["height"], sample["width"])
    try:
        raw = read_raw(path)
        image = to_float_image(raw, path, high_bit_depth=high_bit_depth)
        check_size(path, raw.shape, size)
    except DatasetError as error:
        return _Inspection(None, [Fault.of_file(FaultKind.BAD_IMAGE, error)])
    faults: list[Fault] = []
    bounds = None
    try:
        if "sem_seg_file_name" in sample:
            check_size(sample["sem_seg_file_name"], read_sky_mask(sample["sem_seg_file_name"]).shape, size)
    except DatasetError as error:
        faults.append(Fault.of_file(FaultKind.BAD_MASK, error))
    try:
        if (target_mask := find_mask(sample["image_id"])) is not None:
            bounds = label_boxes(read_target_labels(target_mask, size[::-1]).labels)
    except DatasetError as error:
        faults.append(Fault.of_file(FaultKind.BAD_MASK, error))
    levels = (float(raw.min()), float(raw.max()), uses_small_part(raw))
    return _Inspection(measure_image(sample, image, _pixel_kind(raw), levels), faults, bounds)


def _metadata_notes(dicts: Sequence[dict[str, Any]]) -> list[str]:
    """Remarks on platforms and bands that a system's models would not tell apart, with the number of images."""
    found = Counter(
        (field, str(name))
        for sample in dicts
        for field in ("platform", "band")
        if (name := (sample.get("metadata") or {}).get(field))
    )
    return [
        f"{count} images have the {field} {name!r}, which {remark}"
        for (field, name), count in sorted(found.items())
        for system in registered_systems()
        if system.metadata_remark and (remark := system.metadata_remark(field, name))
    ]


def _page_notes(dicts: Sequence[dict[str, Any]]) -> list[str]:
    """A remark on the pages of TIFFs that no training sees."""
    pages = [count for sample in dicts if (count := count_pages(sample["file_name"])) > 1]
    if not pages:
        return []
    return [f"{len(pages)} images are TIFFs of several pages, {sum(pages)} in all: the first of each is read, "
            f"{sum(pages) - len(pages)} are left out; save them as files"]  # fmt: skip


def _pixel_kind(raw: np.ndarray) -> str:
    channels = 1 if raw.ndim == 2 else raw.shape[2]
    name = {1: "gray", 3: "RGB", 4: "RGB with alpha"}[channels]
    return f"{name}, {raw.dtype.itemsize * 8} bits{' float' if raw.dtype.kind == 'f' else ''}"


def _ids(dicts: Iterable[dict[str, Any]]) -> list[str]:
    return [str(sample["image_id"]) for sample in dicts]


def _shorten(lines: Sequence[tuple[str, str]], limit: int = 20) -> list[str]:
    """Lines of a report; of those with the same key the first ones, and how many more there are."""
    counts = Counter(key for key, _ in lines)
    shown: Counter[str] = Counter()
    result = []
    for key, line in lines:
        shown[key] += 1
        if shown[key] <= limit:
            result.append(f"  {line}")
        if shown[key] == limit and counts[key] > limit:
            result.append(f"  ... and {counts[key] - limit:,} more of this kind")
    return result


def _statistics_sections(statistics: DatasetStatistics) -> list[str]:
    """Tables of a report."""
    boxes = statistics.boxes()
    side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    sizes = statistics.sizes()
    total = statistics.num_targets
    kinds = ", ".join(f"{count} {kind}" for kind, count in statistics.pixel_kinds().most_common())
    sections = [
        f"{len(statistics.images)} images, {total} targets; pixels: {kinds or 'none'}",
        _table(["split", "images", "targets", "without target"], statistics.split_rows()),
        _table(["platform", "band", "images", "targets", "sizes", "most common"], statistics.domain_rows()),
    ]
    if total:
        (width, height), count = sizes.most_common(1)[0]
        top = ", ".join(f"{w}x{h} ({n})" for (w, h), n in sizes.most_common(5))
        contrast = statistics.contrast()
        brightest = float((statistics.brightness() >= BRIGHTNESS_EDGES[-2]).mean())
        sections += [
            f"Most common target size: {width}x{height} pixels ({count} targets, {count / total:.1%}); all: {top}",
            _histogram("target side (root of the box area, pixels)", side, SIZE_EDGES),
            f"Local contrast: {contrast.min():.2f} to {contrast.max():.2f}, {(contrast < 2).mean():.1%} below 2",
            _histogram("local contrast (target over surroundings)", contrast, CONTRAST_EDGES),
            f"Brightness: {brightest:.1%} of the targets hold the brightest pixel of their image",
            _histogram("brightness (peak over the peak of the image)", statistics.brightness(), BRIGHTNESS_EDGES),
        ]
    return sections


def _histogram(title: str, values: np.ndarray, edges: Sequence[float]) -> str:
    rows = [(name, count, f"{share:.1%}") for name, count, share in histogram_rows(values, edges)]
    return _table([title, "targets", "share"], rows)


def _table(headers: list[str], rows: Sequence[tuple[Any, ...]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
