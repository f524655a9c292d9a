#!/usr/bin/env python3
"""Check a data set: the same as ``irstd check``, from a clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from irstd_d2.cli import door

main = door("check", "auxdet_d2", "bafe_d2")

if __name__ == "__main__":
    sys.exit(main())
