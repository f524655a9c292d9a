"""The fuzzer's own tests, what it and hostile files found, and a small dose of it in every run of the tests."""

import io
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from programs import load_program

from irstd_d2.data import read_image
from irstd_d2.data.coco import scan_coco
from irstd_d2.data.sidecar import read_sidecar
from irstd_d2.data.splits import read_split
from irstd_d2.data.voc_xml import MAX_FAULTS, parse_voc_xml
from irstd_d2.errors import DatasetError

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "data" / "fuzz_corpus"


tool = load_program(ROOT / "tests" / "fuzz" / "fuzz_readers.py")


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=str(p.relative_to(CORPUS))) for p in sorted(CORPUS.rglob("*")) if p.is_file()]
)
def test_what_once_broke_a_reader(path, tmp_path):
    tool.run_one(path.parent.name, path.read_bytes(), tmp_path)


@pytest.mark.parametrize("target", tool.TARGETS)
def test_seeds_are_sound_and_reach_the_end_of_the_reader(target, tmp_path):
    refused = set()
    for data in tool.seeds(target):
        (tmp_path / "input").write_bytes(data)
        try:
            tool.TARGETS[target](tmp_path / "input")
        except DatasetError as error:
            refused.add(error.field)
    # Pictures are no masks; the table without a header has no column of scenes.
    assert refused == {"sky_mask": {"pixels"}, "sidecar": {"line 1"}}.get(target, set())


@pytest.mark.parametrize("target", tool.TARGETS)
def test_readers_bear_changed_files(target, tmp_path):
    rng = random.Random(target)
    mutate = tool.MUTATORS.get(target, tool.mutate_bytes)
    pool = tool.seeds(target)
    for _ in range(300):
        data = rng.choice(pool)
        for _ in range(rng.randint(1, 3)):
            try:
                data = mutate(data, rng)
            except (ValueError, LookupError, SyntaxError):
                data = tool.mutate_bytes(data, rng, [b"<!DOCTYPE a [", b"]]>"])
        tool.run_one(target, data, tmp_path)


