"""Registration in detectron2's catalogs; files are looked for when a set is loaded, not before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import ConfigError, DatasetError
from .classes import ClassTable, fold, parse_aliases, require_same_names
from .coco import read_coco_classes, scan_coco
from .faults import Scan, get_skip_bad
from .layout import LAYOUTS, VocLayout, get_layout
from .voc import CLASS_NAMES, read_voc_classes, scan_voc

# The classes to take (None: all that the files name), and other names for them.
ClassChoice = tuple[Sequence[str] | None, Mapping[str, str]]
# How to get the built-in sets, by folder.
_ORIGINS = {
    "SIRSTdevkit": "download it from https://github.com/GrokCV/DenseSIRST and run datasets/prepare_densesirst.py",
    "open-sirst-v2": "clone https://github.com/YimianDai/open-sirst-v2",
    "WideIRSTD-Full": "download it from https://github.com/XinyiYing/WideIRSTD-Dataset",
    "WideIRSTD-matched": "make it with datasets/prepare_wideirstd_matched.py (datasets/README.md)",
    "SpaceIR-sen2ships": "make it with datasets/prepare_spaceir.py (datasets/README.md)",
    "synthetic_omni": "make it with tools/make_synthetic.py",
    "IRSTD-1K": "download it from https://github.com/RuiZhang97/ISNet and convert it (datasets/README.md)",
    "NUDT-SIRST": "download it from https://github.com/YeRen123455/Infrared-Small-Target-Detection and convert it "
    "(datasets/README.md)",
    "NUAA-SIRST": "download it from https://github.com/YimianDai/sirst and convert it (datasets/README.md)",
    "synthetic_dense/SIRSTdevkit": "make it with tools/make_synthetic.py --layout densesirst",
}
_OWN_OPTIONS = {"voc": {"layout", "class_names", "box_convention", "sidecar"}, "coco": {"class_names"}}


@dataclass(frozen=True)
class VocSource:
    """Where a registered set comes from; fields as the arguments of :func:`load_voc`.

    A relative ``builtin_root`` is taken below :func:`datasets_root` at the time of loading. Of the split's images every
    ``step``-th is taken. ``chosen`` is what :func:`align_classes` chose, in place of ``class_names``. ``origin`` says
    how to get a built-in set.
    """

    root: str | PathLike | None = None
    split: str | None = None
    layout: str | VocLayout | None = None
    class_names: Sequence[str] | None = None
    box_convention: str | None = None
    sidecar: str | PathLike | None = None
    builtin_root: str | None = None
    step: int = 1
    chosen: ClassChoice | None = field(default=None, compare=False)
    origin: str = ""

    def resolve_root(self) -> Path:
        return datasets_root() / self.builtin_root if self.builtin_root else Path(self.root or ".")

    def at_hand(self) -> bool:
        return self.class_names is not None or self.resolve_root().is_dir()

    def present_root(self) -> Path:
        """The folder, whose parts exist.

        Raises:
            DatasetError: a built-in set is not there, or only a part of it; with the place to get it from.
        """
        root = self.resolve_root()
        if self.builtin_root:
            layout = get_layout(self.layout, root)
            for folder in (root, root / layout.images, root / layout.annotations):
                if not folder.is_dir():
                    problem = f"not there, and a part of the built-in set {self.builtin_root!r}"
                    fix = f"{self.origin}, or set DETECTRON2_DATASETS to the folder that holds {self.builtin_root!r}"
                    raise DatasetError(folder, "folder", problem, fix)
        return root

    def scan(self) -> Scan:
        names, aliases = self.chosen or (self.class_names, {})
        scan = scan_voc(
            self.present_root(),
            self.split,
            layout=self.layout,
            class_names=names,
            class_aliases=aliases,
            box_convention=self.box_convention,
            sidecar=self.sidecar,
        )
        return replace(scan, dicts=scan.dicts[:: self.step])

    def classes(self) -> ClassTable:
        names, aliases = self.chosen or (self.class_names, {})
        if names is not None:
            return ClassTable.from_names(names)
        return read_voc_classes(self.present_root(), layout=self.layout, class_aliases=aliases)


@dataclass(frozen=True)
class CocoSource:
    """Where a registered set comes from; fields as the arguments of :func:`load_coco`, ``chosen`` as above."""

    json_file: str | PathLike
    image_root: str | PathLike
    class_names: Sequence[str] | None = None
    chosen: ClassChoice | None = field(default=None, compare=False)

    def at_hand(self) -> bool:
        return Path(self.json_file).is_file()

    def scan(self) -> Scan:
        names, aliases = self.chosen or (self.class_names, {})
        return scan_coco(self.json_file, self.image_root, class_names=names, class_aliases=aliases)

    def classes(self) -> ClassTable:
        names, aliases = self.chosen or (self.class_names, {})
        return read_coco_classes(self.json_file, class_names=names, class_aliases=aliases)


def datasets_root() -> Path:
    """The folder of all built-in sets: ``$DETECTRON2_DATASETS``, else ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_voc_folder(
    name: str,
    root: str | PathLike,
    split: str | None = None,
    *,
    layout: str | VocLayout | None = None,
    class_names: Sequence[str] | None = None,
    box_convention: str | None = None,
    sidecar: str | PathLike | None = None,
) -> None:
    """Register a folder of Pascal VOC files under ``name``; arguments as in :func:`load_voc`.

    Without ``class_names`` the set's ``thing_classes`` are known only once it is loaded (:func:`class_table`).
    """
    names = None if class_names is None else tuple(class_names)
    _register(name, VocSource(root, split, layout, names, box_convention, sidecar))


