#!/usr/bin/env python3
"""Look for inputs that break the readers of data files, guided by the code that they reach.

    .venv/bin/pip install -c constraints.txt atheris
    tests/fuzz/fuzz_readers.py --seconds 3600 --output output/fuzz      # all readers, an equal share of the time each
    tests/fuzz/fuzz_readers.py --seconds 60 coco split                  # some of them
    tests/fuzz/fuzz_readers.py --replay FILE... coco                    # inputs again, without atheris

An input is a finding when a reader raises anything but its documented DatasetError, returns what it must not, takes
more than --timeout seconds of processor time, which other work on the machine does not lengthen, or ten times that on
the clock, or takes the process past --memory MiB. Findings stay in OUTPUT/TARGET/findings, the inputs that reached new
code in OUTPUT/TARGET/corpus, where the next run goes on. Ends with code 1 on findings.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import tostring

import numpy as np
from defusedxml.ElementTree import fromstring
from PIL import Image

from irstd_d2.data import image_io
from irstd_d2.data.coco import is_contained, scan_coco
from irstd_d2.data.sidecar import MAX_SIDE, read_column, read_sidecar
from irstd_d2.data.splits import read_split
from irstd_d2.data.voc_xml import find_box_faults, is_plain_name, parse_voc_xml
from irstd_d2.errors import DatasetError

# Images of the full permitted size are sound and slow; a fuzzer would try nothing else.
MAX_FUZZED_PIXELS = 1 << 20
# An input that does not end is stopped by the clock, so much later than the limit on processor time.
CLOCK_FACTOR = 10
# Starts this script with the readers, and Pillow below them, reporting which code an input reaches.
_INSTRUMENTED = """
import atheris, runpy, sys
with atheris.instrument_imports(include=["irstd_d2.data", "defusedxml", "PIL"], enable_loader_override=False):
    import irstd_d2.data
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
_STATISTICS = ("number_of_executed_units", "peak_rss_mb")
_WORDS = {
    "xml": "annotation filename size width height depth object name bndbox xmin ymin xmax ymax difficult view "
    "band_type <!DOCTYPE <!ENTITY <![CDATA[ ]]> <?xml encoding='utf-16' &#0; &#xD800; 1e308 -1 nan <annotation> "
    "</annotation>",
    "sidecar": "id name platform view band band_type width height scene file_name",
    "split": ".png .tif ../ .jpg",
    "coco": '"images" "annotations" "categories" "id" "file_name" "width" "height" "bbox" "image_id" "category_id" '
    '"iscrowd" "platform" "band" "sem_seg_file_name" "original_width" "original_height" "name" NaN Infinity 1e999 true '
    "\\\\ud800 [[[[[[[[ null",
    "image": "IHDR PLTE IDAT IEND acTL fcTL fdAT iCCP zTXt eXIf JFIF Exif BM",
}
_WORDS["png"] = _WORDS["image"]
_WORDS["sky_mask"] = _WORDS["image"]


def fuzz_xml(path: Path) -> None:
    record, faults = parse_voc_xml(path)
    assert (record is None) == bool(faults)
    if record is None:
        return
    assert 0 < record.width <= MAX_SIDE
    assert 0 < record.height <= MAX_SIDE
    assert all(math.isfinite(value) for obj in record.objects for value in obj.box)
    for fault in find_box_faults(record, path, {"target": 0}):
        str(fault).encode()


def fuzz_sidecar(path: Path) -> None:
    entries, faults = read_sidecar(path)
    for key, entry in entries.items():
        key.encode()
        assert key
        assert all(side is None or 0 < side <= MAX_SIDE for side in (entry.width, entry.height))
    for fault in faults:
        str(fault).encode()
    read_column(path, "scene")


def fuzz_split(path: Path) -> None:
    names, faults = read_split(path)
    assert len(set(names)) == len(names)
    assert all(is_plain_name(name) for name in names)
    for text in (*names, *map(str, faults)):
        text.encode()


