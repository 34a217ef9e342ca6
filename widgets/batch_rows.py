"""Many texts from a CSV or JSONL file: read, checked row by row, and packed with their sound. Plain Python, no widgets."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from indextts.models.emotion import check_emo_vector
from indextts.runs import RunRecord
from widgets.sound import wav_bytes

MOST_ROWS = 2000
OWN_COLUMNS = ("text", "voice", "name", "emo_vector")

CheckSettings = Callable[[Mapping[str, Any]], dict[str, Any]]
FindVoice = Callable[[str], Any]


@dataclass
class BatchRow:
    """One row: what to speak and how; ``problem`` says why it cannot be spoken. ``state`` is waiting, working, done, failed or bad."""

    number: int
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    state: str = "waiting"
    record: RunRecord | None = None


def read_rows(file_name: str, data: bytes, check: CheckSettings, find_voice: FindVoice) -> list[BatchRow]:
    """The rows of a file; a bad row is kept, with its problem, and leaves the others alone.

    Columns or keys: ``text`` (needed), ``voice`` (a path or the name of a clip), ``name``, ``emo_vector`` (eight numbers), and every
    setting that ``check`` knows. An empty cell means the panel's own. Errors: ``ValueError`` for a file that is no table of rows at all.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file_name} is not UTF-8 text; save it as UTF-8") from None
    is_csv = PurePath(file_name).suffix.lower() in (".csv", ".tsv")
    given = list(_csv_rows(file_name, text) if is_csv else _jsonl_rows(text))
    if not given:
        raise ValueError(f"{file_name} holds no rows")
    if len(given) > MOST_ROWS:
        raise ValueError(f"{file_name} holds {len(given)} rows; at most {MOST_ROWS} are taken at once")
    return [_row(number, values, check, find_voice) for number, values in enumerate(given, 1)]


def pack(rows: Iterable[BatchRow]) -> bytes:
    """A ZIP of all sounds as 16-bit WAV files, and ``batch.json`` with what became of every row."""
    buffer, listing = io.BytesIO(), []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for row in rows:
            entry: dict[str, Any] = {"row": row.number, "name": row.name, "state": row.state, "problem": row.problem}
            if row.record is not None:
                entry["file"] = f"{row.number:04d}_{_safe(row.name)}.wav"
                entry["run"] = row.record.to_dict()
                archive.writestr(entry["file"], wav_bytes(row.record.samples, row.record.sample_rate))
            listing.append(entry)
        archive.writestr("batch.json", json.dumps(listing, indent=1, ensure_ascii=False))
    return buffer.getvalue()


def _csv_rows(file_name: str, text: str) -> Iterable[dict[str, Any]]:
    lines = text.splitlines()
    head = next((line for line in lines if line.strip()), "")
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    columns = [name.strip() for name in reader.fieldnames or []]
    if "text" not in columns:
        raise ValueError(
            f"{file_name} needs a first line that names its columns, one of them text; it has: {', '.join(columns) or 'nothing'}"
        )
    reader.fieldnames = columns
    try:
        for values in reader:
            if values.get(None):
                yield {"": f"this row has more cells than the {len(columns)} columns; put quotes around text with a {delimiter!r} in it"}
            else:
                yield {name: _cell(name, cell) for name, cell in values.items() if cell is not None and cell.strip()}
    except csv.Error as error:
        raise ValueError(f"{file_name}, line {reader.line_num}: {error}") from None


def _cell(name: str, cell: str) -> Any:
    if name in ("text", "voice", "name"):
        return cell
    try:
        return json.loads(cell.lower() if cell.strip().lower() in ("true", "false") else cell)
    except json.JSONDecodeError:
        return [float(part) for part in cell.split()] if re.fullmatch(r"[\d.\s]+", cell) else cell


def _jsonl_rows(text: str) -> Iterable[dict[str, Any]]:
    for line in text.splitlines():
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            values = {"": f"this line is no JSON: {error}"}
        yield values if isinstance(values, dict) else {"": 'a line must hold one JSON object, such as {"text": "Hello."}'}


def _row(number: int, values: dict[str, Any], check: CheckSettings, find_voice: FindVoice) -> BatchRow:
    row = BatchRow(number, str(values.get("name") or f"row {number}"))
    try:
        if "" in values:
            raise ValueError(values[""])
        text = values.get("text")
        if not isinstance(text, str) or not text.strip():
            raise ValueError("text is missing")
        row.arguments = {"text": text, **check({name: value for name, value in values.items() if name not in OWN_COLUMNS})}
        if "voice" in values:
            row.arguments["spk_audio_prompt"] = find_voice(str(values["voice"]))
        if "emo_vector" in values:
            row.arguments["emo_vector"] = check_emo_vector(values["emo_vector"])
    except (ValueError, OSError) as error:
        row.state, row.problem = "bad", str(error)
    return row


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:60] or "row"
