"""A set in the layout of DenseSIRST from any sparse set with sky masks. Source: BAFE-Net, section III-B.

Clusters of targets from a library are pasted into the sky of every image by the rules of BAG-CP. What image i becomes
depends on the seed, its name, its own files and the library alone, so neither the order nor the number of processes
matters, and a run that was killed goes on where it stopped: each file appears at once, and an image's boxes come last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from irstd_d2.data import read_sky_mask
from irstd_d2.data.check import Collection, collect
from irstd_d2.data.faults import refuse_or_skip
from irstd_d2.data.image_io import check_size, read_raw, to_float_image
from irstd_d2.data.layout import VocLayout, get_layout
from irstd_d2.data.layout_writer import densesirst_files, split_lines
from irstd_d2.data.voc import CLASS_NAMES
from irstd_d2.data.voc_xml import VocObject, VocRecord
from irstd_d2.errors import ConfigError, DatasetError
from irstd_d2.files import write_atomically
from irstd_d2.manifest import claim_folder
from irstd_d2.parallel import for_each

from .bag_cp import BAGCopyPaste, PasteRule, PasteTransform
from .target_library import TargetLibrary

logger = logging.getLogger(__name__)

FOLDER = "SIRSTdevkit"
MANIFEST = "generated.json"
GENERATOR_VERSION = 1


@dataclass(frozen=True)
class GeneratorConfig:
    """How a set is made.

    Attributes:
        seed: of all random choices.
        rule: what is pasted where.
        fill: all targets are resized to exactly 5x5 pixels, where otherwise small ones stay as they are.
        gain: factor on the brightness of the library's targets.
    """

    seed: int = 0
    rule: PasteRule = field(default_factory=PasteRule)
    fill: bool = False
    gain: float = 1.0

    def __post_init__(self):
        if not 0 < self.gain <= 10:
            raise ConfigError(f"a gain of {self.gain}; give a factor above 0, at most 10")


# The text of section III-B, and what the released files show where they differ from it, measured in
# benchmarks/results/densesirst_statistics.md: most areas hold 5 to 8 targets; targets were resized to 5x5 pixels; their
# rim below the threshold was painted too. The gain is fitted: the files' targets are darker than Eq. 1 makes them.
RECIPES = {
    "paper": GeneratorConfig(),
    "fitted": GeneratorConfig(rule=PasteRule(targets=(5, 8), halo=True), fill=True, gain=0.6),
}


def read_sparse_set(
    root: str | PathLike,
    *,
    layout: str | VocLayout | None = None,
    splits: Sequence[str] | None = None,
    sky_masks: str | PathLike | None = None,
    skip_bad: bool = False,
) -> Collection:
    """Read the annotations of a folder in a VOC layout and make sure that every image has a sky mask.

    Args:
        root, layout, splits: see :func:`irstd_d2.data.check.collect`.
        sky_masks: folder with ``NAME_pixels0.png`` or ``NAME.png``; ``None`` takes those of the layout.
        skip_bad: leave faulty images, and images without a sky mask, out.

    Raises:
        DatasetError: there is nothing to read, or something is faulty and ``skip_bad`` is off.
    """
    root = Path(root)
    layout = get_layout(layout, root)
    if sky_masks is not None:
        folder = Path(sky_masks).absolute()
        if not folder.is_dir():
            raise DatasetError(folder, "folder", "no such folder", "give the folder of the sky masks")
        layout = replace(layout, sky_masks=(f"{folder}/{{name}}_pixels0.png", f"{folder}/{{name}}.png"))
    collection = collect(root, layout=layout, splits=splits)
    refuse_or_skip(list(collection.faults), skip_bad, str(root))
    missing = [sample["image_id"] for sample in collection.dicts if "sem_seg_file_name" not in sample]
    if missing and not skip_bad:
        problem = f"{len(missing)} of {len(collection.dicts)} images have none, {missing[0]} first"
        fix = "give their folder (--sky-masks), or leave these images out (--skip-bad)"
        raise DatasetError(root, "sky masks", problem, fix)
    dicts = [sample for sample in collection.dicts if "sem_seg_file_name" in sample]
    if not dicts:
        raise DatasetError(root, "images", "not one that can be used", "check the folder with tools/check_dataset.py")
    names = {sample["image_id"] for sample in dicts}
    kept = {split: [name for name in listed if name in names] for split, listed in collection.splits.items()}
    return replace(collection, dicts=dicts, splits=kept)


def generate_densesirst(
    source: Collection,
    output: str | PathLike,
    config: GeneratorConfig | None = None,
    *,
    library: TargetLibrary | None = None,
    overwrite: bool = False,
    jobs: int = 1,
    progress: bool = True,
) -> Path:
    """Write a set in DenseSIRST's layout, and return its folder, ``output/SIRSTdevkit``.

    ``SIRSTdevkit/{PNGImages,SIRST/{BBox,BinaryMask,PaletteMask,Point_label},SkySeg/{BinaryMask,PaletteMask},Splits}``.
    Images of 8 and 16 bits keep their depth, deeper ones and floats get 16 bits; alpha channels are dropped. Existing
    targets stay exactly as they are. An image without sky, or without a free place, is written as it is.

    Args:
        source: from :func:`read_sparse_set`.
        output: the folder that gets ``SIRSTdevkit``.
        config: how it is made; ``None`` = ``GeneratorConfig()``.
        library: the targets that are pasted; ``None`` takes all of the source, as the paper does. ``fill`` is not
            applied to a library that is given.
        overwrite: replace a set that was made with other parameters.
        jobs: processes.
        progress: show a progress bar with the time that is left.

    Raises:
        DatasetError: the folder holds something else, or a file of the source is faulty.
    """
    config = config or GeneratorConfig()
    if jobs < 1:
        raise ConfigError(f"{jobs} processes; give 1 or more")
    if library is None:
        if not any(sample["annotations"] for sample in source.dicts):
            raise DatasetError(source.title, "objects", "not one target to paste", "give a set with targets")
        library = TargetLibrary.from_dicts(source.dicts, fill=config.fill, progress=progress)
    library = library.scaled(config.gain)
    folder = Path(output) / FOLDER
    wanted = {"generator_version": GENERATOR_VERSION, "config": _parameters(config, library, source)}
    claim_folder(folder, MANIFEST, wanted, overwrite=overwrite, kind="generated set")
    missing = [sample for sample in source.dicts if not _is_written(folder, sample["image_id"])]
    logger.info("%s: %d of %d images are there", folder, len(source.dicts) - len(missing), len(source.dicts))
    items = [(sample, source.target_mask(sample["image_id"])) for sample in missing]
    write = partial(_write_image, folder, config, library)
    for_each(write, items, workers=jobs, title=FOLDER, progress=progress)
    for split, names in official_splits(source).items():
        write_atomically(folder / "Splits" / f"{split}.txt", split_lines(names))
    return folder


def official_splits(source: Collection) -> dict[str, list[str]]:
    """Split files of the generated set: ``train`` and ``train_full`` become ``train_v2``, other names stay.

    A missing ``trainval_v2`` is put together from ``train_v2`` and ``val_v2``; a source without splits becomes
    ``trainval_v2``.
    """
    splits = {}
    for split, names in source.splits.items():
        base = split.removesuffix("_full")
        splits[f"{base}_v2" if base in ("train", "val", "trainval", "test") else split] = names
    if not splits:
        splits["trainval_v2"] = [sample["image_id"] for sample in source.dicts]
    if "trainval_v2" not in splits and {"train_v2", "val_v2"} <= splits.keys():
        splits["trainval_v2"] = [*splits["train_v2"], *splits["val_v2"]]
    return {split: names for split, names in splits.items() if names}


@dataclass(frozen=True)
class GeneratedImage:
    """One image with its clusters.

    Attributes:
        image: (H, W) or BGR (H, W, 3), 8 or 16 bits.
        boxes: (N, 4) x1 y1 x2 y2: first those of the source, then the pasted ones.
        target_mask: (H, W) bool.
        sky_mask: (H, W) uint8, 1 sky.
        pasted: number of pasted targets.
    """

    image: np.ndarray
    boxes: np.ndarray
    target_mask: np.ndarray
    sky_mask: np.ndarray
    pasted: int


def generate_image(
    sample: dict[str, Any], target_mask: Path | None, library: TargetLibrary, config: GeneratorConfig
) -> GeneratedImage:
    """Paste clusters into one image, of whose ``sample`` the ``sem_seg_file_name`` is known.

    ``target_mask`` is the file of the mask of the targets that are there already; ``None`` fills their boxes.

    Raises:
        DatasetError: a file cannot be read, or image and masks differ in size.
    """
    image = _read_pixels(sample["file_name"])
    shape = image.shape[:2]
    check_size(sample["file_name"], shape, (sample["height"], sample["width"]))
    sky = read_sky_mask(sample["sem_seg_file_name"])
    check_size(sample["sem_seg_file_name"], sky.shape, shape)
    boxes = np.array([item["bbox"] for item in sample["annotations"]], np.float64).reshape(-1, 4)
    mask = np.zeros(shape, bool)
    if target_mask is not None:
        known = read_sky_mask(target_mask) == 1
        check_size(target_mask, known.shape, shape)
        mask |= known
    else:
        for x1, y1, x2, y2 in boxes.tolist():
            mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = True
    with _seeded(config.seed, sample["image_id"]):
        transform = BAGCopyPaste(library, config.rule).get_transform(image, boxes, sky)
    if not isinstance(transform, PasteTransform):
        return GeneratedImage(image, boxes, mask, sky, 0)
    mask[transform.rows[transform.counted], transform.columns[transform.counted]] = True
    new = transform.pasted_boxes
    return GeneratedImage(transform.apply_image(image), np.concatenate([boxes, new]), mask, sky, len(new))


def _write_image(
    folder: Path, config: GeneratorConfig, library: TargetLibrary, item: tuple[dict[str, Any], Path | None]
) -> None:
    sample, target_mask = item
    made = generate_image(sample, target_mask, library, config)
    kinds = [(CLASS_NAMES[obj["category_id"]], bool(obj["iscrowd"])) for obj in sample["annotations"]]
    kinds += [(CLASS_NAMES[0], False)] * made.pasted
    objects = tuple(VocObject(*kind, tuple(box)) for kind, box in zip(kinds, made.boxes.tolist()))
    metadata = sample["metadata"]
    height, width = made.sky_mask.shape
    record = VocRecord(width, height, metadata["platform"], metadata["band"], objects)
    for path, data in densesirst_files(sample["image_id"], made.image, record, made.target_mask, made.sky_mask):
        write_atomically(folder / path, data)


def _is_written(folder: Path, name: str) -> bool:
    return (folder / f"SIRST/BBox/{name}.xml").exists() and (folder / f"PNGImages/{name}.png").exists()


def _parameters(config: GeneratorConfig, library: TargetLibrary, source: Collection) -> dict[str, Any]:
    """Everything that the set depends on, without paths and times, which differ between machines."""
    targets = hashlib.sha256(library.patches.tobytes() + library.sizes.astype("<i8").tobytes())
    images = hashlib.sha256()
    for sample in sorted(source.dicts, key=lambda sample: sample["image_id"]):
        sizes = [Path(sample[key]).stat().st_size for key in ("file_name", "sem_seg_file_name")]
        boxes = [item["bbox"] for item in sample["annotations"]]
        images.update(json.dumps([sample["image_id"], sizes, boxes, sample["metadata"]]).encode())
    return {
        **asdict(config),
        "library": f"{len(library)} targets, {targets.hexdigest()[:16]}",
        "source": f"{len(source.dicts)} images, {images.hexdigest()[:16]}",
    }


def _read_pixels(path: str) -> np.ndarray:
    """(H, W) or BGR (H, W, 3) of 8 or 16 bits."""
    raw = read_raw(path)
    if raw.dtype not in (np.uint8, np.uint16):
        raw = np.round(to_float_image(raw, path, format="BGR", high_bit_depth="full_range") * 257).astype(np.uint16)
    return np.ascontiguousarray(raw[:, :, :3] if raw.ndim == 3 else raw)


@contextmanager
def _seeded(seed: int, name: str) -> Iterator[None]:
    """Numpy's global generator in the state that belongs to one image, and as it was after that."""
    before = np.random.get_state()
    digest = hashlib.sha256(f"{seed}/{unicodedata.normalize('NFC', name)}".encode()).digest()
    np.random.seed(np.frombuffer(digest, "<u4"))
    try:
        yield
    finally:
        np.random.set_state(before)
