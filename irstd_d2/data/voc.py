"""From a folder in a VOC layout to detectron2's dataset dicts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from detectron2.structures import BoxMode

from ..errors import ConfigError
from ..memory import without_garbage_collection
from .faults import Fault, FaultKind, refuse_or_skip
from .layout import FolderIndex, VocLayout, get_layout
from .sidecar import SidecarEntry, SidecarTable, read_table
from .splits import read_split
from .voc_xml import BOX_CONVENTIONS, VocRecord, find_box_faults, read_annotations, to_convention

CLASS_NAMES = ("Target",)

_UNKNOWN = SidecarEntry(None, None, None, None)
_logger = logging.getLogger(__name__)


def load_voc(
    root: str | PathLike,
    split: str | None = None,
    *,
    layout: str | VocLayout | None = None,
    class_names: Sequence[str] = CLASS_NAMES,
    box_convention: str = "half_open",
    sidecar: str | PathLike | None = None,
    skip_bad: bool = False,
) -> list[dict[str, Any]]:
    """Load a data set of Pascal VOC files.

    Args:
        root: folder of the set.
        split: name of the split file without suffix; ``None`` takes all images of the folder, sorted by name.
        layout: a name of ``LAYOUTS`` or a layout; ``None`` finds it out.
        class_names: of the objects, in the order of their ids; upper and lower case are the same.
        box_convention: ``"half_open"`` (exact) or ``"paper"`` (all four coordinates minus one).
        sidecar: metadata table; its non-empty cells win over the XML. ``None`` takes ``metadata.tsv`` or
            ``metadata.csv`` of the root if there is one.
        skip_bad: leave faulty images out, with one logged summary, in place of raising.

    Returns:
        Dataset dicts in the order of the split: ``file_name``, ``image_id`` (the stem), ``height``, ``width``,
        ``annotations`` (XYXY_ABS, ``iscrowd`` from ``<difficult>``), ``metadata`` and, where there is one,
        ``sem_seg_file_name``.

    Raises:
        DatasetError: an image is faulty and ``skip_bad`` is off; or there is nothing to load.
    """
    dicts, faults = scan_voc(
        root,
        split,
        layout=layout,
        class_names=class_names,
        box_convention=box_convention,
        sidecar=sidecar,
    )
    source = f"{root} ({split or 'all images'})"
    refuse_or_skip(faults, skip_bad, source)
    _logger.info("Loaded %d images from %s", len(dicts), source)
    return dicts


@without_garbage_collection()
def scan_voc(
    root: str | PathLike,
    split: str | None = None,
    *,
    layout: str | VocLayout | None = None,
    class_names: Sequence[str] = CLASS_NAMES,
    box_convention: str = "half_open",
    sidecar: str | PathLike | None = None,
    names: Sequence[str] | None = None,
) -> tuple[list[dict[str, Any]], list[Fault]]:
    """As :func:`load_voc`, but return the dicts of the sound images together with all faults of the others.

    ``names`` are image names to take in place of a split.
    """
    if box_convention not in BOX_CONVENTIONS:
        raise ConfigError(f"box_convention is {box_convention!r}; use one of {', '.join(BOX_CONVENTIONS)}")
    root = Path(root)
    layout = get_layout(layout, root)
    images = FolderIndex(root / layout.images)
    xml = FolderIndex(root / layout.annotations, (".xml",))
    faults: list[Fault] = []
    if names is None:
        names, faults = read_split(root / layout.split.format(split=split)) if split else (images.stems(), [])
    image_names, image_faults = _find_images(images, names)
    table = _read_tables(root, layout, sidecar)
    xml_names = {name: (xml[name] or [f"{name}.xml"])[0] for name in names}
    records, xml_faults = read_annotations(xml.folder, xml_names.values())
    faults = [*faults, *image_faults, *table.faults, *xml_faults]

    class_ids = {name.lower(): i for i, name in enumerate(class_names)}
    find_mask = _mask_finder(root, layout.sky_masks)
    image_prefix, xml_prefix = (os.path.join(index.folder, "") for index in (images, xml))  # noqa: PTH118
    dicts = []
    for name in names:
        record = records.get(xml_names[name])
        if record is None or name not in image_names:
            continue
        box_faults = find_box_faults(record, xml_prefix + xml_names[name], class_ids)
        if box_faults:
            faults += box_faults
            continue
        sample = {
            "file_name": image_prefix + image_names[name],
            "image_id": name,
            "height": record.height,
            "width": record.width,
            "metadata": table.further.get(name, {}) | _metadata(record, table.entries.get(name, _UNKNOWN)),
            "annotations": _annotations(record, class_ids, box_convention),
        }
        mask = find_mask(name)
        if mask:
            sample["sem_seg_file_name"] = mask
        dicts.append(sample)
    return dicts, faults


def _find_images(index: FolderIndex, names: Iterable[str]) -> tuple[dict[str, str], list[Fault]]:
    found, faults = {}, []
    for name in names:
        files = index[name]
        if len(files) == 1:
            found[name] = files[0]
        elif files:
            problem, fix = f"{', '.join(files)} all stand for {name!r}", "keep one of them"
            faults.append(Fault.of(FaultKind.AMBIGUOUS_IMAGE, index.folder / files[0], "file", problem, fix))
        else:
            fix = "add the image or take its name out of the split"
            faults.append(Fault.of(FaultKind.MISSING_IMAGE, index.folder / name, "file", "no such image", fix))
    return found, faults


def _read_tables(root: Path, layout: VocLayout, sidecar: str | PathLike | None) -> SidecarTable:
    if sidecar is not None:
        return read_table(sidecar)
    for candidate in layout.sidecars:
        if (root / candidate).is_file():
            return read_table(root / candidate)
    return SidecarTable({}, {}, [])


def _mask_finder(root: Path, patterns: tuple[str, ...]) -> Callable[[str], str | None]:
    """Return a function from an image name to the path of its first existing mask, or ``None``."""
    available = []
    for pattern in patterns:
        folder = (root / pattern).parent
        if folder.is_dir():
            stem, suffix = PurePosixPath(pattern).stem, PurePosixPath(pattern).suffix
            available.append((os.path.join(folder, ""), stem, FolderIndex(folder, (suffix,))))  # noqa: PTH118

    def find(name: str) -> str | None:
        for prefix, stem, index in available:
            files = index[stem.format(name=name)]
            if files:
                return prefix + files[0]
        return None

    return find


def _metadata(record: VocRecord, entry: SidecarEntry) -> dict[str, Any]:
    return {
        "platform": entry.platform or record.platform,
        "band": entry.band or record.band,
        "width": entry.width or record.width,
        "height": entry.height or record.height,
    }


def _annotations(record: VocRecord, class_ids: dict[str, int], box_convention: str) -> list[dict[str, Any]]:
    return [
        {
            "bbox": to_convention(obj.box, box_convention),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": class_ids[obj.name.lower()],
            "iscrowd": int(obj.difficult),
        }
        for obj in record.objects
    ]
