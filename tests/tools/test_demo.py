"""The demo: what it reads, what it writes, and that an interrupted run goes on."""

import csv
import json
import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tifffile
import torch
from voc_files import voc_xml

from irstd_d2 import get_config
from irstd_d2.cli import main
from irstd_d2.data import read_voc_xml
from irstd_d2.engine import IRSTDTrainer
from irstd_d2.errors import DatasetError
from irstd_d2.inference import detection
from irstd_d2.inference.inputs import MetadataLookup, Video, find_sources
from irstd_d2.inference.results import JOURNAL

CONFIG = "configs/baselines/tiny/fcos_tiny.yaml"


@pytest.fixture(scope="module")
def weights(tmp_path_factory, repo_root):
    """A tiny FCOS that reports every point that is brighter than the rest, without training."""
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.manual_seed(0)
    model = IRSTDTrainer.build_model(get_config(repo_root / CONFIG, ["MODEL.DEVICE", "cpu"]))
    torch.nn.init.constant_(model.head.cls_logits.bias, 0.5)
    torch.nn.init.constant_(model.head.box_distances.bias, 1.0)
    torch.save({"model": model.state_dict(), "classes": [{"id": 7, "name": "Drone"}]}, path)
    return path


@pytest.fixture
def demo(repo_root, tmp_path, monkeypatch, weights):
    monkeypatch.chdir(repo_root)

    def run(*arguments, output="found"):
        fixed = ["--config-file", CONFIG, "--weights", weights, "--output", tmp_path / output, "--score-thresh", "0.05"]
        return main(["detect", *map(str, fixed), *map(str, arguments), "--opts", "TEST.DETECTIONS_PER_IMAGE", "5"])

    return run


def write_image(path, seed=0, size=(48, 80)):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8))
    return path


def write_video(path, frames=3, size=(64, 48)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, size)
    for i in range(frames):
        frame = np.full((size[1], size[0], 3), 20, np.uint8)
        frame[10:14, 5 + 10 * i : 9 + 10 * i] = 250
        writer.write(frame)
    writer.release()
    return path


