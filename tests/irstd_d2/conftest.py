"""Fixtures of the tests of training and of conversion."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import toy_training as toy
from detection_sets import HEIGHT, WIDTH

from irstd_d2.equality import evaluation


@pytest.fixture
def toy_config(tmp_path):
    """Gives configurations of a training of the toy detector into ``tmp_path / name``; its sets are registered."""
    folder = tmp_path / "images"
    folder.mkdir()
    toy.register(folder)
    yield lambda name="run", **overrides: toy.toy_config(tmp_path / name, **overrides)
    toy.unregister()


@pytest.fixture(scope="session")
def voc_metric():
    """Boxes, detections and the numbers that the papers' implementation makes of them."""
    return json.loads((Path(evaluation.__file__).parent / evaluation.FILE).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def pixels(tmp_path_factory):
    """An image and a sky mask that records can share."""
    folder = tmp_path_factory.mktemp("pixels")
    cv2.imwrite(str(folder / "image.png"), np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH))
    sky = np.zeros((HEIGHT, WIDTH), np.uint8)
    sky[:20], sky[20] = 1, 255
    cv2.imwrite(str(folder / "sky.png"), sky)
    return folder
