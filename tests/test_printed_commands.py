"""Every command that a page prints runs as it stands in a fresh copy of the project, page by page and in order.

What takes long or needs data has tiny replacements, all in ``SUBSTITUTIONS``; what is not run, in ``NOT_RUN``.
"""

import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest
from documented import ROOT, Shell, commands

PAGES = [
    *("README.md", "CONTRIBUTING.md", "datasets/README.md", "examples/images/README.md"),
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]
NOT_RUN = {
    r"^bash tools/setup\.sh$": "downloads gigabytes; it made the environment that runs the tests",
    r"^\.venv/bin/python tools/run_demo\.py$": "minutes; .ci/run runs it, test_run_demo.py its parts",
    r"^make ": "the targets are compared below",
    r"^git clone ": "network",
    r"^\.venv/bin/pip install ": "network",
    r"datasets/prepare_(wideirstd_matched|spaceir)\.py": "needs the clones above; test_prepare_omni_sets.py",
    r'^export IRSTD=|^export PYTHON=|"\$IRSTD/': "test_own_data.py and test_datasets_readme.py run these as they stand",
    r"--device cuda": "needs a GPU; test_gpu_script.py",
    r"benchmarks/published\.py": "needs an environment with the published code; test_published.py",
    r"fuzz_readers\.py": "an hour, with atheris; test_fuzz_readers.py replays its corpus",
    r"-m pytest": "a test itself",
    r"^(srun )?\.venv/bin/torchrun |^node0=": "several processes or nodes; test_distributed.py and test_restarts.py",
    r"train_net\.py .*\[--": "a synopsis; test_lazy_configs.py runs the Python configurations",
}
TINY = (
    " SOLVER.MAX_ITER 2 SOLVER.MAX_EPOCHS 0 SOLVER.STEPS '()' SOLVER.STEP_EPOCHS '()' SOLVER.IMS_PER_BATCH 2"
    " DATALOADER.NUM_WORKERS 0 TEST.EVAL_PERIOD 0"
)
SUBSTITUTIONS = {
    # what a reader fills in
    r"CONFIG --resume OUTPUT_DIR DIR": "configs/baselines/tiny/fcos_tiny.yaml --resume OUTPUT_DIR output/fcos",
    r"SOURCE OUTPUT --sky-masks DIR": "datasets/open-sirst-v2 made --sky-masks datasets/SIRSTdevkit/SkySeg/BinaryMask",
    r"\bOUTPUT/SIRSTdevkit": "made/SIRSTdevkit",
    r"\bDETECTRON2_DATASETS=OUTPUT": "DETECTRON2_DATASETS=made",
    r"=/path/to/datasets": "=datasets",
    r"^(?=python runtime\.py)": '"${PYTHON%/*}"/',
    r"Misc_304 S2_26": "val_000000 val_000001",
    # a set of a few images in place of the real one
    r"datasets/prepare_densesirst\.py ~/Downloads/DenseSIRST(?! --check)": r"\g<0> --force",
    r"^(?=.*prepare_densesirst\.py \S+ --force$)": "DETECTRON2_DATASETS=linked ",
    r"^(?=.*prepare_densesirst\.py \S+ --force --copy$)": "DETECTRON2_DATASETS=copied ",
    r"DenseSIRST --check-only": r"\g<0> --force",
    r"--train 300 --val \d+": "--train 4 --val 2",
    # small models, two steps
    r"--jobs 8": "--jobs 1",
    r"configs/bafe/bafe_r18_fpn(_s4_scratch)?\.yaml": "configs/bafe/tiny/bafe_fine.yaml",
    r"(train_net\.py|irstd train) (?!.*(--eval-only|\[)).*": r"\g<0>" + TINY,
    # figures that nobody reads here
    r"model_zoo\.py --all --output docs/model_zoo\.md": "model_zoo.py configs/bafe/tiny/bafe_fine.yaml --output a.md",
    r"benchmarks/run\.py (?!--cases)[^#]*": r"\g<0> --cases targets",
    r"benchmarks/run\.py .*": r"\g<0> --quick",
    r"(?<=AuxDet R50, )512x512": "64x64",
    r"data_load\.py": r"\g<0> --samples 400 --workers 1",
    r"ablate\.py (?!--list).*": r"\g<0> --write-configs rows",
}
# What the pages take as given, made by the project's own commands.
GIVEN = {
    "runs": [
        ("bafe", "bafe/tiny/bafe_fine.yaml", "densesirst_v2_trainval", "densesirst_v2_test"),
        ("fcos", "baselines/tiny/fcos_tiny.yaml", "densesirst_v2_trainval", "densesirst_v2_test"),
        ("cascade_rpn", "auxdet/tiny/cascade_rpn_tiny.yaml", "synthetic_omni_train", "synthetic_omni_val"),
        ("auxdet", "auxdet/tiny/auxdet_tiny.yaml", "synthetic_omni_train", "synthetic_omni_val"),
    ],
    "pages": {
        "docs/protocols.md": ("bafe", "fcos"),
        "docs/report.md": ("bafe", "cascade_rpn", "auxdet"),
        "docs/reliability.md": ("fcos",),
        "docs/deployment.md": ("bafe",),
        "docs/own_data.md": ("fcos",),
    },
}


