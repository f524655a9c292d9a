"""Run an exported detector on image files. This file needs nothing else of the project: copy it beside the model.

    python runtime.py model.onnx image.png folder/*.png --platform Air --band LWIR

So it reads and resizes images, understands metadata and suppresses overlapping boxes by itself; tests compare all of
this with what the project does in training. Change both together.

It needs numpy, Pillow, and onnxruntime for an .onnx file or torch and torchvision for a TorchScript file; tifffile for
TIFF files, opencv-python-headless for PNG files of 16-bit colour. What a model expects (size, channel order, names of
classes, platforms and bands) is stored inside the file.

Letters in shapes: D detections, (h, w) size of an image file.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

FACTS_KEY = "irstd_d2.json"
_MISSING = frozenset({"", "unknown", "none", "null", "na", "nan", "unspecified", "other"})
_PERCENTILES = (0.1, 99.9)
_PART, _SMALL_PART = 1 / 4, 1 / 8  # of the range of a type; see irstd_d2/data/pixel_values.py
_STRIP = 256  # rows
_SMALLEST = float(np.finfo(np.float32).tiny)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Detections:
    """What a model found in one image.

    Attributes:
        boxes: (D, 4) float32, x1 y1 x2 y2 in pixels of the file.
        scores: (D,) float32, descending.
        classes: (D,) int64, positions in the model's list of class names.
        sky: (h', w') float32, probability of sky in the size that the network saw; ``None`` for models without it.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    sky: np.ndarray | None = None


