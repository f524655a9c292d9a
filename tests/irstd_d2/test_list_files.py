"""One listing of users' folders: what systems leave behind is nowhere data."""

import cv2
import numpy as np
import pytest

from irstd_d2.data.convert import read_masks
from irstd_d2.data.layout import LAYOUTS, FolderIndex, list_splits
from irstd_d2.files import list_files
from irstd_d2.inference.inputs import find_sources

LEFTOVERS = ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "._train.txt", ".hidden.png", "thumbs.DB")


@pytest.fixture
def root(tmp_path):
    for folder in ("images", "masks", "ImageSets/Main", "images/__MACOSX", "images/.thumbnails"):
        (tmp_path / folder).mkdir(parents=True)
        for name in LEFTOVERS:
            (tmp_path / folder / name).write_bytes(b"\0\5\x16\7")
    for folder in ("images", "masks"):
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.zeros((8, 8), np.uint8))
    for name in ("images/__MACOSX/b.png", "images/.thumbnails/c.png", "images/__MACOSX/._a.png"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "train.txt").write_text("a\n")
    (tmp_path / "._train.txt").write_bytes(b"\0\5\x16\7")
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\n")
    return tmp_path


def test_listing(root):
    assert [path.name for path in list_files(root / "images")] == ["a.png"]
    assert [path.name for path in list_files(root, (".png",), recursive=True)] == ["a.png", "a.png"]
    assert list_files(root / "absent") == []
    assert list_files(root, (".png",)) == []


def test_every_reader_uses_it(root):
    assert FolderIndex(root / "images").stems() == ["a"]
    assert list_splits(root, LAYOUTS["voc"]) == ["train"]
    assert [record.name for record in read_masks(root).records] == ["a"]
    assert [source.name for source in find_sources([root / "images"])] == ["a"]
    assert [source.name for source in find_sources([root / "images/**/*"])] == ["a"]
