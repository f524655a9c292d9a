"""Make the compact reference numbers that the packages hold from the whole ones.

    python benchmarks/compact_reference.py ../shared/oracle

Whole numbers and rows of boxes stay as they are; of larger arrays a sample at fixed positions and six sums are kept;
inputs and weights, which their names and seeds make again, are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from irstd_d2.equality import compact_arrays

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"auxdet": "auxdet_d2/reference", "bafe": "bafe_d2/reference", "voc": "irstd_d2/equality"}
WHOLE = ("proposals", "train_proposals", "det", "target_", "sky", "grad_", "after.")
INPUTS = {
    "auxdet_neck_parts": ("meta_sem_in", "dmlp_f1", "dmlp_aux", "sm_x", "sm_w", "edge_x", "fcres_x", "edge_init_x"),
    "bafe_modules": ("ChannelEx.w.", "ChannelEx.in", "LSKModule.w.", "LSKModule.in"),
}


def target_of(source: Path) -> Path:
    """Where the compact form of a file lies."""
    return ROOT / PACKAGES[source.name.partition("_")[0]] / source.name


def compact(source: Path) -> dict[str, np.ndarray]:
    """The arrays of a whole file in their compact form."""
    with np.load(source, allow_pickle=False) as file:
        arrays = dict(file)
    for name in [name for name in arrays if name.startswith("target_bbox")]:
        # What the published code writes for the background is not used.
        arrays[name] = arrays[name] * (arrays[name.replace("bbox", "labels")] == 0)[:, None]
    inputs = INPUTS.get(source.stem, ())
    return compact_arrays(
        arrays, whole=lambda name: name.startswith(WHOLE), without=lambda name: bool(inputs) and name.startswith(inputs)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the whole reference numbers")
    folder = parser.parse_args().folder
    for source in sorted([*folder.glob("*.npz"), *folder.glob("*.json")]):
        target = target_of(source)
        target.parent.mkdir(exist_ok=True)
        if source.suffix == ".npz":
            np.savez_compressed(target, **compact(source))
        else:
            target.write_text(json.dumps(json.loads(source.read_text()), separators=(",", ":")) + "\n")
        print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1e3:.0f} kB of {source.stat().st_size / 1e3:.0f}")


if __name__ == "__main__":
    main()