def test_sources(tmp_path):
    for name in ("a.png", "sub/a.tif", "sub/clip.avi", "sub/notes.txt", "other/a.PNG"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def names(*inputs):
        return {source.name: str(source.path.relative_to(tmp_path)) for source in find_sources(inputs)}

    assert names(tmp_path) == {
        "a": "a.png",
        "other__a": "other/a.PNG",
        "sub__a": "sub/a.tif",
        "sub__clip": "sub/clip.avi",
    }
    assert names(f"{tmp_path}/*/a.*", tmp_path / "a.png") == {"a": "other/a.PNG", "a_2": "sub/a.tif", "a_3": "a.png"}
    assert list(names(f"{tmp_path}/**/*.tif")) == ["a"]
    assert names(tmp_path, f"{tmp_path}/*.png", tmp_path / "sub" / ".." / "a.png") == names(tmp_path)  # each once
    assert [source.is_video for source in find_sources([tmp_path / "sub"])] == [False, True]
    (tmp_path / os.fsdecode(b"\xb1\xea.png")).touch()
    with pytest.raises(DatasetError, match=r"udcb1.*\.png': name: is not UTF-8"):
        find_sources([tmp_path])
    for absent in (tmp_path / "none", f"{tmp_path}/*.jpg", tmp_path / "sub" / "*.txt"):
        with pytest.raises(DatasetError, match="is not an image, a folder of images or a pattern"):
            find_sources([absent])


def test_frames_and_images_have_names_of_their_own(tmp_path):
    """Or the results of one would be written over those of the other."""
    for name in ("clip.avi", "stack.tif", "single.tif"):
        (tmp_path / f"{name[:-4]}_000001.png").touch()
        tifffile.imwrite(tmp_path / name, np.zeros((1 if name == "single.tif" else 2, 8, 8), np.uint8))
    for given in ([tmp_path], sorted(tmp_path.iterdir(), reverse=True)):
        names = {source.path.name: source.name for source in find_sources(given)}
        assert (names["single.tif"], names["single_000001.png"]) == ("single", "single_000001")
        for name in ("clip.avi", "stack.tif"):
            own, image = names[name], names[f"{name[:-4]}_000001.png"]
            assert image != f"{own}_000001"
            assert {own, image} & {name[:-4], f"{name[:-4]}_000001"}  # one of them keeps its name


def test_what_is_known_of_an_image(tmp_path):
    xml = voc_xml(extra="<view>Air</view><band_type>NIR</band_type>")
    for name in "ab":
        (tmp_path / f"{name}.xml").write_text(xml)
    (tmp_path / "t.csv").write_text("id,platform,width\na,Land,900\nc,Space,\n")
    look = MetadataLookup({"band": "LWIR", "platform": None}, tmp_path / "t.csv", tmp_path)
    assert look(tmp_path / "a.png") == {"platform": "Land", "band": "LWIR", "width": 900}
    assert look(tmp_path / "b.png") == {"platform": "Air", "band": "LWIR"}
    assert look(tmp_path / "c.png") == {"platform": "Space", "band": "LWIR"}
    assert MetadataLookup()(tmp_path / "a.png") == {}
    assert MetadataLookup(xml_folder=tmp_path)(tmp_path / "b.tif") == {"platform": "Air", "band": "NIR"}
    (tmp_path / "b.xml").write_text("torn")
    with pytest.raises(DatasetError, match=r"b\.xml"):
        look(tmp_path / "b.png")
    (tmp_path / "t.csv").write_text("id,width\na,x\n")
    with pytest.raises(DatasetError, match="line 2: width 'x'"):
        MetadataLookup(table=tmp_path / "t.csv")
    with pytest.raises(DatasetError, match="no such folder"):
        MetadataLookup(xml_folder=tmp_path / "none")


def test_videos(tmp_path):
    video = Video(write_video(tmp_path / "clip.avi"))
    assert (video.fps, video.length) == (10, 3)
    frames = list(video)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    assert [int(frame[12].sum(1).argmax()) // 10 for frame in frames] == [0, 1, 2]
    (tmp_path / "torn.avi").write_bytes(b"no video")
    with pytest.raises(DatasetError, match=r"torn\.avi: file: not a video that can be read"):
        Video(tmp_path / "torn.avi")


def test_every_output(demo, tmp_path):
    write_image(tmp_path / "in" / "a.png")
    write_image(tmp_path / "in" / "sub" / "b ü.tif", 1)
    write_video(tmp_path / "in" / "clip.avi")
    (tmp_path / "t.csv").write_text("id,platform\na,Air\n")
    arguments = (
        "--input",
        tmp_path / "in",
        "--save",
        "picture",
        "json",
        "csv",
        "voc",
        "yolo",
        "--metadata",
        tmp_path / "t.csv",
    )
    assert demo(*arguments, "--band", "LWIR") == 0
    found = tmp_path / "found"
    assert {str(p.relative_to(found)) for p in found.rglob("*") if p.is_file() and not p.name.startswith(".")} == {
        "a.png", "sub__b ü.png", "clip.mp4", "detections.json", "detections.csv", "yolo.names",
        *(f"{name}.{kind}" for name in ("a", "sub__b ü", *(f"clip_00000{i}" for i in range(3)))
          for name, kind in ((f"voc/{name}", "xml"), (f"yolo/{name}", "txt"))),
    }  # fmt: skip
    rows = json.loads((found / "detections.json").read_text())
    assert {row["image_id"] for row in rows} == {"a", "sub__b ü", "clip_000000", "clip_000001", "clip_000002"}
    assert {row.get("frame") for row in rows} == {None, 0, 1, 2}
    lines = list(csv.DictReader((found / "detections.csv").open(encoding="utf-8")))
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines):
        x, y, width, height = row["bbox"]
        corners = [float(line[key]) for key in ("xmin", "ymin", "xmax", "ymax")]
        assert corners == pytest.approx([x, y, x + width, y + height], abs=0.006)
        assert float(line["score"]) == pytest.approx(row["score"], abs=6e-5)
        assert (line["name"], line["class"], line["class_id"]) == (row["image_id"], "Drone", "7")
        assert (row["category_name"], row["category_id"]) == ("Drone", 7)
        assert (line["platform"], line["band"]) == ("Air" if row["image_id"] == "a" else "", "LWIR")
    record = read_voc_xml(found / "voc" / "a.xml")
    assert (record.width, record.height, record.platform, record.band) == (80, 48, "Air", "LWIR")
    scores = [row["score"] for row in rows if row["image_id"] == "a"]
    assert scores == sorted(scores, reverse=True)
    assert len(record.objects) == len(scores) > 0
    assert (found / "voc" / "a.xml").read_text().count("<score>") == len(scores)
    assert len(list(Video(found / "clip.mp4"))) == 3
    assert (found / "yolo.names").read_text() == "Drone\n"
    first = rows[0]
    index, x, y, width, height, score = map(float, (found / "yolo" / "a.txt").read_text().split("\n")[0].split())
    left, top, wide, high = first["bbox"]
    assert [index, x, y] == pytest.approx([0, (left + wide / 2) / 80, (top + high / 2) / 48], abs=1e-5)
    assert [width, height, score] == pytest.approx([wide / 80, high / 48, first["score"]], abs=1e-4)


def test_an_interrupted_run_goes_on(demo, tmp_path, capsys, monkeypatch):
    images = [write_image(tmp_path / "in" / f"{i}.png", i) for i in range(4)]
    seen = []
    original = detection.FileDetector.__call__

    def counted(self, source, metadata):
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(source.name)
        return original(self, source, metadata)

    monkeypatch.setattr(detection.FileDetector, "__call__", counted)
    stop_after = 2
    arguments = ("--input", tmp_path / "in")
    assert demo(*arguments) == 130
    assert capsys.readouterr().err.endswith("error: interrupted; the same command goes on where it stopped\n")
    journal = tmp_path / "found" / JOURNAL
    assert not (tmp_path / "found" / "detections.json").exists()
    with journal.open("ab") as file:
        file.write(b'["2", [torn')  # killed while it wrote
    seen.clear()
    stop_after = 100
    assert demo(*arguments) == 0
    assert seen == ["2", "3"]
    assert "(2 files were done before)" in capsys.readouterr().out
    resumed = (tmp_path / "found" / "detections.json").read_text()

    def again(*more):
        seen.clear()
        assert demo(*arguments, *more) == 0
        return list(seen)

    assert again() == []
    assert (tmp_path / "found" / "detections.json").read_text() == resumed
    write_image(images[1], 7)
    assert again() == ["1"]
    (tmp_path / "found" / "3.png").unlink()
    assert again() == ["3"]
    assert again("--save", "csv") == []
    assert again("--platform", "Air") == ["0", "1", "2", "3"]
    assert again("--platform", "Air", "--tile", "40", "--overlap", "8") == ["0", "1", "2", "3"]
    write_image(images[1], 1)
    demo(*arguments, output="whole")
    assert (tmp_path / "whole" / "detections.json").read_text() == resumed


def test_faults_are_named_and_the_rest_is_done(demo, tmp_path, capsys):
    write_image(tmp_path / "in" / "a.png")
    for name in ("torn.png", "torn.avi"):
        (tmp_path / "in" / name).write_bytes(b"torn")
    assert demo("--input", tmp_path / "in") == 1
    said, printed = capsys.readouterr()
    assert said.splitlines()[-1] == f"pictures: {tmp_path / 'found' / 'a.png'}"  # the one that could be read
    assert "torn.png: pixels" in printed
    assert "torn.avi: file: not a video" in printed
    assert "error: 2 of 3 files could not be read:\n" in printed
    assert re.match(rf"error: {tmp_path}/in/torn\.png: pixels: .*\. Fix: ", printed.splitlines()[-1])
    assert "error" not in said
    assert {row["image_id"] for row in json.loads((tmp_path / "found" / "detections.json").read_text())} == {"a"}
    assert demo("--input", tmp_path / "in" / "a.png", "--metadata", tmp_path / "none.csv") == 2
    assert "none.csv" in capsys.readouterr().err
    assert demo("--input", tmp_path / "in" / "a.png", "--tile", "64", "--overlap", "64") == 2
    assert "the overlap is 64 and the tile 64" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        demo("--input", tmp_path / "in", "--tile", "big")


def test_tiles_by_hand(demo, tmp_path):
    write_image(tmp_path / "in" / "a.png", size=(150, 200))
    assert demo("--input", tmp_path / "in", "--tile", "64", "--overlap", "16") == 0
    tiled = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert demo("--input", tmp_path / "in", "--tile", "none") == 0
    assert len(tiled) > len(json.loads((tmp_path / "found" / "detections.json").read_text()))


def test_says_what_was_done(demo, tmp_path, capsys):
    write_image(tmp_path / "in" / "a.png")
    assert demo(tmp_path / "in" / "a.png") == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == f"1 images, 5 targets of score 0.05 or more in {tmp_path / 'found'}"
    assert re.fullmatch(r"\d+\.\d{3} s per image on cpu", second)
    assert third == f"pictures: {tmp_path / 'found' / 'a.png'}"


def test_results_of_another_run_are_not_replaced_in_silence(demo, tmp_path, capsys):
    images = [write_image(tmp_path / "in" / f"{i}.png", i) for i in range(3)]

    def said(*arguments):
        assert demo(*arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if line.startswith("replaced")]

    def line(count):
        return [f"replaced in {tmp_path / 'found'}: results of {count} files of an earlier run, which was another"]

    assert said(*images[:2]) == []
    assert said(*images[:2]) == said(*images) == []  # goes on
    assert said(images[2]) == line(2)
    assert said(*images, "--tile", "none") == line(3)


def test_nothing_to_detect_in_is_an_error(demo, capsys):
    assert demo() == 2
    assert "error: give images" in capsys.readouterr().err


@pytest.mark.parametrize("absent", [["7"], ["torn.png"], ["7", "torn.png"]])
def test_no_picture_is_named_where_none_was_written(demo, tmp_path, capsys, monkeypatch, absent):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.png").write_bytes(b"torn")
    assert demo(*absent) == 1
    said, printed = capsys.readouterr()
    assert "pictures:" not in said
    assert ("7: camera: not a video that can be read (it gives no picture)" in printed) == ("7" in absent)


def test_a_camera_is_read_until_enough_frames_came(demo, tmp_path, monkeypatch):
    clip = write_video(tmp_path / "clip.avi", frames=5)
    monkeypatch.setattr(Video, "_capture", lambda _: cv2.VideoCapture(str(clip)))
    assert demo("0", "--max-frames", "2") == 0
    rows = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert {row["image_id"] for row in rows} == {"camera0_000000", "camera0_000001"}


def test_pages_of_a_tiff_are_images(demo, tmp_path, capsys):
    """Each page has the detections and the picture that it has as a file of its own; a second run reads none again."""
    pages = [np.full((48, 80), 7000, np.uint16) for _ in range(3)]
    (tmp_path / "single").mkdir()
    for number, page in enumerate(pages):
        page[10 + 8 * number : 14 + 8 * number, 30:34] = 60000
        tifffile.imwrite(tmp_path / "single" / f"stack_{number:06d}.tif", page)
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "stack.tif", np.stack(pages), photometric="minisblack")
    write_image(tmp_path / "in" / "other.png")
    assert demo(tmp_path / "single", output="expected") == 0
    assert demo(tmp_path / "in") == 0
    assert "4 images" in capsys.readouterr().out

    def rows(folder):
        found = json.loads((tmp_path / folder / "detections.json").read_text())
        return [(r["image_id"], r["bbox"], r["score"]) for r in found if r["image_id"] != "other"]

    assert rows("found") == rows("expected")
    for number in range(3):
        name = f"stack_{number:06d}.png"
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    assert demo(tmp_path / "in") == 0
    assert "(2 files were done before)" in capsys.readouterr().out
    assert demo(tmp_path / "in" / "stack.tif", "--max-frames", "2", output="two") == 0
    assert {name for name, _, _ in rows("two")} == {"stack_000000", "stack_000001"}


