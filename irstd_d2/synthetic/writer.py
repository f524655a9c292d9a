"""Writes synthetic sets to disk, in WideIRSTD's and in DenseSIRST's layout.

A set grows in place: image i depends on the configuration and on i only, so asking for more images adds to those that
are there. Every file appears at once or not at all, and an image's XML comes last, so a run that was killed goes on
where it stopped. The manifest ``synthetic.json`` in the layout's folder holds the configuration; a set is never mixed
from two of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path

from ..data.layout_writer import densesirst_files, split_lines, wideirstd_files
from ..data.voc_xml import VocObject, VocRecord
from ..errors import ConfigError
from ..files import write_atomically
from ..manifest import claim_folder
from ..parallel import for_each
from .scene import SceneConfig, SceneGenerator, dense_config

logger = logging.getLogger(__name__)

GENERATOR_VERSION = 2
MANIFEST = "synthetic.json"
CLASS_NAME = "Target"
# Scenes of a split start here, so that no image is in two of them.
SPLIT_START = {"train": 0, "val": 1 << 24, "test": 1 << 25}


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
    """Write a set in WideIRSTD's layout, with masks of targets (0, 255) and sky (0, 1); return ``root/VOC2007``.

    ``VOC2007/{PNGImages,Annotations,Masks,SkyMasks}`` and ``VOC2007/ImageSets/Main/{train,val}.txt``; the XML files
    hold ``<view>``, ``<band_type>`` and ``<size>``, and 0-based half-open boxes.

    Args:
        root: folder to write into; it is made if need be.
        config: of the scenes; ``None`` = ``SceneConfig()``.
        train, val: numbers of images.
        overwrite: replace a set that was written with another configuration.
        workers: processes that write at the same time.
        progress: show a progress bar.

    Raises:
        DatasetError: ``root`` holds a set of another configuration, or data that is not synthetic.
    """
    folder = Path(root) / "VOC2007"
    names = _write_images(folder, config or SceneConfig(), {"train": train, "val": val}, overwrite, workers, progress)
    for split in names:
        _write_list(folder / "ImageSets" / "Main" / f"{split}.txt", names[split])
    return folder


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
    """Write a set in DenseSIRST's layout; arguments, errors and result as of :func:`write_wideirstd`.

    ``SIRSTdevkit/{PNGImages,SIRST/{BBox,BinaryMask,PaletteMask,Point_label},SkySeg/{BinaryMask,PaletteMask},Splits}``
    with the splits ``{train,val,trainval,test}_v2.txt``. The XML files also hold ``<view>`` and ``<band_type>``.
    """
    folder = Path(root) / "SIRSTdevkit"
    counts = {"train": train, "val": val, "test": test}
    names = _write_images(folder, config or dense_config(), counts, overwrite, workers, progress)
    for split, members in (*names.items(), ("trainval", names["train"] + names["val"])):
        _write_list(folder / "Splits" / f"{split}_v2.txt", members)
    return folder


def _write_images(
    folder: Path, config: SceneConfig, counts: Mapping[str, int], overwrite: bool, workers: int, progress: bool
) -> dict[str, list[str]]:
    """Write the images that are missing; returns the names of all images by split."""
    if min(counts.values()) < 0 or sum(counts.values()) == 0:
        raise ConfigError(f"{dict(counts)}: numbers of images of 0 or more are needed, and one image at least")
    wanted = {"generator_version": GENERATOR_VERSION, "config": asdict(config)}
    claim_folder(folder, MANIFEST, wanted, overwrite=overwrite, kind="synthetic set")
    names = {split: [f"{split}_{i:06d}" for i in range(count)] for split, count in counts.items()}
    annotations = folder / ("Annotations" if folder.name == "VOC2007" else "SIRST/BBox")
    missing = [
        (SPLIT_START[split] + i, name)
        for split in names
        for i, name in enumerate(names[split])
        if not ((annotations / f"{name}.xml").exists() and (folder / "PNGImages" / f"{name}.png").exists())
    ]
    total = sum(counts.values())
    logger.info("%s: %d of %d images are there", folder, total - len(missing), total)
    for_each(partial(_write_image, folder, config), missing, workers=workers, title=folder.name, progress=progress)
    return names


def _write_image(folder: Path, config: SceneConfig, item: tuple[int, str]) -> None:
    index, name = item
    scene = _generator(config).scene(index)
    height, width = scene.image.shape
    objects = tuple(VocObject(CLASS_NAME, False, tuple(box)) for box in scene.boxes.tolist())
    record = VocRecord(width, height, str(scene.metadata["platform"]), str(scene.metadata["band"]), objects)
    files = wideirstd_files if folder.name == "VOC2007" else densesirst_files
    for path, data in files(name, scene.image, record, scene.target_mask, scene.sky_mask):
        write_atomically(folder / path, data, flush=False)


@lru_cache(maxsize=1)
def _generator(config: SceneConfig) -> SceneGenerator:
    return SceneGenerator(config)


def _write_list(path: Path, names: list[str]) -> None:
    if names:
        write_atomically(path, split_lines(names), flush=False)
