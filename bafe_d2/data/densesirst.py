"""The released DenseSIRST set: what a complete copy holds, and how it gets to where the data sets look for it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from irstd_d2.data.faults import Fault
from irstd_d2.data.layout import LAYOUTS, FolderIndex
from irstd_d2.data.splits import read_split
from irstd_d2.data.voc import scan_voc
from irstd_d2.errors import DatasetError
from irstd_d2.files import staged_folder

FOLDER = "SIRSTdevkit"
IMAGES = 1024
# Images and targets of each split, counted in the released files; section III-C gives 1,024 and 13,655 for all.
SPLITS = {
    "train_v1": (256, 3613),
    "val_v1": (85, 1119),
    "trainval_v1": (341, 4732),
    "test_v1": (86, 1209),
    "train_v2": (512, 6749),
    "val_v2": (256, 3452),
    "trainval_v2": (768, 10201),
    "test_v2": (256, 3454),
}
# Folder, ending of its files, and whether training or evaluation needs them.
FILES = (
    ("PNGImages", ".png", True),
    ("SIRST/BBox", ".xml", True),
    ("SIRST/BinaryMask", "_pixels0.png", False),
    ("SIRST/PaletteMask", ".png", False),
    ("SIRST/Point_label", "_pixels0.txt", False),
    ("SkySeg/BinaryMask", "_pixels0.png", True),
    ("SkySeg/PaletteMask", ".png", False),
)


@dataclass(frozen=True)
class Count:
    """Something that was counted, such as ``"SkySeg/BinaryMask"``, and how many the released set has of it.

    ``needed`` says whether training or evaluation fails without it.
    """

    what: str
    found: int
    expected: int
    needed: bool

    @property
    def ok(self) -> bool:
        return self.found == self.expected


def find_densesirst(path: str | PathLike) -> Path:
    """Return the folder of the set: ``path``, or the nearest ``SIRSTdevkit`` at most two levels below it.

    Raises:
        DatasetError: there is none, or two are equally near.
    """
    path = Path(path).expanduser()
    if path.is_file():
        raise DatasetError(path, "file", "not a folder", "unpack the archive and give the folder that it makes")
    if not path.is_dir():
        raise DatasetError(path, "folder", "no such folder", "give the folder that was downloaded")
    if _looks_like_it(path):
        return path
    for pattern in (FOLDER, f"*/{FOLDER}"):
        found = sorted(folder for folder in path.glob(pattern) if _looks_like_it(folder))
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(str(folder) for folder in found)
            raise DatasetError(path, "folder", f"{len(found)} copies of the set: {listed}", "give one of them")
    fix = "give the folder that holds them; where to get the set stands in datasets/README.md"
    raise DatasetError(path, "folder", f"no {FOLDER} with PNGImages and SIRST/BBox in it", fix)


def count_densesirst(root: str | PathLike) -> tuple[list[Count], list[Fault]]:
    """Count files by folder, and images and targets by split.

    Returns:
        The counts, and what is wrong with the annotations.
    """
    root = Path(root)
    counts = [Count(folder, _count_files(root / folder, ending), IMAGES, needed) for folder, ending, needed in FILES]
    layout = LAYOUTS["densesirst"]
    named: dict[str, list[str]] = {}
    for split in SPLITS:
        path = root / layout.split.format(split=split)
        named[split] = read_split(path)[0] if path.is_file() else []
    names = list(dict.fromkeys(name for listed in named.values() for name in listed))
    scan = scan_voc(root, layout=layout, names=names)
    dicts, faults = scan.dicts, scan.faults
    targets = {sample["image_id"]: len(sample["annotations"]) for sample in dicts}
    for split, (images, boxes) in SPLITS.items():
        needed = split.endswith("_v2")
        counts.append(Count(f"{split} images", len(named[split]), images, needed))
        counts.append(Count(f"{split} targets", sum(targets.get(name, 0) for name in named[split]), boxes, needed))
    return counts, faults


def require_complete(root: str | PathLike, counts: Sequence[Count], faults: Sequence[Fault]) -> None:
    """Refuse a set that training or evaluation would fail on, or give other figures with.

    Raises:
        DatasetError: names everything that differs.
    """
    wrong = [f"{count.what} {count.found} of {count.expected}" for count in counts if count.needed and not count.ok]
    wrong += [f"{fault.file}: {fault.problem}" for fault in faults[:5]]
    if wrong:
        fix = "download it again and unpack all of it; tools/check_dataset.py names every fault"
        raise DatasetError(root, "content", f"not the released set: {'; '.join(wrong)}", fix)


def place_densesirst(root: str | PathLike, datasets: str | PathLike, *, copy: bool = False) -> Path:
    """Link, or copy, the set to where the registered data sets look for it, and return that: ``SIRSTdevkit`` below.

    ``root`` is the folder of the set, ``datasets`` that of all sets, ``$DETECTRON2_DATASETS``.

    Raises:
        DatasetError: something else is there already.
    """
    root, target = Path(root).resolve(), Path(datasets).expanduser() / FOLDER
    if target.exists() and target.resolve() == root:
        return target
    if target.is_symlink() and not target.exists():
        target.unlink()  # a link whose goal is gone
    if target.exists():
        fix = "move it away, or set DETECTRON2_DATASETS to another folder"
        raise DatasetError(target, "folder", "something else is there already", fix)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        target.symlink_to(root, target_is_directory=True)
        return target
    with staged_folder(target) as folder:
        shutil.copytree(root, folder, dirs_exist_ok=True)
    return target


def _looks_like_it(folder: Path) -> bool:
    return (folder / "PNGImages").is_dir() and (folder / "SIRST/BBox").is_dir()


def _count_files(folder: Path, ending: str) -> int:
    if not folder.is_dir():
        return 0
    suffix = Path(ending).suffix or ending
    return sum(name.endswith(ending.removesuffix(suffix)) for name in FolderIndex(folder, (suffix,)).stems())