@pytest.mark.parametrize("target", tool.TARGETS)
def test_readers_bear_any_bytes(target, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")

    @settings(max_examples=40, deadline=None)
    @given(st.binary(max_size=300))
    def run(data):
        tool.run_one(target, data, folder)

    run()


@pytest.mark.parametrize("target", ["coco", "xml"])
def test_structured_changes_keep_the_structure(target):
    rng = random.Random(1)
    seen = set()
    for _ in range(200):
        data = tool.MUTATORS[target](tool.seeds(target)[-1], rng)
        tool.MUTATORS[target](data, rng)  # raises where it no longer parses
        seen.add(data)
    assert len(seen) > 150


def test_checksums_are_repaired(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(buffer, "PNG")
    data = buffer.getvalue()
    damaged = data[:29] + b"\0\0\0\0" + data[33:]
    assert tool.with_checksums(damaged) == tool.with_checksums(data) == data
    assert tool.with_checksums(damaged + b"tail") == data + b"tail"
    assert tool.with_checksums(data[:40]) == data[:40]


def test_replay_from_the_command_line(tmp_path, monkeypatch):
    assert tool.main(["coco", "--replay", *map(str, (CORPUS / "coco").iterdir())]) == 0
    monkeypatch.setitem(tool.TARGETS, "coco", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tool.main(["coco", "--replay", str(CORPUS / "coco" / "deep_box.json")])
    with pytest.raises(SystemExit):
        tool.main(["no_such_reader"])


def test_an_input_is_held_to_its_processor_time_and_not_to_the_clock(tmp_path, monkeypatch):
    def busy(path):
        start = time.process_time()
        while time.process_time() - start < 0.05:
            pass

    monkeypatch.setitem(tool.TARGETS, "split", busy)
    with pytest.raises(AssertionError, match=r"s of processor time, at most 0\.02"):
        tool.run_one("split", b"", tmp_path, 0.02)
    tool.run_one("split", b"", tmp_path, 5)
    monkeypatch.setitem(tool.TARGETS, "split", lambda path: time.sleep(0.05))
    tool.run_one("split", b"", tmp_path, 0.02)


def fake_fuzzer(findings):
    """Stands for atheris: finds something in the first so many calls."""
    calls = []

    def run(command, stdout, stderr, check):
        calls.append(command)
        stdout.write(b"stat::number_of_executed_units: 1000\nstat::peak_rss_mb: 345\n")
        folder = next(part.split("=")[1] for part in command if part.startswith("-artifact_prefix"))
        if len(calls) <= findings:
            (Path(folder) / f"crash-{len(calls)}").touch()
            return subprocess.CompletedProcess(command, 77)
        return subprocess.CompletedProcess(command, 0 if findings >= 0 else 1)

    return run, calls


def test_campaign_goes_on_after_findings_and_counts_all(tmp_path, monkeypatch, capsys):
    run, calls = fake_fuzzer(findings=2)
    monkeypatch.setattr(tool.subprocess, "run", run)
    assert tool.main(["split", "--seconds", "3", "--output", str(tmp_path)]) == 1
    assert "| split | 3,000 | 3 | 2 | 2 | 345 |" in capsys.readouterr().out
    assert len(calls) == 3
    assert "-max_total_time=1" in calls[-1]
    assert " split --timeout 10 --libfuzzer -max_total_time=3 -timeout=100 " in " ".join(calls[0])
    assert (tmp_path / "split" / "words").read_text().startswith('".png"\n')
    run, _ = fake_fuzzer(findings=0)
    monkeypatch.setattr(tool.subprocess, "run", run)
    shutil.rmtree(tmp_path / "split")
    assert tool.main(["split", "--seconds", "1", "--output", str(tmp_path)]) == 0
    run, _ = fake_fuzzer(findings=-1)
    monkeypatch.setattr(tool.subprocess, "run", run)
    with pytest.raises(RuntimeError, match="code 1 without a finding"):
        tool.main(["split", "--seconds", "1", "--output", str(tmp_path)])


def test_mutation_in_the_fuzzer_stays_within_the_size(monkeypatch):
    data = tool.seeds("coco")[0]
    sizes = {len(tool._mutate(tool.mutate_json, [b"word"], data, 400, seed)) for seed in range(200)}
    assert max(sizes) <= 400
    assert len(sizes) > 20
    changed = {tool._mutate(tool.mutate_json, [], b"no json", 10, seed) for seed in range(9)}
    assert len(changed) > 3


# Hostile files that take time or memory out of proportion to their size.


class Seconds:
    """Fails a block that takes longer; the limits are an order of magnitude above what a slow core needs."""

    def __init__(self, limit):
        self.limit = limit

    def __enter__(self):
        self.start = time.process_time()

    def __exit__(self, *_):
        taken = time.process_time() - self.start
        assert taken < self.limit, f"{taken:.1f} s of processor time, at most {self.limit}"


# NFC takes minutes for it.
COMBINING = "a" + "\u0300\u0316" * 100_000


def test_names_of_combining_marks_take_no_quadratic_time(tmp_path):
    (tmp_path / "a.txt").write_text(f"{COMBINING}\nb\n")
    (tmp_path / "a.csv").write_text("id,view\n" + f"{COMBINING[:100_000]},Air\n" * 20 + "b,Air\n")
    with Seconds(2):
        names, faults = read_split(tmp_path / "a.txt")
        entries, table_faults = read_sidecar(tmp_path / "a.csv")
    assert names == ["b"]
    assert "of 200001 characters is no file name" in faults[0].problem
    assert list(entries) == ["b"]
    assert len(table_faults) == 20


def test_an_xml_of_faults_alone_is_given_up_soon(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text("<annotation>" + "<object><bndbox/></object>" * 50_000 + "</annotation>")
    with Seconds(3):
        record, faults = parse_voc_xml(path)
    assert record is None
    assert MAX_FAULTS <= len(faults) < MAX_FAULTS + 10


def test_unknown_categories_do_not_list_all_known_ones_each_time(tmp_path):
    path = tmp_path / "a.json"
    categories = ",".join(f'{{"id":{i},"name":"{i}"}}' for i in range(10_000))
    wrong = ",".join(['{"image_id":1,"category_id":-1}'] * 2000)
    image = '{"id":1,"width":5,"height":5,"file_name":"a"}'
    path.write_text(f'{{"images":[{image}],"categories":[{categories}],"annotations":[{wrong}]}}')
    with Seconds(3):
        faults = scan_coco(path, tmp_path).faults
    assert len(faults) == 2000
    assert len(str(faults[0])) < 500


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (3000, 3000)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert read_image(path).shape == (3000, 3000, 3)
    path.write_bytes(data[:-2] + scan * 5000 + data[-2:])
    with Seconds(1), pytest.raises(DatasetError, match="a JPEG of more than 100 scans"):
        read_image(path)
