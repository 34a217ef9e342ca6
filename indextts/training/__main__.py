"""``python -m indextts.training``."""

import sys

from indextts.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