def register_coco_folder(
    name: str, json_file: str | PathLike, image_root: str | PathLike, *, class_names: Sequence[str] | None = None
) -> None:
    """Register a COCO file under ``name``; arguments as in :func:`load_coco`.

    Without ``class_names`` the set's ``thing_classes`` are known only once it is loaded (:func:`class_table`).
    """
    _register(name, CocoSource(json_file, image_root, None if class_names is None else tuple(class_names)))


def register_own_sets(entries: Iterable[Sequence[Any]]) -> None:
    """Register the sets of ``cfg.DATASETS.OWN``; those that are registered in the same way stay as they are.

    Args:
        entries: ``(name, folder in a VOC layout, split)`` with "" for all images, or ``(name, COCO file, image
            folder)``; a fourth element has further arguments of :func:`register_voc_folder` or
            :func:`register_coco_folder`, e.g. ``{"class_names": ("drone", "bird")}``.

    Raises:
        ConfigError: an entry has another form, or its name belongs to another set.
    """
    for entry in entries:
        if len(entry) not in (3, 4) or not all(isinstance(part, str) for part in entry[:3]) or not all(entry[:2]):
            raise ConfigError(f"DATASETS.OWN has {entry!r}; write (name, folder, split) or (name, COCO file, images)")
        name, path, third = entry[:3]
        coco = path.endswith(".json")
        known = sorted(_OWN_OPTIONS["coco" if coco else "voc"])
        options = entry[3] if len(entry) == 4 else {}
        if not isinstance(options, dict) or not options.keys() <= set(known):
            raise ConfigError(f"DATASETS.OWN has {entry!r}; its fourth element is {{...}} with {', '.join(known)}")
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        if not isinstance(options.get("class_names", ()), tuple):
            raise ConfigError(f"DATASETS.OWN has {entry!r}; write 'class_names': ('drone', 'bird')")
        source: VocSource | CocoSource = (
            CocoSource(path, third, **options) if coco else VocSource(path, third or None, **options)
        )
        if name not in DatasetCatalog.list():
            _register(name, source)
        elif MetadataCatalog.get(name).get("source") != source:
            raise ConfigError(f"DATASETS.OWN has {entry!r}, but {name!r} is another set; choose another name")


