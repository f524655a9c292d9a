"""From a folder in a VOC layout to detectron2's dataset dicts."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from detectron2.structures import BoxMode

from ..errors import DatasetError, check_known, first_of
from ..memory import without_garbage_collection
from .classes import ClassTable, fold, name_lookup
from .faults import Fault, FaultKind, Scan, refuse_fractions
from .layout import FolderIndex, VocLayout, get_layout
from .sidecar import SidecarEntry, SidecarTable, check_ids, read_table
from .splits import read_split
from .voc_xml import BOX_CONVENTIONS, VocRecord, find_box_faults, read_annotations, to_convention

CLASS_NAMES = ("Target",)  # of the published sets

_UNKNOWN = SidecarEntry(None, None, None, None)


def load_voc(
    root: str | PathLike,
    split: str | None = None,
    *,
    layout: str | VocLayout | None = None,
    class_names: Sequence[str] | None = None,
    box_convention: str | None = None,
    sidecar: str | PathLike | None = None,
    skip_bad: bool = False,
) -> list[dict[str, Any]]:
    """Load a data set of Pascal VOC files.

    Args:
        root: folder of the set.
        split: name of the split file without suffix; ``None`` takes all images of the folder, sorted by name.
        layout: a name of ``LAYOUTS`` or a layout; ``None`` finds it out.
        class_names: of the objects to take, in the order of their indices; other objects are left out, and counted in
            the log. ``None`` takes all classes of the folder, by name.
        box_convention: see :func:`irstd_d2.data.voc_xml.to_convention`; ``None`` takes that of the layout.
        sidecar: metadata table; its non-empty cells win over the XML. ``None`` takes ``metadata.tsv`` or
            ``metadata.csv`` of the root if there is one.
        skip_bad: leave faulty images out, with one logged summary, in place of raising.

    Returns:
        Dataset dicts in the order of the split: ``file_name``, ``image_id`` (the stem), ``height``, ``width``,
        ``annotations`` (XYXY_ABS, ``iscrowd`` from ``<difficult>``), ``metadata`` and, where there is one,
        ``sem_seg_file_name``.

    Raises:
        DatasetError: an image is faulty and ``skip_bad`` is off; there is nothing to load; or no object of the whole
            folder is of a class in ``class_names``.
    """
    scan = scan_voc(root, split, layout=layout, class_names=class_names, box_convention=box_convention, sidecar=sidecar)
    return scan.accept(f"{root} ({split or 'all images'})", skip_bad=skip_bad)


@without_garbage_collection()
def scan_voc(
    root: str | PathLike,
    split: str | None = None,
    *,
    layout: str | VocLayout | None = None,
    class_names: Sequence[str] | None = None,
    class_aliases: Mapping[str, str] | None = None,
    box_convention: str | None = None,
    sidecar: str | PathLike | None = None,
    names: Sequence[str] | None = None,
) -> Scan:
    """As :func:`load_voc`, but return the sound images together with all faults of the others.

    ``class_aliases`` leads from names in the files to the names that count; ``names`` are image names to take in place
    of a split.
    """
    root = Path(root)
    layout = get_layout(layout, root)
    box_convention = layout.box_convention if box_convention is None else box_convention
    check_known("box_convention", box_convention, BOX_CONVENTIONS)
    images = FolderIndex(root / layout.images)
    xml = FolderIndex(root / layout.annotations, (".xml",))
    faults: list[Fault] = []
    if names is None:
        names, faults = read_split(root / layout.split.format(split=split)) if split else (images.stems(), [])
    image_names, image_faults = _find_images(images, names)
    table = _read_tables(root, layout, sidecar, images.stems())
    xml_names = {name: (xml[name] or [f"{name}.xml"])[0] for name in names}
    records, xml_faults = read_annotations(xml.folder, xml_names.values())
    faults = [*faults, *image_faults, *table.faults, *xml_faults]

    classes = (
        read_voc_classes(root, layout=layout, class_aliases=class_aliases)
        if class_names is None
        else ClassTable.from_names(class_names)
    )
    class_ids, _ = name_lookup(classes.names, class_aliases)
    find_mask = _mask_finder(root, layout.sky_masks)
    image_prefix, xml_prefix = (os.path.join(index.folder, "") for index in (images, xml))  # noqa: PTH118
    dicts = []
    left_out: Counter[str] = Counter()
    boxless = 0
    for name in names:
        record = records.get(xml_names[name])
        if record is None or name not in image_names:
            continue
        boxless += record.boxless
        left_out.update(obj.name for obj in record.objects if fold(obj.name) not in class_ids)
        box_faults = find_box_faults(record, xml_prefix + xml_names[name], class_ids, box_convention)
        if box_faults:
            faults += box_faults
            continue
        entry = table.entries.get(name, _UNKNOWN)
        metadata = {field: getattr(entry, field) or getattr(record, field) for field in SidecarEntry._fields}
        sample = {
            "file_name": image_prefix + image_names[name],
            "image_id": name,
            "height": record.height,
            "width": record.width,
            "metadata": table.further.get(name, {}) | metadata,
            "annotations": _annotations(record, class_ids, box_convention),
        }
        mask = find_mask(name)
        if mask:
            sample["sem_seg_file_name"] = mask
        dicts.append(sample)
    if left_out and not any(sample["annotations"] for sample in dicts):
        _refuse_foreign_classes(read_voc_classes(root, layout=layout), class_ids, xml.folder)
    refuse_fractions(xml.folder, (item.box for record in records.values() for item in record.objects))
    notes = [f"{boxless} objects have no <bndbox>: read as no target"] if boxless else []
    if alone := sorted(set(xml.stems()) - set(images.stems())):
        notes.append(f"{len(alone)} XML files have no image of a known kind: {first_of(alone)}")
    return Scan(dicts, classes, faults, left_out, tuple(notes))


def read_voc_classes(
    root: str | PathLike, *, layout: str | VocLayout | None = None, class_aliases: Mapping[str, str] | None = None
) -> ClassTable:
    """The classes of all files of a folder, by name; ``Target`` where there is no object. Faulty files do not count."""
    folder = FolderIndex(Path(root) / get_layout(layout, root).annotations, (".xml",))
    files = [name for stem in folder.stems() for name in folder[stem]]
    records, _ = read_annotations(folder.folder, files)
    found = Counter(obj.name for record in records.values() for obj in record.objects)
    spellings = sorted(found, key=lambda name: (fold(name), -found[name], name))
    _, names = name_lookup(spellings or CLASS_NAMES, class_aliases, found=True)
    return ClassTable.from_names(names)


def _refuse_foreign_classes(found: ClassTable, class_ids: Mapping[str, int], folder: Path) -> None:
    if any(fold(name) in class_ids for name in found.names):
        return
    problem = f"the objects are of class {', '.join(found.names)}, none is of {', '.join(class_ids)}"
    fix = "give the set's own class names (tools: --classes; DATASETS.OWN: {'class_names': (...)}), or say which mean "
    raise DatasetError(folder, "object.name", problem, fix + "the same (DATASETS.CLASS_ALIASES)")


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


def _read_tables(root: Path, layout: VocLayout, sidecar: str | PathLike | None, images: list[str]) -> SidecarTable:
    candidates = [root / name for name in layout.sidecars] if sidecar is None else [Path(sidecar)]
    path = next((path for path in candidates if sidecar is not None or path.is_file()), None)
    if path is None:
        return SidecarTable({}, {}, [])
    table = read_table(path)
    check_ids(path, table.entries, images)
    return table


def _mask_finder(root: Path, patterns: tuple[str, ...]) -> Callable[[str], str | None]:
    """Return a function from an image name to the path of its first existing mask, or ``None``."""
    available = []
    for pattern in patterns:
        folder = (root / pattern).parent
        if folder.is_dir():
            available.append((os.path.join(folder, ""), PurePosixPath(pattern).stem, FolderIndex(folder)))  # noqa: PTH118

    def find(name: str) -> str | None:
        for prefix, stem, index in available:
            files = index[stem.format(name=name)]
            if files:
                return prefix + files[0]
        return None

    return find


def _annotations(record: VocRecord, class_ids: dict[str, int], box_convention: str) -> list[dict[str, Any]]:
    return [
        {
            "bbox": to_convention(obj.box, box_convention),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": class_ids[fold(obj.name)],
            "iscrowd": int(obj.difficult),
        }
        for obj in record.objects
        if fold(obj.name) in class_ids
    ]
