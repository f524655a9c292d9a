"""Pascal VOC XML with the imaging tags of WideIRSTD, read without trust in the file.

Coordinates are kept as they stand in the file; :func:`to_convention` gives them their meaning.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError, SubElement, indent, tostring

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from ..errors import ConfigError, DatasetError
from .classes import fold
from .faults import Fault, FaultKind
from .image_io import MAX_SIDE

# By convention: what is added to xmin, ymin and to xmax, ymax as written to get pixels from 0, half-open.
BOX_CONVENTIONS = {"half_open": (0, 0), "one_based": (-1, -1), "inclusive": (-1, 0), "paper": (-1, -1)}
_AREA_FIXES = {
    "half_open": "xmax and ymax are the last column and row plus one: make them larger than xmin and ymin, or, if they "
    "are the last column and row counted from 1, name that convention: --box-convention inclusive",
    "inclusive": "make xmax and ymax at least xmin and ymin",
}
MAX_XML_BYTES = 16 << 20  # some 60,000 targets
MAX_NAME = 255  # characters; file systems take no more
# A file with so many faults is not looked at further: millions of them fit into the size above.
MAX_FAULTS = 100

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LEADS_ELSEWHERE = re.compile(r"[/\\\0]|^[A-Za-z]:")
_DIFFICULT = {"": False, "0": False, "false": False, "unspecified": False, "1": True, "true": True}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")

Box = tuple[float, float, float, float]


class VocObject(NamedTuple):
    """One object: its class name, whether it is marked difficult, and xmin, ymin, xmax, ymax as written."""

    name: str
    difficult: bool
    box: Box


class VocRecord(NamedTuple):
    """One annotation file: image size in pixels, imaging tags (``None`` where absent) and objects.

    ``boxless`` counts objects without ``<bndbox>`` or another outline, by which SIRST-V2 says that there is no target.
    """

    width: int
    height: int
    platform: str | None
    band: str | None
    objects: tuple[VocObject, ...]
    boxless: int = 0


def read_annotations(folder: Path, file_names: Iterable[str]) -> tuple[dict[str, VocRecord], list[Fault]]:
    """Read annotation files of one folder.

    Returns:
        Records by file name, and the faults of all files that have no record.
    """
    records: dict[str, VocRecord] = {}
    faults: list[Fault] = []
    prefix = os.path.join(folder, "")  # noqa: PTH118  strings: a path object per file costs more than its reading
    for name in file_names:
        record, file_faults = parse_voc_xml(prefix + name)
        faults += file_faults
        if record is not None:
            records[name] = record
    return records, faults


def read_voc_xml(path: str | PathLike) -> VocRecord:
    """Read one annotation file.

    Raises:
        DatasetError: the file is missing, too large, not well-formed, declares a DTD or entities, or lacks a field.
    """
    record, faults = parse_voc_xml(Path(path))
    if record is None:
        raise DatasetError(faults[0].file, faults[0].field, faults[0].problem, faults[0].fix)
    return record


def parse_voc_xml(path: str | PathLike) -> tuple[VocRecord | None, list[Fault]]:
    """Read one annotation file and list all that is wrong with it.

    Returns:
        The record and no fault, or ``None`` and at least one fault.
    """
    path = Path(path)
    root, faults = _parse_tree(path)
    if root is None:
        return None, faults
    fields = _FieldReader(path)
    # Nothing is opened by this name: images are found by the name of the XML file. Programs write whole paths.
    name = (root.findtext("filename") or "").strip()
    if ".." in re.split(r"[/\\]", name) or "\0" in name:
        problem = f"{name[:80]!r} leads out of the image folder"
        fields.fail(FaultKind.UNSAFE_NAME, "filename", problem, "write the bare file name")
    width, height = fields.size(root, "width"), fields.size(root, "height")
    objects, boxless = [], 0
    for i, element in enumerate(root.iterfind("object")):
        outline = next((child.tag for child in element if len(child)), None)
        if element.find("bndbox") is not None:
            objects.append(fields.object(element, i))
        elif outline is None:
            boxless += 1
        else:
            fix = "write its bounds as <bndbox>, or take the object out"
            fields.fail(FaultKind.MISSING_FIELD, f"object[{i}].bndbox", f"missing, <{outline[:40]}> is not read", fix)
        if len(fields.faults) >= MAX_FAULTS:
            break
    if not (objects or boxless or fields.faults) and any("bndbox" in child.tag.lower() for child in root.iter()):
        fix = "write every box as <object>, lower case, directly below <annotation>"
        fields.fail(FaultKind.MISSING_FIELD, "object", "missing, although there is a <bndbox>", fix)
    if fields.faults:
        return None, fields.faults
    tags = {child.tag.lower(): (child.text or "").strip() for child in root[::-1] if child.tag != "object"}
    platform = tags.get("view") or tags.get("platform") or None
    band = tags.get("band_type") or tags.get("band") or None
    return VocRecord(width, height, platform, band, tuple(objects), boxless), []


def format_voc_xml(
    record: VocRecord, file_name: str, *, depth: int = 1, scores: Sequence[float] | None = None
) -> bytes:
    """Write an annotation file such that :func:`parse_voc_xml` reads the same record from it, bit for bit.

    ``file_name`` and ``depth`` (channels) are of the image; ``scores`` of detections, one per object, are written as
    ``<score>``, which readers of annotations pass over.
    """
    root = Element("annotation")
    SubElement(root, "filename").text = file_name
    size = SubElement(root, "size")
    for tag, value in (("width", record.width), ("height", record.height), ("depth", depth)):
        SubElement(size, tag).text = str(value)
    for tag, text in (("view", record.platform), ("band_type", record.band)):
        if text is not None:
            SubElement(root, tag).text = text
    for i, (name, difficult, box) in enumerate(record.objects):
        element = SubElement(root, "object")
        SubElement(element, "name").text = name
        SubElement(element, "difficult").text = str(int(difficult))
        if scores is not None:
            SubElement(element, "score").text = repr(float(scores[i]))
        corners = SubElement(element, "bndbox")
        for tag, corner in zip(_CORNERS, box):
            # The shortest text that reads as the same number; whole numbers without a point.
            SubElement(corners, tag).text = str(int(corner)) if float(corner).is_integer() else repr(float(corner))
    indent(root)
    return tostring(root) + b"\n"


def find_box_faults(
    record: VocRecord, file: str | PathLike, class_names: Container[str], convention: str = "half_open"
) -> list[Fault]:
    """List boxes without area or beyond the image.

    Of a ``record`` from a ``file`` only objects in ``class_names`` are looked at, names as
    :func:`irstd_d2.data.classes.fold` returns them. The convention ``"paper"``, which shifts exact boxes over the edge,
    counts as ``"half_open"`` here.
    """
    faults = []
    exact = "half_open" if convention == "paper" else convention
    for i, (name, _, box) in enumerate(record.objects):
        if fold(name) not in class_names:
            continue
        x1, y1, x2, y2 = to_convention(box, exact)
        written = "({:g}, {:g}, {:g}, {:g})".format(*box)
        field = f"object[{i}].bndbox"
        if not (x2 > x1 and y2 > y1):
            problem = f"{written} has no area"
            fix = _AREA_FIXES.get(exact, "make xmax and ymax larger than xmin and ymin")
            faults.append(Fault.of(FaultKind.BAD_BOX, file, field, problem, fix))
        elif x1 < 0 or y1 < 0 or x2 > record.width or y2 > record.height:
            problem = f"{written} leaves the image of {record.width}x{record.height}"
            fix = "clip the box, correct <size>, or name the convention of the boxes (--box-convention)"
            faults.append(Fault.of(FaultKind.BOX_OUTSIDE, file, field, problem, fix))
    return faults


def to_convention(box: Box, convention: str) -> list[float]:
    """Turn coordinates as written into XYXY boxes in pixels, 0-based and half-open.

    Args:
        box: xmin, ymin, xmax, ymax of the file.
        convention: ``"half_open"`` takes them as they are, which is exact for DenseSIRST and WideIRSTD;
            ``"one_based"`` subtracts one from all four, which is exact for SIRST-V2; ``"inclusive"`` subtracts one from
            xmin and ymin only: the first pixel is 1, and xmax, ymax are the last column and row, as Pascal VOC and
            MATLAB count; ``"paper"`` subtracts one from all four, exact or not, as BAFE-Net's published protocol does.
    """
    if convention not in BOX_CONVENTIONS:
        raise ConfigError(f"box convention {convention!r}; use one of {', '.join(BOX_CONVENTIONS)}")
    low, high = BOX_CONVENTIONS[convention]
    x1, y1, x2, y2 = box
    return [x1 + low, y1 + low, x2 + high, y2 + high]


def from_convention(box: Box, convention: str) -> Box:
    """What :func:`to_convention` turns into ``box``."""
    low, high = BOX_CONVENTIONS[convention]
    x1, y1, x2, y2 = box
    return x1 - low, y1 - low, x2 - high, y2 - high


def is_plain_name(name: str) -> bool:
    """Whether a file name from a data file names a file in a folder, and nothing outside of it."""
    return name not in ("", ".", "..") and not _LEADS_ELSEWHERE.search(name)


def _parse_tree(path: Path) -> tuple[Element | None, list[Fault]]:
    def fail(kind: FaultKind, problem: str, fix: str) -> tuple[None, list[Fault]]:
        return None, [Fault.of(kind, path, "file", problem, fix)]

    try:
        with path.open("rb") as file:
            data = file.read(MAX_XML_BYTES + 1)
    except FileNotFoundError:
        return fail(FaultKind.MISSING_XML, "no such annotation", "add the XML file or take the image out of the split")
    except OSError as error:
        return fail(FaultKind.BAD_XML, f"cannot be opened ({error.strerror})", "check its rights")
    if len(data) > MAX_XML_BYTES:
        return fail(FaultKind.BAD_XML, f"larger than {MAX_XML_BYTES >> 20} MiB", "split the image or thin out the file")
    try:
        root = fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        problem = f"a DTD or entities, refused ({type(error).__name__})"
        return fail(FaultKind.BAD_XML, problem, "remove the <!DOCTYPE ...> declaration")
    except (ParseError, ValueError, LookupError) as error:
        fix = "save it as UTF-8" if "encoding" in str(error) else "repair the XML or copy it again"
        return fail(FaultKind.BAD_XML, f"not well-formed ({error})", fix)
    if root.tag != "annotation":
        return fail(FaultKind.BAD_XML, f"root element <{root.tag[:40]}>", "Pascal VOC files start with <annotation>")
    return root, []


class _FieldReader:
    """Reads fields of one file, collecting faults; a value returned along with a fault is not used."""

    def __init__(self, path: Path):
        self.path = path
        self.faults: list[Fault] = []

    def fail(self, kind: FaultKind, field: str, problem: str, fix: str) -> None:
        self.faults.append(Fault.of(kind, self.path, field, problem, fix))

    def number(self, parent: Element | None, tag: str, field: str) -> float:
        text = "" if parent is None else (parent.findtext(tag) or "").strip()
        value = float(text) if _NUMBER.fullmatch(text) else float("nan")
        if not abs(value) < float("inf"):
            problem = f"{text[:40]!r} is not a finite number" if text else "missing"
            self.fail(FaultKind.MISSING_FIELD, field, problem, "write a number")
            return 0.0
        return value

    def size(self, root: Element, tag: str) -> int:
        before = len(self.faults)
        value = self.number(root.find("size"), tag, f"size.{tag}")
        if len(self.faults) == before and not (1 <= value <= MAX_SIDE and value == int(value)):
            self.fail(FaultKind.MISSING_FIELD, f"size.{tag}", f"{value:g} pixels", "write the image's size in pixels")
        return int(value)

    def object(self, element: Element, index: int) -> VocObject:
        name = (element.findtext("name") or "").strip()
        if not name:
            self.fail(FaultKind.MISSING_FIELD, f"object[{index}].name", "missing", "write the class name")
        corners, *others = element.findall("bndbox")
        if others:
            fix = "write an object for each"
            self.fail(FaultKind.BAD_BOX, f"object[{index}].bndbox", f"{1 + len(others)} boxes", fix)
        x1, y1, x2, y2 = (self.number(corners, tag, f"object[{index}].bndbox.{tag}") for tag in _CORNERS)
        difficult = (element.findtext("difficult") or "").strip().lower()
        if difficult not in _DIFFICULT:
            problem = f"{difficult[:40]!r} is neither 0 nor 1"
            self.fail(FaultKind.MISSING_FIELD, f"object[{index}].difficult", problem, "write 0 or 1")
        return VocObject(name, _DIFFICULT.get(difficult, False), (x1, y1, x2, y2))
