#!/usr/bin/env python3
"""Draw a data set and detections: the same as ``irstd visualize``, from a clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from irstd_d2.cli import door

main = door("visualize", "auxdet_d2", "bafe_d2")

if __name__ == "__main__":
    sys.exit(main())
