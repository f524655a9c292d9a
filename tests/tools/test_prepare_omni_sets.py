"""Real omni-domain sets from their public sources, on sources of the same form."""

import json

import cv2
import numpy as np
import pytest
from programs import load_program

from irstd_d2.data import load_voc


def run_lengths(mask):
    """Uncompressed RLE of COCO: column by column, starting with a count of zeros."""
    flat = np.concatenate([[0], mask.T.reshape(-1), [0]])
    edges = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    return {"counts": counts if counts[-1] else counts[:-1], "size": list(mask.shape)}


def ship(size, x, y, width, height):
    mask = np.zeros(size, np.uint8)
    mask[y : y + height, x : x + width] = 1
    return mask


class TestSpaceIR:
    @pytest.fixture
    def tool(self, repo_root, monkeypatch):
        tool = load_program(repo_root / "datasets" / "prepare_spaceir.py")
        sites = {
            "here": tool.Site("train", (0, 20, 40), (0, 30)),
            "there": tool.Site("val", (0, 24), (0, 24), ("B11",)),
        }
        monkeypatch.setattr(tool, "SITES", sites)
        return tool

    @pytest.fixture
    def source(self, tmp_path):
        for port, size, bands in (("here", (30, 40), ("B08", "B11")), ("there", (24, 24), ("B11",))):
            folder = tmp_path / "sen2ships" / port
            folder.mkdir(parents=True)
            for i, band in enumerate(bands):
                cv2.imwrite(
                    str(folder / f"2023_Sentinel-2_L2A_{band}_(Raw).tiff"), np.full(size, 257 * 40 + 130 * i, np.uint16)
                )
            # Two ships side by side touch, and remain two.
            ships = [ship(size, 3, 4, 4, 9), ship(size, 7, 4, 5, 9)]
            entries = [{"id": i, "segmentation": run_lengths(mask)} for i, mask in enumerate(ships)]
            (folder / f"{port}_coco.json").write_text(json.dumps({"annotations": entries}))
        return tmp_path / "sen2ships"

    def test_tiles_of_both_bands_with_the_box_of_every_ship(self, tool, source, tmp_path, capsys):
        assert tool.main([str(source), "--output", str(tmp_path / "out")]) == 0
        assert "train 4 images with 4 targets, val 1 images with 2 targets" in capsys.readouterr().out
        train = load_voc(tmp_path / "out", "train", layout="wideirstd")
        assert [(s["image_id"], s["metadata"]["platform"], s["metadata"]["band"]) for s in train] == [
            ("S0001", "Space", "NIR"),
            ("S0002", "Space", "NIR"),
            ("S0003", "Space", "SWIR"),
            ("S0004", "Space", "SWIR"),
        ]
        assert [obj["bbox"] for obj in train[0]["annotations"]] == [[3, 4, 7, 13], [7, 4, 12, 13]]
        assert train[1]["annotations"] == []
        gray = [cv2.imread(s["file_name"], cv2.IMREAD_UNCHANGED)[0, 0] for s in train]
        assert gray == [40, 40, 41, 41]  # 40 * 257 + 130 is nearer to 41 * 257
        mask = cv2.imread(str(tmp_path / "out/VOC2007/Masks/S0001.png"), cv2.IMREAD_UNCHANGED)
        assert (mask == 255 * ship((30, 20), 3, 4, 9, 9)).all()

    def test_a_line_through_a_ship_is_refused(self, tool, source, tmp_path, capsys):
        entry = {"id": 1, "segmentation": run_lengths(ship((30, 40), 18, 2, 5, 3))}
        (source / "here/here_coco.json").write_text(json.dumps({"annotations": [entry]}))
        assert tool.main([str(source), "--output", str(tmp_path / "out")]) == 1
        assert "cuts a ship" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_port_that_is_missing_is_named(self, tool, source, tmp_path, capsys):
        (source / "there/there_coco.json").unlink()
        assert tool.main([str(source), "--output", str(tmp_path / "out")]) == 1
        assert "there: **/there_coco.json: 0 files" in capsys.readouterr().err


