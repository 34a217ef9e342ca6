"""Rebuild the project's own modules for goldens of the reference, run them and compare.

    python -m tests.parity tests/golden/*.json

Each file is a golden of the format described in ``tests/golden/README.md``: its own dimensions, salt and manifest, in this
repository or outside it. One line per tensor or value; the last line is ``N passed, N failed``; exit status 1 on any failure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import tests.parity_kinds  # noqa: F401  (registers the runners)
from tests.parity_kinds.common import RUNNERS, Check, Golden


def kind_of(golden: Golden) -> str:
    """Numeric goldens state their kind; the others are recognised by what they hold."""
    spec = golden.spec
    if "kind" in spec:
        return str(spec["kind"])
    marks = {
        "sampling": "processors" in spec,
        "gpt": "condition_num_latent" in spec or str(spec.get("module", "")).startswith("gpt"),
        "emotion": "emo_num" in spec,
        "text": "bpe_model" in spec,
        "pipeline_calls": "scenarios" in spec,
        "code_trim": "length_factor" in spec,
        "emotion_text": "request" in spec,
        "beam_scorer": bool(spec.get("cases")) and "num_beams" in spec["cases"][0],
    }
    found = [kind for kind, present in marks.items() if present]
    if not found:
        raise ValueError(f"{golden.path}: not a golden of a known kind")
    return found[0]


def check_file(path: str | Path) -> Iterator[Check]:
    """All checks of one golden."""
    golden = Golden(path)
    kind = kind_of(golden)
    if kind not in RUNNERS:
        raise ValueError(f"{path}: no runner for goldens of kind {kind!r}")
    with torch.inference_mode():
        yield from RUNNERS[kind](golden)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--quiet", action="store_true", help="print failures and the totals only")
    arguments = parser.parse_args(argv)
    passed = failed = 0
    for path in arguments.files:
        try:
            for check in check_file(path):
                passed += check.passed
                failed += not check.passed
                if not (check.passed and arguments.quiet):
                    verdict = "ok  " if check.passed else "FAIL"
                    figures = f"error {check.error:9.2e}  tolerance {check.tolerance:7.1e}"
                    print(f"{verdict} {path.stem:24s} {check.name:44s} {figures}  {check.detail}")
        except Exception as error:
            failed += 1
            print(f"FAIL {path.stem:24s} {type(error).__name__}: {error}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