def class_table(name: str) -> ClassTable:
    """The classes of a registered set; its annotations are read where they are not known yet.

    Raises:
        ConfigError: the set was registered without class names by other code.
        DatasetError: its annotations cannot be read.
    """
    metadata = MetadataCatalog.get(name)
    source = metadata.get("source")
    if source is not None and metadata.get("thing_dataset_id_to_contiguous_id") is None:
        source.classes().to_metadata(name)
    elif source is None and metadata.get("thing_classes") is None:
        DatasetCatalog.get(name)  # some sets know their classes only once they are loaded
    table = ClassTable.from_metadata(name)
    if table is None:
        raise ConfigError(f"the set {name!r} has no class names; set MetadataCatalog.get({name!r}).thing_classes")
    return table


def align_classes(
    data_sets: Sequence[str],
    names: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
    *,
    of: str = "DATASETS.CLASSES",
    subset: bool = False,
) -> ClassTable:
    """Give registered sets the same class indices, by name, before any of them is loaded.

    Args:
        names: the classes in the order of their indices; ``None`` takes those of the first set.
        aliases: from names in the files to names that count.
        of: what ``names`` come from, for messages.
        subset: whether a set may have other classes, which are then left out and counted, and lack some. Otherwise
            every set must have the same classes, in any order and under any ids.

    Returns:
        The classes, with the ids of the first set.

    Raises:
        ConfigError: a set has other classes.
    """
    for name in data_sets:
        _choose(name, None, aliases or {})
    if names is None:
        names, of = class_table(data_sets[0]).names, f"the set {data_sets[0]!r}"
    chosen, folded = tuple(names), {fold(name) for name in names}
    for target in (aliases or {}).values():
        if fold(target) not in folded:
            raise ConfigError(f"DATASETS.CLASS_ALIASES leads to {target!r}, but the classes are {', '.join(chosen)}")
    for name in data_sets:
        own = class_table(name).names
        if not subset or folded.isdisjoint(map(fold, own)):
            require_same_names((of, chosen), (f"the set {name!r}", own))
        if own != chosen:
            _choose(name, chosen, aliases or {})
    return class_table(data_sets[0])


def prepare_classes(cfg: CfgNode, *, train: bool, trained: ClassTable | None = None) -> ClassTable:
    """The classes of a run, with the ids of the first set that is used; all its sets get their indices.

    The order is that of ``trained``, the classes of a checkpoint whose outputs are to be used, else of
    ``DATASETS.CLASSES``, else of the first training set. Without ``train`` the training sets only give the order, where
    they are at hand.

    Raises:
        ConfigError: checkpoint, configuration and sets contradict each other.
    """
    names: tuple[str, ...] | None = tuple(cfg.DATASETS.CLASSES) or None
    of = "DATASETS.CLASSES"
    if trained is not None:
        if names:
            require_same_names(("the checkpoint", trained.names), (of, names))
        names, of = trained.names, "the checkpoint"
    elif not names and not train:
        configured = configured_classes(cfg)
        names, of = None if configured is None else configured.names, "the training set"
    sets = dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] if train else cfg.DATASETS.TEST)
    aliases = parse_aliases(cfg.DATASETS.CLASS_ALIASES)
    return align_classes(list(sets), names, aliases, of=of, subset=bool(cfg.DATASETS.CLASSES))


def configured_classes(cfg: CfgNode) -> ClassTable | None:
    """The classes that a configuration names: ``DATASETS.CLASSES`` or those of its first set that is at hand.

    For models without classes in their checkpoint; ``None`` if no set is at hand.
    """
    if cfg.DATASETS.CLASSES:
        return ClassTable.from_names(cfg.DATASETS.CLASSES)
    registered = DatasetCatalog.list()
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        source = MetadataCatalog.get(name).get("source") if name in registered else None
        if ClassTable.from_metadata(name) is not None or (source is not None and source.at_hand()):
            return class_table(name)
    return None