class TestWideIRSTDMatched:
    @pytest.fixture
    def tool(self, repo_root, monkeypatch):
        tool = load_program(repo_root / "datasets" / "prepare_wideirstd_matched.py")
        for name, value in (("NUM_NUDT", 2), ("FIRST_MISC", 11), ("NUM_MISC", 1), ("NUM_OTHER", 2)):
            monkeypatch.setattr(tool, name, value)
        return tool

    @pytest.fixture
    def source(self, tmp_path):
        places = {
            "00001": ("nudt/images/000001.png", "nudt/masks/000001.png"),
            "00002": ("nudt/images/000002.png", "nudt/masks/000002.png"),
            "00011": ("sirst/mixed/Misc_1.png", "sirst/annotations/masks/Misc_1_pixels0.png"),
            # Natural order: S3_9 comes before S3_10.
            "00012": ("sirst/mixed/S2021_S3_9.png", "sirst/annotations/masks/S2021_S3_9_pixels0.png"),
            "00013": ("sirst/mixed/S2021_S3_10.png", "sirst/annotations/masks/S2021_S3_10_pixels0.png"),
        }
        rows = []
        for i, (name, (image, mask)) in enumerate(places.items()):
            size = (20 + i, 30)
            for path, pixels in ((image, np.full(size, 10 * i, np.uint8)), (mask, 255 * ship(size, 5, 6, 2 + i, 3))):
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(tmp_path / path), pixels)
            platform = "Air" if name < "00010" else "Land"
            rows.append(f"{name}\t{platform}\tLWIR\t{size[1]}\t{size[0]}\t{3 * (2 + i)}\n")
        lists = tmp_path / "icpr"
        lists.mkdir()
        (lists / "statistics.txt").write_text("".join(rows))
        (lists / "train.txt").write_text("00001\n00011\n00013\n")
        (lists / "test.txt").write_text("00012\n00002\n")
        return tmp_path

    def arguments(self, source):
        places = ["--nudt", source / "nudt", "--sirstv2", source / "sirst", "--icpr", source / "icpr"]
        return [str(part) for part in (*places, "--output", source / "out")]

    def test_ids_split_and_metadata_are_those_of_wideirstd(self, tool, source, capsys):
        assert tool.main(self.arguments(source)) == 0
        assert "train 3 images with 3 targets, val 2 images with 2 targets" in capsys.readouterr().out
        train, val = (load_voc(source / "out", split, layout="wideirstd") for split in ("train", "val"))
        assert [s["image_id"] for s in train + val] == ["00001", "00011", "00013", "00002", "00012"]
        assert [s["annotations"][0]["bbox"] for s in train] == [[5, 6, 7, 9], [5, 6, 9, 9], [5, 6, 11, 9]]
        assert train[2]["metadata"] == {"platform": "Land", "band": "LWIR", "width": 30, "height": 24}
        assert cv2.imread(val[1]["file_name"], cv2.IMREAD_UNCHANGED)[0, 0] == 30

    @pytest.mark.parametrize(
        ("file", "change", "message"),
        [
            ("nudt/masks/000002.png", lambda pixels: pixels * 0, "0 target pixels, 9 in WideIRSTD's table"),
            ("sirst/mixed/Misc_1.png", lambda pixels: pixels[:10], "30x10 pixels, 30x22 in WideIRSTD's table"),
        ],
    )
    def test_a_file_that_is_another_is_refused(self, tool, source, capsys, file, change, message):
        path = str(source / file)
        cv2.imwrite(path, change(cv2.imread(path, cv2.IMREAD_UNCHANGED)))
        assert tool.main(self.arguments(source)) == 1
        assert message in capsys.readouterr().err
        assert not (source / "out").exists()
