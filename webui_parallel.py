"""The optimisation guide's parallel interface: the panels of ``indextts app``, whose Workers tab spreads requests over GPUs."""

from __future__ import annotations

import sys

from indextts.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
