"""Registration in detectron2's catalogs; files are looked for when a set is loaded, not before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import ConfigError
from .coco import load_coco
from .faults import get_skip_bad
from .layout import VocLayout
from .voc import CLASS_NAMES, load_voc


@dataclass(frozen=True)
class VocSource:
    """Where a registered set comes from; fields as the arguments of :func:`load_voc`.

    A relative ``builtin_root`` is taken below :func:`datasets_root` at the time of loading. Of the split's images every
    ``step``-th is taken.
    """

    root: str | PathLike | None = None
    split: str | None = None
    layout: str | VocLayout | None = None
    class_names: Sequence[str] = CLASS_NAMES
    box_convention: str = "half_open"
    sidecar: str | PathLike | None = None
    builtin_root: str | None = None
    step: int = 1

    def resolve_root(self) -> Path:
        return datasets_root() / self.builtin_root if self.builtin_root else Path(self.root or ".")

    def load(self) -> list[dict[str, Any]]:
        dicts = load_voc(
            self.resolve_root(),
            self.split,
            layout=self.layout,
            class_names=self.class_names,
            box_convention=self.box_convention,
            sidecar=self.sidecar,
            skip_bad=get_skip_bad(),
        )
        return dicts[:: self.step]


@dataclass(frozen=True)
class CocoSource:
    """Where a registered set comes from; fields as the arguments of :func:`load_coco`."""

    json_file: str | PathLike
    image_root: str | PathLike
    class_names: Sequence[str] | None = None


def datasets_root() -> Path:
    """The folder of all built-in sets: ``$DETECTRON2_DATASETS``, else ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_voc_folder(
    name: str,
    root: str | PathLike,
    split: str | None = None,
    *,
    layout: str | VocLayout | None = None,
    class_names: Sequence[str] = CLASS_NAMES,
    box_convention: str = "half_open",
    sidecar: str | PathLike | None = None,
) -> None:
    """Register a folder of Pascal VOC files under ``name``; arguments as in :func:`load_voc`."""
    _register_voc(name, VocSource(root, split, layout, tuple(class_names), box_convention, sidecar))


def register_coco_folder(
    name: str, json_file: str | PathLike, image_root: str | PathLike, *, class_names: Sequence[str] | None = None
) -> None:
    """Register a COCO file under ``name``; arguments as in :func:`load_coco`.

    Without ``class_names`` the set's ``thing_classes`` are known only once it is loaded.
    """

    def load() -> list[dict[str, Any]]:
        dicts, names = load_coco(json_file, image_root, class_names=class_names, skip_bad=get_skip_bad())
        MetadataCatalog.get(name).set(thing_classes=names)
        return dicts

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        evaluator_type="coco", image_root=str(image_root), source=CocoSource(json_file, image_root, class_names)
    )
    if class_names is not None:
        MetadataCatalog.get(name).set(thing_classes=list(class_names))


def register_own_sets(entries: Iterable[Sequence[str]]) -> None:
    """Register the sets of ``cfg.DATASETS.OWN``; those that are registered in the same way stay as they are.

    Args:
        entries: ``(name, folder in a VOC layout, split)`` with "" for all images, or ``(name, COCO file, image
            folder)``.

    Raises:
        ConfigError: an entry has another form, or its name belongs to another set.
    """
    for entry in entries:
        if len(entry) != 3 or not all(isinstance(part, str) for part in entry) or not (entry[0] and entry[1]):
            raise ConfigError(f"DATASETS.OWN has {entry!r}; write (name, folder, split) or (name, COCO file, images)")
        name, path, third = entry
        coco = path.endswith(".json")
        source = CocoSource(path, third) if coco else VocSource(path, third or None)
        if name in DatasetCatalog.list():
            if MetadataCatalog.get(name).get("source") != source:
                raise ConfigError(f"DATASETS.OWN has {entry!r}, but {name!r} is another set; choose another name")
        elif coco:
            register_coco_folder(name, path, third)
        else:
            register_voc_folder(name, path, third or None)


def check_registered(source: str, names: Iterable[str]) -> None:
    """Refuse names that are not in detectron2's catalog, with those they may have meant.

    Args:
        source: of the names, such as ``DATASETS.TRAIN``.
        names: to look up.

    Raises:
        ConfigError: a name is not registered.
    """
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=5)
            hint = f"near are {', '.join(near)}" if near else "datasets/README.md lists those that are"
            raise ConfigError(f"{source} has {name!r}, which is not registered; {hint}; add your own to DATASETS.OWN")


def _register_voc(name: str, source: VocSource) -> None:
    DatasetCatalog.register(name, source.load)
    MetadataCatalog.get(name).set(
        thing_classes=list(source.class_names),
        evaluator_type="coco",
        box_convention=source.box_convention,
        source=source,
    )


def _register_builtin() -> None:
    """Register the sets below ``$DETECTRON2_DATASETS`` (datasets/README.md); ``*_paper`` with the published boxes."""
    splits = ("train", "val", "trainval", "test")
    sets = [(f"densesirst_{v}_{s}", "SIRSTdevkit", f"{s}_{v}", "densesirst") for v in ("v1", "v2") for s in splits]
    sets += [(f"sirstv2_{s}", "open-sirst-v2", f"{s}_full", "sirstv2") for s in splits]
    for name, folder, split, layout in sets:
        for suffix, convention in (("", "half_open"), ("_paper", "paper")):
            source = VocSource(split=split, layout=layout, box_convention=convention, builtin_root=folder)
            _register_voc(name + suffix, source)
    # Where a test of all 256 images takes longer than the training.
    quarter = VocSource(split="test_v2", layout="densesirst", builtin_root="SIRSTdevkit", step=4)
    _register_voc("densesirst_v2_test_quarter", quarter)
    two_splits = (
        ("wideirstd", "WideIRSTD-Full"),
        ("wideirstd_matched", "WideIRSTD-matched"),
        ("spaceir", "SpaceIR-sen2ships"),
        ("synthetic_omni", "synthetic_omni"),
    )
    for name, folder in two_splits:
        for split in ("train", "val"):
            _register_voc(f"{name}_{split}", VocSource(split=split, layout="wideirstd", builtin_root=folder))
    for name, folder in (("irstd1k", "IRSTD-1K"), ("nudtsirst", "NUDT-SIRST")):
        for split in splits:
            _register_voc(f"{name}_{split}", VocSource(split=split, layout="wideirstd", builtin_root=folder))
    for split in splits:
        source = VocSource(split=f"{split}_v2", layout="densesirst", builtin_root="synthetic_dense/SIRSTdevkit")
        _register_voc(f"synthetic_dense_{split}", source)


_register_builtin()