def training(page, name, config, train, test):
    sets = f"DATASETS.TRAIN \"('{train}',)\" DATASETS.TEST \"('{test}',)\""
    if page == "docs/reliability.md":  # its command goes on without naming sets
        sets = ""
    return f".venv/bin/irstd train --config-file configs/{config} {sets} OUTPUT_DIR output/{name}{TINY}"


def prepare(page):
    wanted = GIVEN["pages"].get(page, ())
    lines = [training(page, *run) for run in GIVEN["runs"] if run[0] in wanted]
    if page == "docs/deployment.md":
        lines.append("cp output/bafe/model_final.pth model_best.pth; cp image.png image1.png; cp image.png image2.png")
    if page == "docs/own_data.md":
        lines.append("cp output/fcos/model_final.pth model.pth")
    if page in ("docs/components.md", "docs/synthetic.md"):
        lines.append("rm -rf datasets/synthetic_*")
    if page == "docs/reproduce.md":
        save = "import torch, torchvision; torch.save(torchvision.models.resnet50().state_dict(), 'resnet50.pth')"
        lines.append(f'.venv/bin/python -c "{save}"')
    return lines


def substitute(command):
    for pattern, replacement in SUBSTITUTIONS.items():
        command = re.sub(pattern, replacement, command)
    return command


def to_run(page):
    lines = [line for line in commands(ROOT / page) if not any(re.search(pattern, line) for pattern in NOT_RUN)]
    return [substitute(line) for line in lines]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what is in version control, with tiny sets below ``datasets/``, and the shell in its ``.venv/bin``."""
    folder = tmp_path_factory.mktemp("checkout") / "irstd-d2"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for file in files:
        if (ROOT / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
    shell = Shell(folder / ".venv" / "bin")
    given = """
        .venv/bin/irstd synthesize --layout both --size 128x128 --train 6 --val 3
        cp -r datasets/synthetic_dense/SIRSTdevkit datasets/SIRSTdevkit
        cp datasets/SIRSTdevkit/Splits/val_v2.txt datasets/SIRSTdevkit/Splits/test_v2.txt
        for list in datasets/SIRSTdevkit/Splits/*_v2.txt; do cp "$list" "${list/_v2/_v1}"; done
        mkdir -p home/Downloads/DenseSIRST data
        cp -r datasets/SIRSTdevkit home/Downloads/DenseSIRST/
        .venv/bin/irstd convert datasets/SIRSTdevkit datasets/open-sirst-v2 --to voc --to-layout sirstv2
        .venv/bin/irstd convert datasets/SIRSTdevkit data/mine --to voc
        cp -r datasets given
        cp "$(ls examples/images/*.png | head -n 1)" image.png
    """
    run(shell, folder, given)
    large = np.random.default_rng(0).integers(0, 60, (700, 900), np.uint8)
    cv2.imwrite(str(folder / "large.png"), large)
    return folder, shell


def run(shell, folder, script):
    # a set elsewhere on the machine that runs the tests has no part in it
    environment = {"HOME": str(folder / "home"), "MPLBACKEND": "agg", "DETECTRON2_DATASETS": str(folder / "datasets")}
    log = folder / "commands.log"
    code, _ = shell.run(script, folder, environment, log)
    assert code == 0, f"{script}\n{log.read_text(errors='replace')[-4000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page)])
def test_commands_run_as_printed(page, checkout):
    folder, shell = checkout
    run(shell, folder, "rm -rf output found check weights datasets; cp -r given datasets")
    run(shell, folder, "\n".join(prepare(page)))
    run(shell, folder, "\n".join(["set -x", *to_run(page)]))


def test_both_tables_hold_nothing_that_no_page_has():
    lines = [line for page in PAGES for line in commands(ROOT / page)]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in lines), pattern
    for pattern in SUBSTITUTIONS:
        before = list(SUBSTITUTIONS).index(pattern)
        earlier = list(SUBSTITUTIONS.items())[:before]
        for line in lines:
            for first, replacement in earlier:
                line = re.sub(first, replacement, line)
            if re.search(pattern, line):
                break
        else:
            pytest.fail(pattern)


def test_commands_name_the_projects_own_interpreter():
    """Another Python, as ``python`` in a shell that activated nothing, would not find the packages."""
    for page in PAGES:
        for line in commands(ROOT / page):
            assert not re.match(
                r"(\w+=\S+ )*(python3? (?!runtime)|irstd |torchrun |pip |(tools|datasets)/\S+\.py)", line
            ), line


def test_make_does_what_the_pages_say():
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    targets = {target for line in re.findall(r"\bmake ([a-z-]+(?: [a-z-]+)*)(?=\s*(?:`|#|$))", text, re.MULTILINE)
               for target in line.split()}  # fmt: skip
    assert {"demo", "test", "test-slow", "lint", "typecheck"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert re.search(r"^demo: setup\n\t@\$\(PYTHON_BIN\) tools/run_demo\.py$", makefile, re.MULTILINE)
    assert re.search(r"^setup:\n\t@bash tools/setup\.sh$", makefile, re.MULTILINE)
    assert re.search(r"^PYTHON_BIN := \.venv/bin/python$", makefile, re.MULTILINE)
