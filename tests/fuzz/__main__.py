"""``python -m tests.fuzz --count 10000 [--seed N] [--only NAME]``: the long run, with a table of what became of the inputs."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz.boundaries import BOUNDARIES
from tests.fuzz.run import available, try_boundary
from tests.fuzz.world import World


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="NAME", help="one boundary: " + ", ".join(boundary.name for boundary in BOUNDARIES))
    arguments = parser.parse_args()
    chosen = [boundary for boundary in BOUNDARIES if arguments.only in (None, boundary.name)]
    total = sum(boundary.part for boundary in chosen)
    tried = failures = 0
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for boundary in chosen:
            if not available(boundary):
                print(f"{boundary.name:24} left out: needs {boundary.needs}", flush=True)
                continue
            count = max(1, round(arguments.count * boundary.part / total))
            try:
                tally = try_boundary(world, boundary, count, arguments.seed)
            except BaseException:
                failures += 1
                print(f"{boundary.name:24} FAILED\n{traceback.format_exc()}", flush=True)
                continue
            number = sum(tally.outcomes.values())
            tried += number
            outcomes = ", ".join(f"{times} {outcome}" for outcome, times in sorted(tally.outcomes.items()))
            times = f"slowest {tally.slowest_s:.2f} s, all {tally.total_s:.0f} s"
            print(f"{boundary.name:24} {number:6} inputs: {outcomes}; {times}", flush=True)
        world.close()
    print(f"{tried} inputs in {time.perf_counter() - begin:.0f} s, {failures} boundaries failed (seed {arguments.seed})")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
