"""Writes synthetic sets to disk, in WideIRSTD's and in DenseSIRST's layout.

A set grows in place: image i depends on the configuration and on i only, so asking for more images adds to those that
are there. Every file appears at once or not at all, and an image's XML comes last, so a run that was killed goes on
where it stopped. The manifest ``synthetic.json`` in the layout's folder holds the configuration; a set is never mixed
from two of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path

from ..data.layout_writer import densesirst_files, split_lines, wideirstd_files
from ..data.voc_xml import VocObject, VocRecord
from ..errors import ConfigError
from ..manifest import claim_folder
from ..parallel import for_each
from .config import SceneConfig, dense_config
from .scene import Scene, SceneGenerator

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 1
MANIFEST = "synthetic.json"
CLASS_NAME = "Target"
# Scenes of a split start here, so that no image is in two of them.
SPLIT_START = {"train": 0, "val": 1 << 24, "test": 1 << 25}

FilesOf = Callable[..., Iterator[tuple[str, bytes]]]


def write_wideirstd(
    root: str | PathLike,
    config: SceneConfig | None = None,
    train: int = 300,
    val: int = 100,
    *,
    overwrite: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> Path:
    """Write a set in WideIRSTD's layout, with masks of targets (0, 255) and sky (0, 1) beside it.

    ``VOC2007/{PNGImages,Annotations,Masks,SkyMasks}`` and ``VOC2007/ImageSets/Main/{train,val}.txt``; the XML files
    hold ``<view>``, ``<band_type>`` and ``<size>``, and 0-based half-open boxes.

    Args:
        root: folder to write into; it is made if need be.
        config: of the scenes; ``None`` = ``SceneConfig()``.
        train: number of training images.
        val: number of validation images.
        overwrite: replace a set that was written with another configuration.
        workers: processes that write at the same time.
        progress: show a progress bar.

    Returns:
        The folder ``root/VOC2007``.

    Raises:
        DatasetError: ``root`` holds a set of another configuration, or data that is not synthetic.
    """
    return _write_set(
        root, "VOC2007", config or SceneConfig(), {"train": train, "val": val}, overwrite, workers, progress
    )


def write_densesirst(
    root: str | PathLike,
    config: SceneConfig | None = None,
    train: int = 300,
    val: int = 100,
    test: int = 0,
    *,
    overwrite: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> Path:
    """Write a set in DenseSIRST's layout.

    ``SIRSTdevkit/{PNGImages,SIRST/{BBox,BinaryMask,PaletteMask,Point_label},SkySeg/{BinaryMask,PaletteMask},Splits}``
    with the splits ``{train,val,trainval,test}_v2.txt``. The XML files also hold ``<view>`` and ``<band_type>``.

    Args:
        root: folder to write into; it is made if need be.
        config: of the scenes; ``None`` = ``dense_config()``.
        train: number of training images.
        val: number of validation images.
        test: number of test images.
        overwrite: see :func:`write_wideirstd`.
        workers: see :func:`write_wideirstd`.
        progress: see :func:`write_wideirstd`.

    Returns:
        The folder ``root/SIRSTdevkit``.

    Raises:
        DatasetError: see :func:`write_wideirstd`.
    """
    counts = {"train": train, "val": val, "test": test}
    return _write_set(root, "SIRSTdevkit", config or dense_config(), counts, overwrite, workers, progress)


def _write_set(
    root: str | PathLike,
    layout: str,
    config: SceneConfig,
    counts: Mapping[str, int],
    overwrite: bool,
    workers: int,
    progress: bool,
) -> Path:
    if min(counts.values()) < 0 or sum(counts.values()) == 0:
        raise ConfigError(f"{dict(counts)}: numbers of images of 0 or more are needed, and one image at least")
    folder = Path(root) / layout
    _claim(folder, config, overwrite)
    names = {split: [f"{split}_{i:06d}" for i in range(count)] for split, count in counts.items()}
    missing = [
        (SPLIT_START[split] + i, name)
        for split in names
        for i, name in enumerate(names[split])
        if not (_annotation(folder, name).exists() and _image(folder, name).exists())
    ]
    total = sum(counts.values())
    logger.info("%s: %d of %d images are there", folder, total - len(missing), total)
    write = partial(_write_one, folder, config)
    for_each(write, missing, workers=workers, title=folder.name, progress=progress)
    _SPLIT_WRITERS[layout](folder, names)
    return folder


def _claim(folder: Path, config: SceneConfig, overwrite: bool) -> None:
    wanted = {"generator_version": GENERATOR_VERSION, "config": asdict(config)}
    claim_folder(folder, MANIFEST, wanted, overwrite=overwrite, kind="synthetic set", write=_write_bytes)


def _write_one(folder: Path, config: SceneConfig, item: tuple[int, str]) -> None:
    index, name = item
    _write_scene(_FILES[folder.name], folder, name, _generator(config).scene(index))


@lru_cache(maxsize=1)
def _generator(config: SceneConfig) -> SceneGenerator:
    return SceneGenerator(config)


def _annotation(folder: Path, name: str) -> Path:
    return folder / ("Annotations" if folder.name == "VOC2007" else "SIRST/BBox") / f"{name}.xml"


def _image(folder: Path, name: str) -> Path:
    return folder / "PNGImages" / f"{name}.png"


def _write_scene(files_of: FilesOf, folder: Path, name: str, scene: Scene) -> None:
    for path, data in files_of(name, scene.image, _record(scene), scene.target_mask, scene.sky_mask):
        _write_bytes(folder / path, data)


def _record(scene: Scene) -> VocRecord:
    height, width = scene.image.shape
    objects = tuple(VocObject(CLASS_NAME, False, tuple(box)) for box in scene.boxes.tolist())
    return VocRecord(width, height, str(scene.metadata["platform"]), str(scene.metadata["band"]), objects)


def _write_wideirstd_splits(folder: Path, names: Mapping[str, list[str]]) -> None:
    for split in names:
        _write_list(folder / "ImageSets" / "Main" / f"{split}.txt", names[split])


def _write_densesirst_splits(folder: Path, names: Mapping[str, list[str]]) -> None:
    for split in names:
        _write_list(folder / "Splits" / f"{split}_v2.txt", names[split])
    _write_list(folder / "Splits" / "trainval_v2.txt", names["train"] + names["val"])


_FILES: dict[str, FilesOf] = {"VOC2007": wideirstd_files, "SIRSTdevkit": densesirst_files}
_SPLIT_WRITERS: dict[str, Callable[[Path, Mapping[str, list[str]]], None]] = {
    "VOC2007": _write_wideirstd_splits,
    "SIRSTdevkit": _write_densesirst_splits,
}


def _write_list(path: Path, names: list[str]) -> None:
    if names:
        _write_bytes(path, split_lines(names))


def _write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there in full or not at all, even when the process is killed."""
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path.write_bytes(data)
        partial_path.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial_path.unlink()
        raise OSError(f"{path} could not be written: {error}. Free space and start again; it goes on there") from error


__all__ = ["CLASS_NAME", "MANIFEST", "write_densesirst", "write_wideirstd"]
