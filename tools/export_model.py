#!/usr/bin/env python3
"""Write a model as an ONNX or TorchScript file: the same as ``irstd export``, from a clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from irstd_d2.cli import door

main = door("export", "auxdet_d2", "bafe_d2")

if __name__ == "__main__":
    sys.exit(main())