def fuzz_coco(path: Path) -> None:
    root = path.parent
    scan = scan_coco(path, root)
    dicts, names, faults = scan.dicts, scan.classes.names, scan.faults
    for text in (*names, *map(str, faults), *(sample["file_name"] for sample in dicts)):
        text.encode()
    for sample in dicts:
        assert is_contained(os.path.relpath(sample["file_name"], root))
        assert 0 < sample["width"] <= MAX_SIDE
        for annotation in sample["annotations"]:
            x1, y1, x2, y2 = annotation["bbox"]
            assert 0 <= x1 <= x2 <= sample["width"]
            assert 0 <= y1 <= y2 <= sample["height"]
    json.dumps(dicts, allow_nan=False)


def fuzz_image(path: Path) -> None:
    image = image_io.read_image(path, "RGB", "minmax")
    assert image.dtype == np.float32
    assert image.shape[2] == 3
    assert np.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 255
    assert image_io.read_image_size(path) == image.shape[:2]


def fuzz_png(path: Path) -> None:
    """As :func:`fuzz_image`, with the checksums repaired, behind which decoders hide."""
    path.write_bytes(with_checksums(path.read_bytes()))
    fuzz_image(path)


def fuzz_sky_mask(path: Path) -> None:
    mask = image_io.read_sky_mask(path)
    assert mask.ndim == 2
    assert np.isin(mask, (image_io.SKY, image_io.OTHER, image_io.IGNORE)).all()


