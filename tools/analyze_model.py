#!/usr/bin/env python3
"""Count parameters and multiply-adds: the same as ``irstd analyze``, from a clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from irstd_d2.cli import door

main = door("analyze", "auxdet_d2", "bafe_d2")

if __name__ == "__main__":
    sys.exit(main())