class ExportedDetector:
    """A detector from a file that ``tools/export_model.py`` wrote.

    Args:
        path: the file; ``.onnx`` is run by onnxruntime, anything else is taken for TorchScript.
        providers: of onnxruntime, e.g. ``["CUDAExecutionProvider"]``; by default its own choice. For TorchScript the
            first entry is torch's device, e.g. ``["cuda"]``.
        threads: of one call on a CPU; 0 leaves it to the library.

    Raises:
        ValueError: the file was not written by this project.
    """

    def __init__(self, path: str | PathLike, providers: Sequence[str] = (), threads: int = 0):
        self.path = Path(path)
        engine = _OnnxEngine if self.path.suffix == ".onnx" else _TorchEngine
        self._engine = engine(self.path, list(providers), threads)
        if self._engine.facts is None:
            raise ValueError(f"{path}: holds no {FACTS_KEY}; export it with tools/export_model.py")
        self.facts: dict[str, Any] = json.loads(self._engine.facts)
        self.class_names: list[str] = self.facts["classes"]
        # The ids that the training set's files give them; files of version 0.3 hold none.
        self.category_ids: list[int | str] = self.facts.get("category_ids", list(range(len(self.class_names))))

    def __call__(
        self,
        images: Sequence[str | PathLike | np.ndarray],
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[Detections]:
        """Detect in a batch of images, which may differ in size.

        Args:
            images: files, or arrays (h, w, 3) in 0..255 in the model's channel order.
            metadata: of all images or one per image: ``platform`` and ``band`` by name, ``width`` and ``height`` of the
                original image if it is not the file's. What is missing is unknown. Models without metadata ignore it.
        """
        if not len(images):
            return []
        arrays, resized, inputs = self._prepare(images, metadata)
        outputs = dict(zip(self.facts["outputs"], self._engine.run(inputs)))
        return [
            self._result({name: value[i] for name, value in outputs.items()}, small.shape[:2], array.shape[:2])
            for i, (small, array) in enumerate(zip(resized, arrays))
        ]

    def inputs(
        self,
        images: Sequence[str | PathLike | np.ndarray],
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
    ) -> dict[str, np.ndarray]:
        """Return what the file is given for these images, by name; for other run times and for calibration."""
        return self._prepare(images, metadata)[2]

    def _prepare(
        self,
        images: Sequence[str | PathLike | np.ndarray],
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None,
    ) -> tuple[list[np.ndarray], list[np.ndarray], dict[str, np.ndarray]]:
        per_image = [metadata] * len(images) if metadata is None or isinstance(metadata, Mapping) else list(metadata)
        if len(per_image) != len(images):
            raise ValueError(f"{len(images)} images came with metadata of {len(per_image)}; give one entry per image")
        arrays = [image if isinstance(image, np.ndarray) else self.read(image) for image in images]
        resized = [resize(array, self._network_size(array.shape[:2])) for array in arrays]
        inputs = self._batch(resized)
        if self.facts["metadata"]:
            inputs.update(self._encode(per_image, [array.shape[:2] for array in arrays]))
        return arrays, resized, inputs

    def read(self, path: str | PathLike) -> np.ndarray:
        """Read an image file as the model was trained on: (h, w, 3) float32 in 0..255."""
        facts = self.facts["preprocessing"]
        image = read_image(path, facts["high_bit_depth"])
        return image[:, :, ::-1] if facts["channel_order"] == "BGR" else image

    def _network_size(self, size: tuple[int, int]) -> tuple[int, int]:
        facts = self.facts["preprocessing"]["resize"]
        if facts["mode"] == "fixed":
            return tuple(facts["size"])
        if facts["mode"] == "scale":
            height, width = (max(1, round(side * facts["factor"])) for side in size)
            return height, width
        return shortest_edge_size(size, facts["shortest"], facts["longest"])

    def _batch(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Pad images at the right and below to one size."""
        sizes = np.array([image.shape[:2] for image in images])
        divisor, fixed = self.facts["preprocessing"]["divisor"], self.facts["fixed_shape"]
        height, width = (-(-sizes.max(0) // divisor) * divisor).tolist()
        count = len(images)
        if fixed:
            count, (height, width) = fixed["images"], fixed["size"]
            if len(images) > count or (sizes > (height, width)).any():
                raise ValueError(
                    f"{self.path}: takes {count} images of up to {width}x{height} pixels, not {len(images)} of "
                    f"{sizes[:, 1].max()}x{sizes[:, 0].max()}; export with --dynamic"
                )
        batch = np.zeros((count, 3, height, width), np.float32)
        for target, image in zip(batch, images):
            target[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
        padded = np.ones((count, 2), np.float32)
        padded[: len(images)] = sizes
        return {"image": batch, "image_size": padded}

    def _encode(
        self, metadata: Sequence[Mapping[str, Any] | None], sizes: Sequence[tuple[int, int]]
    ) -> dict[str, np.ndarray]:
        names, count = self.facts["metadata"], len(sizes)
        if self.facts["fixed_shape"]:
            count = self.facts["fixed_shape"]["images"]
        encoded: dict[str, np.ndarray] = {
            "platform": np.full(count, -1, np.int64),
            "band": np.full(count, -1, np.int64),
            "original_size": np.zeros((count, 2), np.float32),
        }
        for i, (given, (height, width)) in enumerate(zip(metadata, sizes)):
            values = {"width": width, "height": height, **(given or {})}
            for field in ("platform", "band"):
                encoded[field][i] = name_index(values.get(field), names[f"{field}s"], names["aliases"], field)
            if values["width"] and values["height"]:
                encoded["original_size"][i] = values["width"], values["height"]
        return encoded

    def _result(
        self, outputs: Mapping[str, np.ndarray], network: tuple[int, int], original: tuple[int, int]
    ) -> Detections:
        """Suppress where the file does not, and scale to the file's pixels."""
        boxes, scores, classes = (outputs[name].copy() for name in ("boxes", "scores", "classes"))
        present = scores >= 0
        boxes, scores, classes = boxes[present].astype(np.float32), scores[present].astype(np.float32), classes[present]
        if not self.facts["nms"]["inside"]:
            keep = suppress(boxes, scores, classes, self.facts["nms"]["threshold"])
            keep = keep[: self.facts["nms"]["max_detections"]]
            boxes, scores, classes = boxes[keep], scores[keep], classes[keep]
        (height, width), (old_height, old_width) = original, network
        boxes *= np.array([width / old_width, height / old_height] * 2, np.float32)
        boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
        solid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)
        sky = outputs["sky"][0, :old_height, :old_width].astype(np.float32) if "sky" in outputs else None
        return Detections(boxes[solid], scores[solid], classes[solid].astype(np.int64), sky)


class _OnnxEngine:
    def __init__(self, path: Path, providers: list[str], threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            fspath(path), options, providers=providers or onnxruntime.get_available_providers()
        )
        self.facts = self._session.get_modelmeta().custom_metadata_map.get(FACTS_KEY)

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self._session.run(None, dict(inputs))


class _TorchEngine:
    def __init__(self, path: Path, providers: list[str], threads: int):
        import torch
        import torchvision  # noqa: F401  its operators are part of the file

        self._torch, self._device = torch, providers[0] if providers else "cpu"
        if threads:
            torch.set_num_threads(threads)
        files = {FACTS_KEY: ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self._module = torch.jit.load(fspath(path), map_location=self._device, _extra_files=files)
        facts = files[FACTS_KEY]
        self.facts = (facts.decode() if isinstance(facts, bytes) else facts) or None

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        with self._torch.inference_mode():
            outputs = self._module(*(self._torch.from_numpy(value).to(self._device) for value in inputs.values()))
        return [output.cpu().numpy() for output in outputs]


def read_image(path: str | PathLike, high_bit_depth: str = "full_range") -> np.ndarray:
    """Read an image as (h, w, 3) float32 RGB in 0..255, as ``irstd_d2.data.read_image`` does.

    Args:
        path: PNG, TIFF, BMP or JPEG; of a TIFF with several pages the first.
        high_bit_depth: how values of more than 8 bits become 0..255: "full_range" maps the whole range of the type and
            takes floats as 0..1; "minmax" the lowest and highest value of the image; "percentile" its 0.1 % and 99.9 %
            quantiles; "auto" the lowest and highest value without single outliers of images that use a small part of
            their range, else it is "full_range".

    Raises:
        ValueError: for NaN, floats beyond 0..1 with "full_range", and what is neither gray nor RGB.
        ImportError: for a TIFF without the package tifffile, 16-bit colour without OpenCV.
        OSError: for a file that cannot be read.
    """
    with Path(path).open("rb") as file:
        head = file.read(26)
    array = None
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        array = _read_deep_tiff(path)
    elif head[:4] == b"\x89PNG" and len(head) == 26 and head[24] == 16 and head[25] != 0:
        array = _read_deep_colour(path)
    if array is None:
        # Of a path, Pillow maps an uncompressed TIFF by its turned size: other pixels.
        with Path(path).open("rb") as data, Image.open(data, formats=("PNG", "TIFF", "BMP", "JPEG")) as file:
            image = ImageOps.exif_transpose(file) if file.format == "JPEG" else file
            deep = image.mode[0] == "I"
            if not deep and image.mode not in ("L", "RGB"):
                image = image.convert("L" if image.mode == "1" else "RGB")
            array = np.array(image)
            array = array.astype(np.uint16) if deep else array  # some versions of Pillow widen it
    if array.dtype != np.uint8:
        array = _to_byte_range(array, high_bit_depth, path)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    return np.ascontiguousarray(array, dtype=np.float32)


def _read_deep_tiff(path: str | PathLike) -> np.ndarray | None:
    """Gray (h, w) or RGB (h, w, 3) of more than 8 bits or with a sign, 0 black; ``None`` for a TIFF of plain bytes."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        pages = sum(not further.is_reduced for further in file.pages if isinstance(further, tifffile.TiffPage))
        if pages > 1:
            logger.warning("%s holds %d pages: the first is read, %d are left out", path, pages, pages - 1)
        if page.bitspersample <= 8 and page.sampleformat == 1:
            return None
        pixels = page.asarray()
        if pixels.shape != page.shape:  # without data it decodes to nothing
            raise ValueError(f"{path}: a TIFF without pixels")
        pixels = np.moveaxis(pixels, 0, 2) if page.axes == "SYX" else pixels
    colours = int(page.photometric)
    if page.axes not in ("YX", "YXS", "SYX") or pixels.dtype.kind not in "uif" or colours > 2:
        raise ValueError(f"{path}: {pixels.dtype} with axes {page.axes}; store it as gray or RGB")
    if pixels.dtype.kind == "u" and page.bitspersample < 8 * pixels.dtype.itemsize:
        scale = np.iinfo(pixels.dtype).max / (2**page.bitspersample - 1)
        pixels = np.rint(pixels.astype(np.float64) * scale).astype(pixels.dtype)
    orientation = page.tags.valueof("Orientation", 1)
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    pixels = pixels[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]
    if colours == 2:
        return pixels[:, :, :3]
    gray = pixels if pixels.ndim == 2 else pixels[:, :, 0]
    if colours == 0:  # 0 is white
        return 1 - gray if gray.dtype.kind == "f" else ~gray
    return gray


def _read_deep_colour(path: str | PathLike) -> np.ndarray:
    """RGB (h, w, 3) of a PNG of 16 bits per channel, which Pillow would cut to 8."""
    import cv2

    image = cv2.imread(fspath(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise OSError(f"{path}: not a PNG that OpenCV can read")
    return image[:, :, 2::-1]


def _to_byte_range(image: np.ndarray, mode: str, path: str | PathLike) -> np.ndarray:
    is_float = image.dtype.kind == "f"
    if is_float and not np.isfinite(image).all():
        raise ValueError(f"{path}: NaN or infinite values; replace them before saving the image")
    lowest, highest = (0.0, 1.0) if is_float else (float(np.iinfo(image.dtype).min), float(np.iinfo(image.dtype).max))
    if mode == "auto":
        low, high = _steady_range(image)
        outside = image.min() < lowest or image.max() > highest
        spread = float(image.max()) - float(image.min())
        is_part = spread <= _PART * (highest - lowest) and high - low < _SMALL_PART * (highest - lowest)
        if not outside and not is_part:
            low, high = lowest, highest
    elif mode == "full_range":
        if image.min() < lowest or image.max() > highest:
            raise ValueError(f"{path}: floats from {image.min():g} to {image.max():g}, expected 0 to 1")
        low, high = lowest, highest
    elif mode == "minmax":
        low, high = float(image.min()), float(image.max())
    else:
        low, high = (float(value) for value in np.percentile(image, _PERCENTILES))
    scale = 255.0 / (high - low) if high - low > _SMALLEST else 0.0
    return np.clip((image.astype(np.float64) - low) * scale, 0.0, 255.0).astype(np.float32)


def _steady_range(image: np.ndarray) -> tuple[float, float]:
    """Lowest and highest value after a 3x3 median, without the rim."""
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return float(image.min()), float(image.max())
    values = image if image.dtype in (np.uint8, np.uint16) else image.astype(np.float32)
    limits = []
    for top in range(0, height - 2, _STRIP):
        strip = values[top : top + _STRIP + 2]
        rows = len(strip) - 2
        near = [strip[y : y + rows, x : x + width - 2] for y in range(3) for x in range(3)]
        median = np.partition(np.stack(near), 4, axis=0)[4]
        limits += [float(median.min()), float(median.max())]
    low, high = min(limits), max(limits)
    return (low, high) if low < high else (float(image.min()), float(image.max()))


def shortest_edge_size(size: tuple[int, int], shortest: int, longest: int) -> tuple[int, int]:
    """Scale (height, width) so that the shorter side becomes ``shortest`` while the longer stays below ``longest``."""
    height, width = size
    scale = shortest / min(height, width)
    new_height, new_width = height * scale, width * scale
    if height < width:
        new_height = shortest
    else:
        new_width = shortest
    if max(new_height, new_width) > longest:
        scale = longest / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (h, w, 3) bilinearly at pixel centres, without anti-aliasing, to (height, width)."""
    image = image.astype(np.float32, copy=False)
    if image.shape[:2] == tuple(size):
        return image
    for axis, length in enumerate(size):
        old = image.shape[axis]
        position = np.clip((np.arange(length) + 0.5) * (old / length) - 0.5, 0, old - 1)
        low = np.minimum(position.astype(np.int64), max(old - 2, 0))
        weight = (position - low).astype(np.float32)
        weight = weight[:, None, None] if axis == 0 else weight[None, :, None]
        start, end = image.take(low, axis), image.take(np.minimum(low + 1, old - 1), axis)
        image = start + (end - start) * weight
    return image


def name_index(name: object, names: Sequence[str], aliases: Mapping[str, str], field: str) -> int:
    """Position of a platform's or band's name; -1 if it is unknown, with a warning if the model does not know it."""
    if name is None or _key(str(name)) in _MISSING:
        return -1
    keys = [_key(known) for known in names]
    key = _key(str(name))
    if key not in keys:
        key = {_key(alias): _key(target) for alias, target in aliases.items()}.get(key, key)
    if key not in keys:
        logger.warning("%s %r is not among %s and is treated as unknown", field, name, list(names))
        return -1
    return keys.index(key)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def suppress(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float) -> np.ndarray:
    """Non-maximum suppression within each class, of boxes (T, 4), scores (T,) and classes (T,).

    ``threshold`` is the IoU above which the weaker box goes. Returns the positions of what stays, best first.
    """
    order = np.argsort(-scores, kind="stable")
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (high - low).clip(min=0).prod(1)
        doubled = shared > threshold * (area[best] + area[rest] - shared)
        order = rest[~(doubled & (classes[rest] == classes[best]))]
    return np.array(kept, dtype=np.int64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: print one JSON object per image."""
    parser = argparse.ArgumentParser(
        description="Run an exported detector on images; prints one JSON object per image."
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("images", nargs="*", type=Path)
    parser.add_argument("--facts", action="store_true", help="print what the file says about itself, and stop")
    parser.add_argument("--threshold", type=float, default=0.3, help="detections below this score are left out")
    parser.add_argument("--platform", help="unknown by default")
    parser.add_argument("--band", help="unknown by default")
    args = parser.parse_args(arguments)
    if not (args.images or args.facts):
        parser.error("give images, or --facts")
    try:
        detector = ExportedDetector(args.model)
    except Exception as error:  # each run time has errors of its own
        return _fail(args.model, error, "install it" if isinstance(error, ImportError) else "give an exported file")
    if args.facts:
        sys.stdout.write(json.dumps(detector.facts, indent=1) + "\n")
        return 0
    code = 0
    for path in args.images:
        try:
            found = detector([path], {"platform": args.platform, "band": args.band})[0]
        except (OSError, ValueError, ImportError) as error:
            code = _fail(path, error, "give an image that can be read" if isinstance(error, OSError) else "")
            continue
        shown = found.scores >= args.threshold
        row = {
            "file_name": str(path),
            "boxes": found.boxes[shown].round(3).tolist(),
            "scores": found.scores[shown].round(5).tolist(),
            "classes": [detector.class_names[i] for i in found.classes[shown]],
            "category_ids": [detector.category_ids[i] for i in found.classes[shown]],
        }
        sys.stdout.write(json.dumps(row) + "\n")
    return code


def _fail(path: Path, error: Exception, fix: str) -> int:
    sys.stdout.flush()
    text = f"error: {path}: {' '.join(str(error).split())}"
    sys.stderr.write(f"{text}. Fix: {fix}\n" if fix else f"{text}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