TARGETS: dict[str, Callable[[Path], None]] = {
    name.removeprefix("fuzz_"): function for name, function in dict(globals()).items() if name.startswith("fuzz_")
}


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks, as far as they are complete, have the checksums that belong to them."""
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        end = position + 8 + int.from_bytes(data[position : position + 4], "big")
        if end + 4 > len(data):
            break
        parts += [data[position:end], struct.pack(">I", zlib.crc32(data[position + 4 : end]))]
        position = end + 4
    return b"".join([*parts, data[position:]])


def run_one(target: str, data: bytes, folder: Path, timeout: float = math.inf) -> None:
    """Give one input to a reader.

    Args:
        target: a name of ``TARGETS``.
        data: content of the file that is read.
        folder: where the file is written.
        timeout: seconds of processor time that it may take.

    Raises:
        Exception: whatever the reader should not have raised; AssertionError if it took too long.
    """
    path = folder / "input"
    path.write_bytes(data)
    start = time.process_time()
    try:
        TARGETS[target](path)
    except DatasetError as error:
        str(error).encode()
    seconds = time.process_time() - start
    assert seconds <= timeout, f"{seconds:.1f} s of processor time, at most {timeout}"


def seeds(target: str) -> list[bytes]:
    """Small sound files to start from."""
    if target in ("image", "png", "sky_mask"):
        return _image_seeds(("PNG",) if target == "png" else ("PNG", "TIFF", "BMP", "JPEG"))
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3.5</xmax><ymax>4e0</ymax></bndbox>"
    size = "<size><width>32</width><height>24</height><depth>1</depth></size>"
    tags = "<view>Air</view><band_type>LWIR</band_type>"
    thing = f"<object><name>Target</name><difficult>1</difficult>{box}</object>"
    image = {"id": 1, "file_name": "a/b.png", "width": 32, "height": 24, "platform": "Air", "sem_seg_file_name": "s"}
    target_entry = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3.5, 4], "iscrowd": 0}
    coco = {"images": [image], "annotations": [target_entry], "categories": [{"id": 1, "name": "Target"}]}
    return {
        "xml": [f"<annotation><filename>a.png</filename>{size}{tags}{thing * n}</annotation>".encode() for n in (0, 2)],
        "sidecar": [b"id,view,band,width,height,scene\na,Air,LWIR,32,24,s\n", b'a\tAir\t\t32\t24\r\nb\t"x"\n'],
        "split": [b"a\nb.png\n", "\ufeffé\r\n\r\na".encode()],
        "coco": [json.dumps(coco).encode(), json.dumps(coco).encode("utf-16")],
    }[target]


def _image_seeds(formats: tuple[str, ...]) -> list[bytes]:
    gray = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    pictures = [Image.fromarray(gray), Image.fromarray(np.dstack([gray] * 3)), Image.fromarray(gray > 100)]
    pictures += [pictures[0].convert("P"), pictures[0].convert("RGBA"), Image.fromarray(gray.astype(np.uint16) * 257)]
    found = []
    for picture in pictures:
        for kind in formats:
            buffer = BytesIO()
            try:
                picture.save(buffer, kind, **({"progressive": True} if picture.mode == "RGB" else {}))
            except OSError:  # the format has no such pixels
                continue
            found.append(buffer.getvalue())
    return found


# Values that readers of numbers, names and structures have stumbled over before.
_ODD: tuple[Any, ...] = (
    *(0, -1, 1, 2**31, 2**53 + 1, 10**400, -(10**400), 0.5, 1e-320, 1e308, -1e308, math.nan, math.inf, True, None),
    *(
        "",
        " ",
        "a",
        "../a",
        "/a",
        "..",
        "a\\b",
        "C:a",
        "\0",
        "\ud800",
        "e\u0301",
        "\u202e",
        "1",
        "-1",
        "1e999",
        "nan",
        "１",
        "1_0",
    ),
    *([], {}, [1, 2, 3, 4], [0, 0, 1e308, 1e308], [[[[[[[[[]]]]]]]]], "a" * 300, [1] * 300),
)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Change up to three values of a JSON text, so that it stays one.

    Raises:
        ValueError: it is none.
    """
    content = [json.loads(data)]
    for _ in range(rng.randint(1, 3)):
        places = list(_places(content))
        holder, key = rng.choice(places)
        action = rng.randrange(4)
        if action == 0:
            holder[key] = rng.choice(_ODD)
        elif action == 1:
            other, other_key = rng.choice(places)
            holder[key] = copy.deepcopy(other[other_key])
        elif action == 2 and holder is not content:
            del holder[key]
        elif isinstance(holder[key], list) and holder[key]:
            holder[key].append(copy.deepcopy(rng.choice(holder[key])))
        elif isinstance(holder[key], dict) and holder[key]:
            holder[rng.choice(("id", "width", "name")) if isinstance(holder, dict) else key] = rng.choice(_ODD)
    return json.dumps(content[0]).encode(rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-32-be")))


def _places(holder: list | dict) -> Iterator[tuple[Any, Any]]:
    for key, value in list(enumerate(holder)) if isinstance(holder, list) else list(holder.items()):
        yield holder, key
        if isinstance(value, list | dict):
            yield from _places(value)


def mutate_xml(data: bytes, rng: random.Random) -> bytes:
    """Change up to three elements of an XML text, so that it stays one.

    Raises:
        ValueError, SyntaxError: it is none.
    """
    root = fromstring(data)
    for _ in range(rng.randint(1, 3)):
        elements = list(root.iter())
        element, other = rng.choice(elements), rng.choice(elements)
        action = rng.randrange(5)
        if action == 0:
            element.text = "".join(c for c in str(rng.choice(_ODD)) if c.isprintable())
        elif action == 1:
            element.tag = other.tag
        elif action == 2 and len(elements) < 500:
            element.append(copy.deepcopy(other))
        elif action == 3 and len(element):
            element.remove(rng.choice(list(element)))
        else:
            element.attrib[other.tag] = "1"
    return tostring(root, encoding=rng.choice(("utf-8", "utf-8", "utf-16", "iso-8859-1")))


MUTATORS = {"coco": mutate_json, "xml": mutate_xml}


def fuzz(target: str, timeout: float, arguments: list[str]) -> None:
    """Run the fuzzer on one reader in this process, which it ends; the readers were imported under instrumentation."""
    import atheris

    image_io.MAX_PIXELS = MAX_FUZZED_PIXELS
    folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)  # noqa: S108
    options: dict[str, Any] = {}
    if target in MUTATORS:
        options["custom_mutator"] = partial(_mutate, MUTATORS[target], _words(target))
    atheris.Setup([sys.argv[0], *arguments], lambda data: run_one(target, data, Path(folder.name), timeout), **options)
    atheris.Fuzz()


def _mutate(
    structured: Callable[[bytes, random.Random], bytes], words: list[bytes], data: bytes, size: int, seed: int
) -> bytes:
    """Change the structure of an input in three of four cases, else its bytes."""
    rng = random.Random(seed)
    if rng.random() < 0.75:
        try:
            changed = structured(data, rng)
        except (ValueError, SyntaxError, LookupError, RecursionError):
            changed = b""
        if 0 < len(changed) <= size:
            return changed
    return mutate_bytes(data, rng, words)[:size]


