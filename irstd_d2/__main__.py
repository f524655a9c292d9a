"""``python -m irstd_d2`` is ``irstd``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
