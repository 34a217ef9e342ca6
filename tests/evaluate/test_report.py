"""If this fails, a report says passed where a target was missed, or its JSON cannot be read."""

from __future__ import annotations

import json
import math
import re

from indextts.evaluate.report import Report, Target, mean_of, table, targets

GOOD = {"kind": "clone", "heard": True, "human": True, "sentences": 40, "words": 300, "wer": 0.1, "choice": 1.0, "own": 1.0, "dnsmos": 2.9}


def test_targets_are_judged_on_what_they_are_about() -> None:
    rows = [
        {**GOOD, "voice": "a"},
        {**GOOD, "voice": "b", "heard": False, "own": 0.5, "wer": 0.4, "words": 100},
        {**GOOD, "voice": "c", "human": False, "wer": 0.9},
        {**GOOD, "voice": "a", "kind": "source", "wer": 0.02},
    ]
    found = {target.name: target for target in targets({"voices": rows})}
    words = found["free WER, human-like voices"]
    assert words.measured is not None
    assert math.isclose(words.measured, (0.1 * 300 + 0.4 * 100) / 400), "by words; no formant voice, no source"
    assert words.passed is False
    assert found["nearest to its own voice, trained on"].passed is True
    assert found["nearest to its own voice, never heard"].passed is False


def test_what_was_not_measured_is_neither_passed_nor_failed() -> None:
    assert targets({}) == []
    unheard = next(t for t in targets({"voices": [{**GOOD, "voice": "a"}]}) if "never heard" in t.name)
    assert (unheard.measured, unheard.passed) == (None, None)
    assert unheard.row()["pass"] == "-"


def test_both_directions_and_the_limit_itself() -> None:
    assert Target("x", 0.15, "<=", 0.15, "%").passed
    assert not Target("x", 0.97, ">=", 0.9699, "%").passed
    row = Target("load", 3, "<=", 3.4567, "s").row()
    assert (row["wanted"], row["measured"], row["pass"]) == ("<= 3 s", "3.457 s", "NO")


def test_every_section_has_its_targets() -> None:
    sections = {
        "digits": [{"kind": "clone", "digits_wer": 0.2}, {"kind": "source", "digits_wer": 0.0}],
        "endings": [{"kind": "clone", "texts": 100, "run_on": 2, "cut_off": 0, "length_off": None, "spoken_off": 0}],
        "joins": [{"joins": 12, "clicks": 0}],
        "resources": [{"first_rtf": 0.8, "load_s": 3.5, "peak_mb": 1000.0}],
    }
    verdicts = {target.name: target.passed for target in targets(sections)}
    assert verdicts == {
        "digits WER": False,
        "texts run on, of 100": False,
        "texts cut off, of 100": True,
        "length off by more than 25 %, of 100": None,
        "the same without pauses, of 100": True,
        "clicks at 12 joins": True,
        "RTF of the first sentence": True,
        "load": False,
        "peak memory": True,
    }


def test_a_report_is_readable_and_strict_json() -> None:
    changes = {"emotion": "happy", "pitch_hz": {"mean": 1.25, "clear": True}, "melody_semitones": {"mean": math.nan, "clear": False}}
    report = Report({"weights": "small", "seed": 0, "machine": {"cores": 2}}, {"voices": [{**GOOD, "voice": "a"}], "emotions": [changes]})
    text = str(report)
    assert "weights small, seed 0" in text
    assert re.search(r"\| 1\.25\* +\| - +\|", text)
    assert "10.0" in text, "shares are shown in percent"
    read = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert read["sections"]["emotions"][0]["melody_semitones"]["mean"] is None
    assert {target["name"] for target in read["targets"]} == {target.name for target in report.targets}


def test_means_are_weighted_and_tables_aligned() -> None:
    assert mean_of([{"wer": 0.0, "words": 3}, {"wer": 1.0, "words": 1}, {"words": 9}], "wer", "words") == 0.25
    assert math.isnan(mean_of([], "wer"))
    lines = table([{"voice": "a", "wer": 0.5}, {"voice": "longer", "own": True}]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split("|")[1:4] == [" voice  ", " WER % ", " own voice % "]