def mutate_bytes(data: bytes, rng: random.Random, words: Sequence[bytes] = ()) -> bytes:
    """Change up to four places of any input: other bytes, bytes or words more, bytes fewer, bytes again."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(changed))
        end = min(len(changed), start + rng.choice((1, 1, 2, 4, 16, 64)))
        new = rng.choice(
            (b"", rng.randbytes(end - start), bytes(changed[start:end]) * 2, rng.choice([b"\xff\xff", *words]))
        )
        changed[start:end] = new
    return bytes(changed)


def _words(target: str) -> list[bytes]:
    return [word.encode() for word in _WORDS[target].split()]


def campaign(target: str, seconds: int, output: Path, timeout: int, memory: int) -> dict[str, int]:
    """Fuzz one reader in a process of its own, again after every finding, until the time is up.

    Returns:
        inputs tried, findings, inputs kept, peak memory in MiB, seconds.
    """
    corpus, findings = (output / target / name for name in ("corpus", "findings"))
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(target)):
        (corpus / f"seed_{number}").write_bytes(data)
    words = output / target / "words"
    quoted = (word.decode().replace("\\", "\\\\").replace('"', '\\"') for word in _words(target))
    words.write_text("".join(f'"{word}"\n' for word in quoted))
    options = [f"-timeout={CLOCK_FACTOR * timeout}", f"-rss_limit_mb={memory}", f"-artifact_prefix={findings}/"]
    options += [f"-dict={words}", "-print_final_stats=1", "-max_len=8192", "-verbosity=1", str(corpus)]
    total = {"inputs": 0, "seconds": 0, "memory": 0}
    found = _findings(findings)
    while total["seconds"] < seconds:
        left = f"-max_total_time={seconds - total['seconds']}"
        command = [sys.executable, "-c", _INSTRUMENTED, __file__, target, "--timeout", str(timeout)]
        command += ["--libfuzzer", left, *options]
        log, start = output / target / "log", time.monotonic()
        with log.open("wb") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        text = log.read_text(errors="replace")
        if code and _findings(findings) == found:
            raise RuntimeError(f"the fuzzer ended with code {code} without a finding; see {log}")
        found = _findings(findings)
        tried, peak = (re.findall(rf"stat::{name}:\s+(\d+)", text) for name in _STATISTICS)
        total["inputs"] += int(tried[-1]) if tried else 0
        total["memory"] = max(total["memory"], int(peak[-1]) if peak else 0)
        total["seconds"] += max(1, round(time.monotonic() - start))
    return {**total, "findings": len(found), "corpus": len(list(corpus.iterdir()))}


def _findings(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith("slow-unit")}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=int, default=60, help="for all of them together (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/fuzz"))
    parser.add_argument("--timeout", type=int, default=10, help="processor seconds for one input (%(default)s)")
    parser.add_argument("--memory", type=int, default=2048, help="MiB that the process may take (%(default)s)")
    parser.add_argument("--replay", type=Path, nargs="+", metavar="FILE", help="give these files to TARGET")
    parser.add_argument("--libfuzzer", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    targets = args.targets or list(TARGETS)
    unknown = sorted(set(targets) - set(TARGETS))
    if unknown:
        parser.error(f"no reader named {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if args.libfuzzer is not None:
        fuzz(targets[0], args.timeout, args.libfuzzer)
    if args.replay:
        with tempfile.TemporaryDirectory() as folder:
            for file in args.replay:
                for target in targets:
                    run_one(target, file.read_bytes(), Path(folder), args.timeout)
        return 0
    print("| reader | inputs | seconds | findings | inputs kept | peak memory, MiB |\n|---|---|---|---|---|---|")
    found = 0
    for target in targets:
        row = campaign(target, max(1, args.seconds // len(targets)), args.output, args.timeout, args.memory)
        cells = (row[key] for key in ("inputs", "seconds", "findings", "corpus", "memory"))
        print(f"| {target} | {' | '.join(f'{cell:,}' for cell in cells)} |", flush=True)
        found += row["findings"]
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
