"""Many texts from a file: one bad row must not cost the others, and nothing may be lost on the way to the ZIP."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from indextts.audio import write_wav
from tests.widgets.fake import FakeTTS
from widgets import Session, SynthesisPanel
from widgets.batch_rows import read_rows
from widgets.batch_table import BatchTable
from widgets.sound import wav_samples

TONE = (np.sin(np.arange(22050) / 9) * 8000).astype(np.int16)
CSV = """\ufefftext,name,num_beams,seed,emo_vector
"Hello, you.",greeting,1,7,
,empty,,,
Second line.,second,99,,
"Third <line>.",,,3,"[0,0,0.5,0,0,0,0,0]"
Fourth.,fourth,,x,
Fifth.,fifth,,,0 0 1
"""


@pytest.fixture
def table(session: Session) -> Iterator[BatchTable]:
    panel = SynthesisPanel(session)
    yield panel.batch
    panel.close()


def wait(table: BatchTable) -> None:
    deadline = time.monotonic() + 10
    while table.working:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.05)  # callbacks follow the end of a task
    table.show()


def load(table: BatchTable, name: str, text: str) -> None:
    assert table.drop.take(name, text.encode()), table.drop.message


def test_bad_rows_are_named_and_left_out(table: BatchTable, tts: FakeTTS) -> None:
    load(table, "rows.csv", CSV)
    assert table.drop.message == "6 rows, 4 of which cannot be spoken; see the table."
    problems = {row.name: row.problem for row in table.rows if row.state == "bad"}
    assert problems["empty"] == "text is missing"
    assert "num_beams must be a whole number between 1 and 10" in problems["second"]
    assert "seed must be a whole number" in problems["fourth"]
    assert "emo_vector must be 8 finite numbers" in problems["fifth"]
    assert "cannot be spoken: text is missing" in table.table.value
    assert "Third &lt;line&gt;." in table.table.value
    table.all_button.click()
    wait(table)
    assert [row.state for row in table.rows] == ["done", "bad", "bad", "done", "bad", "bad"]
    first, second = tts.calls
    assert (first["text"], first["num_beams"], first["seed"]) == ("Hello, you.", 1, 7)
    assert second["emo_vector"] == [0, 0, 0.5, 0, 0, 0, 0, 0]
    assert "2 done, 4 cannot be spoken" in table.summary.value


def test_jsonl_and_own_voices(table: BatchTable, tts: FakeTTS, tmp_path: Path) -> None:
    write_wav(tmp_path / "me.wav", TONE)
    lines = [{"text": "One.", "voice": str(tmp_path / "me.wav")}, {"text": "Two.", "voice": "nobody.wav"}, {"text": "Three.", "colour": 3}]
    load(table, "rows.jsonl", "\n".join([*map(json.dumps, lines), "{broken", "[1]", '{"text": 5}']))
    problems = [row.problem for row in table.rows]
    assert problems[0] == ""
    assert "nobody.wav" in problems[1]
    assert "no setting 'colour'" in problems[2]
    assert "no JSON" in problems[3]
    assert "one JSON object" in problems[4]
    assert problems[5] == "text is missing"
    table.generate_all()
    wait(table)
    assert [call["spk_audio_prompt"] for call in tts.calls] == [str(tmp_path / "me.wav")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.xlsx", b"PK", "not one of .csv, .tsv, .jsonl"),
        ("rows.csv", b"", "is empty (0 bytes)"),
        ("rows.csv", b"a,b\n1,2\n", "one of them text; it has: a, b"),
        ("rows.csv", "text\ngrüß\n".encode("latin-1"), "not UTF-8"),
        ("rows.csv", b"text\n", "holds no rows"),
        ("rows.jsonl", b"\n\n", "holds no rows"),
        ("rows.csv", b"text\n" + b"x\n" * 2001, "2001 rows; at most 2000"),
        ("rows.csv", b"x" * 5_000_001, "5.0 MB"),
    ],
)
def test_files_that_are_no_tables(table: BatchTable, name: str, data: bytes, message: str) -> None:
    load(table, "good.csv", "text\nHello.\n")
    assert not table.drop.take(name, data)
    assert message in table.drop.message
    assert len(table.rows) == 1, "what was there must stay"


def test_semicolons_tabs_and_stray_cells() -> None:
    for delimiter in ";\t":
        rows = read_rows("rows.tsv", f"name{delimiter}text\na{delimiter}Hello, you.\n".encode(), dict, str)
        assert rows[0].arguments == {"text": "Hello, you."}
    rows = read_rows("rows.csv", b"text,name\nHello, you.,a\nFine.,b\n", dict, str)
    assert "more cells than the 2 columns" in rows[0].problem
    assert rows[1].arguments == {"text": "Fine."}


def test_one_failing_row_and_redo(table: BatchTable, tts: FakeTTS) -> None:
    load(table, "rows.csv", "text,seed\nOne.,\nTwo.,5\n")
    tts.fail = RuntimeError("the model ended every segment at once")
    table.generate_all()
    wait(table)
    assert [row.state for row in table.rows] == ["failed", "failed"]
    assert "The model ended every segment at once" in table.table.value
    tts.fail = None
    table.row.value = 2
    table.redo_button.click()
    wait(table)
    assert [row.state for row in table.rows] == ["failed", "done"]
    first = table.rows[1].record
    table.redo(2)
    wait(table)
    assert table.rows[1].record is not first
    table.play(1)
    assert "Row 1 has no sound yet" in table.message.value.replace("row", "Row")
    table.play(2)
    assert table.player.layout.display == ""
    assert np.array_equal(wav_samples(table.player.wav)[1], table.rows[1].record.samples)  # type: ignore[union-attr]
    table.redo(9)
    assert "there is no such row" in table.message.value


def test_cancel_keeps_what_is_done(table: BatchTable, tts: FakeTTS) -> None:
    load(table, "rows.csv", "text\nOne.\nTwo.\nThree.\n")
    table.redo(1)
    wait(table)
    tts.hold.clear()
    tts.entered.clear()
    table.generate_all()
    assert tts.entered.wait(5)
    assert not table.drop.take("other.csv", b"text\nx\n"), "rows in work must not be pulled away"
    assert "cancel them before" in table.drop.message
    table.cancel_button.disabled = False
    table.cancel_button.click()
    wait(table)
    assert [row.state for row in table.rows] == ["done", "waiting", "waiting"]
    tts.hold.set()
    table.generate_all()
    wait(table)
    assert {row.state for row in table.rows} == {"done"}


def test_export_holds_sound_and_what_became_of_every_row(table: BatchTable) -> None:
    load(table, "rows.csv", "text,name\nOne.,../ö 1\n,two\n")
    assert table.export.disabled
    table.generate_all()
    wait(table)
    assert not table.export.disabled
    name, data = table.export._make()
    assert name == "batch.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert sorted(archive.namelist()) == ["0001_ö_1.wav", "batch.json"]
        rate, samples = wav_samples(archive.read("0001_ö_1.wav"))
        listing = json.loads(archive.read("batch.json"))
    assert rate == 22050
    assert np.array_equal(samples, table.rows[0].record.samples)  # type: ignore[union-attr]
    assert [(entry["state"], entry["problem"]) for entry in listing] == [("done", ""), ("bad", "text is missing")]
    assert listing[0]["run"]["request"]["text"] == "One."


def test_pages(table: BatchTable) -> None:
    load(table, "rows.csv", "text\n" + "".join(f"Line {number}.\n" for number in range(1, 26)))
    assert "Line 10." in table.table.value
    assert "Line 11." not in table.table.value
    table.next.click()
    table.next.click()
    assert "Line 25." in table.table.value
    assert (table.back.disabled, table.next.disabled) == (False, True)
