"""The context network alone learns which half of an image is sky."""

import re
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from programs import load_program

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_it_learns_and_says_how_well(tmp_path, monkeypatch, capsys):
    rng, records = np.random.default_rng(0), []
    for number in range(6):
        horizon = 20 + 8 * number
        image = rng.normal(90, 8, (64, 80))
        image[horizon:] += 60
        sky = np.zeros((64, 80), np.uint8)
        sky[:horizon] = 255
        image_file, sky_file = (str(tmp_path / f"{kind}{number}.png") for kind in ("image", "sky"))
        cv2.imwrite(image_file, image.clip(0, 255).astype(np.uint8))
        cv2.imwrite(sky_file, sky)
        records.append({"file_name": image_file, "sem_seg_file_name": sky_file})
    name = f"sky_context_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: records)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    program = load_program(BENCHMARKS / "sky_context.py")
    assert program.main(["--train", name, "--val", name, "--iterations", "40", "--rate", "1e-2"]) == 0
    rows = re.findall(r"^\| (\d+) \| \d+ \| ([\d.]+) / ([\d.]+) \|", capsys.readouterr().out, re.M)
    assert [row[0] for row in rows] == ["10", "20", "30", "40"]
    assert min(map(float, rows[-1][1:])) > 80
    DatasetCatalog.remove(name)