def check_registered(source: str, names: Iterable[str]) -> None:
    """Refuse names that are not in detectron2's catalog, with those they may have meant.

    ``source`` is what has the names, such as ``DATASETS.TRAIN``.

    Raises:
        ConfigError: a name is not registered.
    """
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=5)
            hint = f"near are {', '.join(near)}" if near else "datasets/README.md lists those that are"
            raise ConfigError(f"{source} has {name!r}, which is not registered; {hint}; add your own to DATASETS.OWN")


def _register(name: str, source: VocSource | CocoSource) -> None:
    def load() -> list[dict[str, Any]]:
        scan = source.scan()
        dicts = scan.accept(name, skip_bad=get_skip_bad())
        scan.classes.to_metadata(name)
        return dicts

    DatasetCatalog.register(name, load)
    metadata = MetadataCatalog.get(name).set(evaluator_type="coco", source=source)
    names = source.chosen[0] if source.chosen else source.class_names
    if names is not None:
        metadata.set(thing_classes=list(names))
    if isinstance(source, VocSource):
        layout = LAYOUTS.get(source.layout, source.layout)  # type: ignore[arg-type]
        # None where the folder decides on its layout.
        metadata.set(box_convention=source.box_convention or getattr(layout, "box_convention", None))
        if names is not None:
            ClassTable.from_names(names).to_metadata(name)
    else:
        metadata.set(image_root=str(source.image_root))


def _choose(name: str, names: Sequence[str] | None, aliases: Mapping[str, str]) -> None:
    """Register a set again with other classes; those of ``None`` are its own."""
    source = MetadataCatalog.get(name).get("source")
    if source is None:
        own = class_table(name).names
        if names is not None and own != tuple(names):
            require_same_names(("the model", tuple(names)), (f"the set {name!r}", own), same_order=True)
        return
    own_names = source.class_names if names is None else tuple(names)
    chosen = (own_names, dict(aliases)) if names is not None or aliases else None
    if source.chosen != chosen:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        _register(name, replace(source, chosen=chosen))


def _register_builtin() -> None:
    """Register the sets below ``$DETECTRON2_DATASETS`` (datasets/README.md); ``*_paper`` with the published boxes."""
    two = ("train", "val")
    four = (*two, "trainval", "test")
    # Name, folder, layout, splits, what follows the split in the name of its file.
    sets = (
        ("densesirst_v1", "SIRSTdevkit", "densesirst", four, "_v1"),
        ("densesirst_v2", "SIRSTdevkit", "densesirst", four, "_v2"),
        ("sirstv2", "open-sirst-v2", "sirstv2", four, "_full"),
        ("synthetic_dense", "synthetic_dense/SIRSTdevkit", "densesirst", four, "_v2"),
        ("irstd1k", "IRSTD-1K", "wideirstd", four, ""),
        ("nudtsirst", "NUDT-SIRST", "wideirstd", four, ""),
        ("nuaasirst", "NUAA-SIRST", "wideirstd", four, ""),
        ("wideirstd", "WideIRSTD-Full", "wideirstd", two, ""),
        ("wideirstd_matched", "WideIRSTD-matched", "wideirstd", two, ""),
        ("spaceir", "SpaceIR-sen2ships", "wideirstd", two, ""),
        ("synthetic_omni", "synthetic_omni", "wideirstd", two, ""),
    )
    for name, folder, layout, splits, ending in sets:
        for split in splits:
            source = VocSource(None, split + ending, layout, CLASS_NAMES, builtin_root=folder, origin=_ORIGINS[folder])
            if name.startswith(("densesirst", "sirstv2")):
                _register(f"{name}_{split}_paper", replace(source, box_convention="paper"))
            _register(f"{name}_{split}", source)
            if (name, split) == ("densesirst_v2", "test"):  # where all 256 images take longer than the training
                _register("densesirst_v2_test_quarter", replace(source, step=4))


_register_builtin()
