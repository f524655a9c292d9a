"""The program that sets generated sets beside the released one, on a set of three images."""

import cv2
import numpy as np
import pytest
from programs import load_program

from bafe_d2.data.densesirst_generator import RECIPES, generate_densesirst, read_sparse_set
from irstd_d2.data.voc_xml import VocObject, VocRecord, format_voc_xml


@pytest.fixture(scope="module")
def program(repo_root):
    return load_program(repo_root / "benchmarks" / "densesirst_statistics.py")


@pytest.fixture
def folders(tmp_path):
    """A sample under other names than SIRST-V2's, the same images under their own names, a dense set of them."""
    sample, sparse, sky = (tmp_path / name for name in ("sample", "sparse", "sky"))
    for folder in ("sample/VOC2007/PNGImages", "sample/VOC2007/Annotations", "sky"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("mixed", "annotations/bboxes"):
        (sparse / folder).mkdir(parents=True)
    lines = ["00009\tAir\tLWIR\t90\t90\t1\tNUDT-SIRST 000009.png\n"]
    rng = np.random.default_rng(0)
    for i in range(3):
        image = rng.integers(20, 60, (90, 90), np.uint8)
        image[70:76, 70:75] = 200 - 30 * i
        for path in (sample / f"VOC2007/PNGImages/0000{i}.png", sparse / f"mixed/Misc_{i}.png"):
            cv2.imwrite(str(path), image)
        xml = format_voc_xml(VocRecord(90, 90, None, None, (VocObject("Target", False, (70, 70, 75, 76)),)), "x")
        (sample / f"VOC2007/Annotations/0000{i}.xml").write_bytes(xml)
        (sparse / f"annotations/bboxes/Misc_{i}.xml").write_bytes(xml)
        cv2.imwrite(str(sky / f"Misc_{i}_pixels0.png"), np.full((90, 90), 255, np.uint8))
        lines.append(f"0000{i}\tLand\tLWIR\t90\t90\t1\tSIRST-V2 Misc_{i}.png\n")
    (sample / "sources.tsv").write_text("".join(lines))
    source = read_sparse_set(sparse, sky_masks=sky)
    real = generate_densesirst(source, tmp_path / "real", RECIPES["fitted"], progress=False)
    return sample, sparse, real


@pytest.mark.parametrize("option", ["--sample", "--sparse"])
def test_writes_a_table_and_a_figure(program, folders, tmp_path, capsys, option):
    sample, sparse, real = folders
    results, figure = tmp_path / "result.md", tmp_path / "images/figure.png"
    arguments = ["--real", str(real), option, str(sample if option == "--sample" else sparse), "--seed", "0"]
    program.main([*arguments, "--results", str(results), "--figure", str(figure)])
    text = results.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert ("Source: all of SIRST-V2." in text) == (option == "--sparse")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    sides = {row[1]: row for row in rows if row[0].startswith("target side")}
    assert list(sides) == [
        "released, the same 3 images",
        "released, all 3 images",
        "generated, recipe paper",
        "generated, recipe fitted",
    ]
    # The same recipe, seed and source: the generated set is the "released" one.
    assert sides["generated, recipe fitted"][-1] == "0.000"
    assert float(sides["generated, recipe paper"][-1]) > 0
    assert cv2.imread(str(figure)).shape[1] == 960


def test_groups_of_pasted_boxes(program):
    added = np.zeros((60, 60), int)
    boxes = [(5, 5, 8, 8), (13, 5, 15, 8), (40, 40, 43, 42), (50, 5, 53, 8)]
    for x1, y1, x2, y2 in boxes[:3]:
        added[y1:y2, x1:x2] = 30
    record = VocRecord(60, 60, None, None, tuple(VocObject("Target", False, box) for box in boxes))
    assert program.group_sizes(added, record) == [2, 1]