def test_gray_frames_of_16_bits_stay_so(tmp_path):
    av = pytest.importorskip("av", reason="av is not installed")
    deep = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20
    with av.open(str(tmp_path / "deep.mkv"), "w") as out:
        stream = out.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray16le"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(deep, format="gray16le")))
        out.mux(stream.encode())
    (frame,) = Video(tmp_path / "deep.mkv")
    assert frame.dtype == np.uint16
    assert (frame == deep).all()


def test_two_processes_share_a_folder(weights, repo_root, tmp_path):
    for i in range(3):
        write_image(tmp_path / "in" / f"{i}.png", i)
    arguments = ["-m", "irstd_d2", "detect", tmp_path / "in", "--config-file", CONFIG, "--weights", weights]
    one, two = tmp_path / "one", tmp_path / "two"
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for folder, start in ((one, []), (two, starter)):
        command = [sys.executable, *start, *arguments, "--output", folder, "--opts", "TEST.DETECTIONS_PER_IMAGE", "5"]
        done = subprocess.run(list(map(str, command)), cwd=repo_root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("3 images") == 1
    assert (one / "detections.json").read_bytes() == (two / "detections.json").read_bytes()
    assert len(json.loads((one / "detections.json").read_text())) > 0
    assert sorted(path.name for path in two.glob("*.png")) == ["0.png", "1.png", "2.png"]


@pytest.mark.slow
def test_six_thousand_pixels_square_within_four_gigabytes(weights, repo_root, tmp_path):
    """36 million pixels of 16 bits in 196 tiles. VmHWM is the peak of this program; ``ru_maxrss`` has its parent's."""
    image = np.full((6000, 6000), 3000, np.uint16)
    image[::500, ::500] = 60000
    assert cv2.imwrite(str(tmp_path / "large.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    measured = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    command = [
        *(sys.executable, "-c", measured, "tools/demo.py", "--config-file", CONFIG, "--weights", weights),
        *("--input", tmp_path / "large.png", "--output", tmp_path / "found", "--tile", "512", "--overlap", "64"),
        *("--opts", "INPUT.RESIZE_MODE", "scale"),
    ]
    done = subprocess.run(list(map(str, command)), cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", done.stdout)[1]) / 2**20
    print(f"{peak:.2f} GiB")
    assert peak < 4
    assert (tmp_path / "found" / "large.png").is_file()
