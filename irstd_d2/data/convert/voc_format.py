"""Pascal VOC folders, in any of the project's layouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from xml.etree.ElementTree import Element

from defusedxml.ElementTree import parse

from ...errors import DatasetError
from ..layout import FolderIndex, VocLayout, get_layout, list_splits
from ..layout_writer import png_bytes
from ..splits import read_split
from ..voc import scan_voc
from ..voc_xml import VocObject, VocRecord, format_voc_xml, from_convention
from .detection_set import DetectionSet, record_from_dict
from .mask_format import has_mask, target_mask
from .side_files import in_folder, place_image, place_sky_mask, write_metadata_table, write_splits

# Tags without information on the targets, and values that editors write where nobody said anything.
_PASSED_OVER = {
    *("folder", "filename", "path", "source", "size", "name", "difficult", "bndbox"),
    *("view", "platform", "band_type", "band"),
}
_EMPTY_VALUES = {"", "0", "Unspecified", "Unknown"}


def read_voc(
    root: str | PathLike,
    *,
    layout: str | VocLayout | None = None,
    sidecar: str | PathLike | None = None,
    skip_bad: bool = False,
    use_splits: bool = True,
    class_names: Sequence[str] | None = None,
    box_convention: str | None = None,
) -> DetectionSet:
    """Read a folder in a VOC layout; where it has split files, the images that they name.

    With ``use_splits`` off all images count; other arguments as in :func:`irstd_d2.data.load_voc`.

    Raises:
        DatasetError: see :func:`irstd_d2.data.load_voc`.
    """
    root = Path(root)
    layout = get_layout(layout, root)
    found = list_splits(root, layout) if use_splits else []
    splits, faults = {}, []
    for split in found:
        splits[split], line_faults = read_split(root / layout.split.format(split=split))
        faults += line_faults
    named = list(dict.fromkeys(name for names in splits.values() for name in names)) if found else None
    images, annotations = FolderIndex(root / layout.images), FolderIndex(root / layout.annotations, (".xml",))
    files = [name for stem in (annotations.stems() if named is None else named) for name in annotations[stem]]
    scan = scan_voc(
        root, names=named, layout=layout, class_names=class_names, sidecar=sidecar, box_convention=box_convention
    )
    scan, class_names = replace(scan, faults=faults + scan.faults), scan.classes.names
    dicts = scan.accept(str(root), skip_bad=skip_bad)
    present = {sample["image_id"] for sample in dicts}
    return DetectionSet.of_kept(
        records=[
            record_from_dict(sample, name := sample["image_id"], class_names, layout.target_mask_of(root, name))
            for sample in dicts
        ],
        class_names=class_names,
        splits=splits,
        unread=_count_unread_tags(annotations.folder / file for file in files if Path(file).stem in present)
        + Counter({"XML files without image": len(set(annotations.stems()) - set(images.stems()))})
        + Counter({"images in no list": 0 if named is None else len(set(images.stems()) - set(named))})
        + Counter({f"objects of class {name}": count for name, count in scan.left_out.items()}),
        faults=scan.faults,
        box_convention=box_convention or layout.box_convention,
    )


def write_voc(
    detection_set: DetectionSet, folder: Path, *, layout: str = "voc_png", link: bool = False
) -> Counter[str]:
    """Write a set as a VOC folder; return what was lost, counted.

    ``layout``, one of ``LAYOUTS``, decides whether there are places for masks; ``link`` makes symbolic links to the
    images in place of copies.
    """
    places = get_layout(layout, folder)
    lost: Counter[str] = Counter()
    for record in detection_set.records:
        file_name = place_image(record, folder / places.images, link=link)
        for text in (record.platform, record.band, *(obj.class_name for obj in record.objects)):
            if text is not None and not text.isprintable():
                raise DatasetError(record.image, "name", f"{text!r} cannot stand in XML", "use printable characters")
        objects = tuple(
            VocObject(obj.class_name, obj.difficult, from_convention(obj.box, places.box_convention))
            for obj in record.objects
        )
        xml = VocRecord(*record.size, record.platform, record.band, objects)
        in_folder(folder / places.annotations / f"{record.name}.xml").write_bytes(format_voc_xml(xml, file_name))
        if places.sky_masks:
            place_sky_mask(record, folder / places.sky_masks[0].format(name=record.name))
        else:
            lost["sky masks"] += record.sky_mask is not None
        if has_mask(record):
            if places.target_masks:
                target = in_folder(folder / places.target_masks[0].format(name=record.name))
                target.write_bytes(png_bytes(target_mask(record)))
            else:
                lost["target masks (their boxes are kept)"] += 1
    write_metadata_table(folder, detection_set.records, sizes_only=True)
    write_splits(detection_set, lambda split: folder / places.split.format(split=split), lambda name: name)
    return +lost


def _count_unread_tags(paths: Iterable[Path]) -> Counter[str]:
    """Tags with information that no reader of this project takes, such as <pose> or <truncated>."""
    counts: Counter[str] = Counter()
    for path in paths:
        root = parse(path, forbid_dtd=True).getroot()
        counts.update(f"<{tag}> of XML files" for tag in _informative(root))
        for element in root.iterfind("object"):
            counts.update(f"<{tag}> of objects" for tag in _informative(element))
    return counts


def _informative(element: Element) -> list[str]:
    return [
        child.tag
        for child in element
        if child.tag.lower() not in _PASSED_OVER
        and child.tag != "object"
        and (len(child) or (child.text or "").strip() not in _EMPTY_VALUES)
    ]
