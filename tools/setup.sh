#!/usr/bin/env bash
# Set up the project in .venv: Python packages, detectron2, the project itself in editable form.
#
#   bash tools/setup.sh                      everything, or nothing when it is already done
#   PYTHON=python3.12 bash tools/setup.sh    with another interpreter (3.11 or newer)
#   DETECTRON2=upstream bash tools/setup.sh  detectron2 from its own repository instead of the package index
#
# About 6 GB of downloads, five minutes on a fast line; a second run takes a second. A run that was interrupted goes on
# where it stopped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
detectron2=${DETECTRON2:-index}
wheel_version=0.7.2
wheel_sha256=491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561
need_gb=9

say() { printf '[setup %4ss] %s\n' "$SECONDS" "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"; return
    fi
    [ "$candidate" != "${PYTHON:-}" ] || die "PYTHON=$PYTHON is not a Python 3.11 or newer with the venv module"
  done
  die "no Python 3.11 or newer with the venv module was found; install one or name it: PYTHON=/path/to/python bash tools/setup.sh"
}

# What is installed is recorded with a fingerprint of everything that decides it, the folder included.
fingerprint=$(cat setup.py constraints.txt tools/setup.sh <(echo "$detectron2 $PWD") | sha256sum | cut -d' ' -f1)
stamp=$venv/.irstd-setup
packages='torch torchvision detectron2 irstd_d2 auxdet_d2 bafe_d2'
present() {  # without importing them, which takes seconds
  "$venv/bin/python" -c 'import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))' \
    $packages 2>/dev/null
}

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$fingerprint" ] && present; then
  say "nothing to do: $venv is complete"
  exit 0
fi

if [ -x "$venv/bin/python" ] && ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  say "$venv is incomplete (an interrupted run?); making it anew"
  rm -rf "$venv"
fi
if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python)
  free_gb=$(($(df -Pk . | awk 'NR==2 {print $4}') / 1048576))
  [ "$free_gb" -ge "$need_gb" ] || die "$free_gb GB free here, $need_gb GB needed (PyTorch is large); free some or clone elsewhere"
  say "making $venv with $("$python" --version)"
  "$python" -m venv "$venv"
fi
rm -f "$stamp"
# Harmless remarks are left out: on the order of indexes, and on a bound that two packages state needlessly.
run_pip() {
  "$venv/bin/python" -m pip --disable-pip-version-check "$@" --quiet 2> >(
    grep -v -e '^WARNING: Location' -e "^ERROR: pip's dependency resolver" -e '^sal-detectron2 .* requires numpy<2' -e '^pyirstdmetrics .* numpy<2' -e '^mmengine .* requires opencv-python' >&2)
}
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# Unpacked packages are gigabytes; in here, what a killed run leaves behind goes with the next one.
export TMPDIR=$PWD/$venv/tmp
rm -rf "$TMPDIR" "$site"/~*
mkdir "$TMPDIR"
trap 'rm -rf "$TMPDIR"' EXIT

# pip takes a package that a killed run left half written for installed. Without its record it is installed again.
"$venv/bin/python" - "$site" <<'PY'
import csv
import shutil
import sys
from pathlib import Path

site = Path(sys.argv[1])
for info in site.glob("*.dist-info"):
    record = info / "RECORD"
    files = [row[0] for row in csv.reader(record.open())] if record.exists() else []
    whole = files and all(name.endswith(".pyc") or (site / name).exists() for name in files)
    if not whole and not info.name.startswith("sal_detectron2"):  # that one is marked by a file of its own, see below
        print(f"[setup] {info.name} is incomplete (an interrupted run?); installing it anew")
        shutil.rmtree(info)
PY

say "1/4 PyTorch (the largest part, one to four minutes)"
run_pip install --constraint constraints.txt torch torchvision

say "2/4 project and its packages (a minute)"
run_pip install --constraint constraints.txt setuptools wheel
run_pip install --constraint constraints.txt --no-build-isolation --editable '.[dev,report]'

# The published metrics of masks and the writer of published checkpoints, for tests alone. The one's bound on numpy, below 2,
# is needless, the other wants a second OpenCV.
run_pip install --no-deps pyirstdmetrics==1.0.2 mmengine==0.10.7

if [ "$detectron2" = upstream ]; then
  say "3/4 detectron2 from its repository (needs a C++ compiler, some minutes)"
  [ ! -f "$site/detectron2/.complete" ] || rm -rf "$site/detectron2" "$site"/sal_detectron2-*.dist-info
  run_pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'
elif [ "$detectron2" = index ]; then
  if [ -f "$site/detectron2/.complete" ]; then
    say "3/4 detectron2 is there"
  else
    # Upstream's Python code as a wheel. Its compiled part is for one version of Python and not needed here.
    say "3/4 detectron2 (a few seconds)"
    tmp=$(mktemp -d)
    run_pip download --no-deps --only-binary=:all: --python-version 3.10 --implementation cp --abi none \
      --dest "$tmp" "sal-detectron2==$wheel_version"
    echo "$wheel_sha256  $(ls "$tmp"/*.whl)" | sha256sum --check --status \
      || die "the detectron2 wheel does not have the expected checksum; do not use it. DETECTRON2=upstream is the other way"
    rm -rf "$site/detectron2" "$site"/sal_detectron2-*.dist-info
    "$venv/bin/python" -m zipfile -e "$tmp"/*.whl "$tmp/unpacked"
    rm -rf "$tmp/unpacked/tools" "$tmp"/unpacked/detectron2/_C*.so
    cp -r "$tmp"/unpacked/*.dist-info "$tmp/unpacked/detectron2" "$site/"
    touch "$site/detectron2/.complete"
  fi
else
  die "DETECTRON2 is '$detectron2'; use 'index' (default) or 'upstream'"
fi

say "4/4 check"
"$venv/bin/python" -W ignore -c "import ${packages// /, }" \
  || die "the packages do not import; remove $venv and run this again, and report it if that does not help"
echo "$fingerprint" > "$stamp"
say "done: $("$venv/bin/python" -c 'import torch, torchvision; print("torch", torch.__version__, "torchvision", torchvision.__version__, "CUDA" if torch.cuda.is_available() else "CPU")' 2>/dev/null)"
