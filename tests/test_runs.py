"""Run records: a run that is lost, mislabelled or not repeatable makes every comparison worthless."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from indextts import IndexTTS2
from indextts.runs import RunHistory, describe_request, render
from tests.speaking import SHORT, VOICE
from tests.widgets.fake import VOICE as FAKE_VOICE
from tests.widgets.fake import FakeTTS

pytestmark = pytest.mark.filterwarnings("ignore:generation was stopped")


@pytest.fixture
def tts() -> Any:
    return FakeTTS()


def speak(tts: Any, history: RunHistory | None = None, text: str = "Hello.", **more: Any) -> Any:
    return render(tts, history, spk_audio_prompt=FAKE_VOICE, text=text, **more)


@pytest.fixture(scope="module")
def real() -> IndexTTS2:
    return IndexTTS2.from_random("small")


def test_a_record_is_what_infer_returns_and_can_be_repeated(real: IndexTTS2) -> None:
    history = RunHistory()
    record = render(real, history, "first", spk_audio_prompt=VOICE, text="Hello there.", max_mel_tokens=14, diffusion_steps=2)
    assert record.request["seed"] is not None, "without the seed nobody can make this sound again"
    rate, again = real.infer(VOICE, "Hello there.", **{**SHORT, "seed": record.request["seed"]})
    assert record.sample_rate == rate
    assert record.samples.dtype == np.int16
    assert np.array_equal(record.samples, again[:, 0])
    assert record.settings["precision"] == "fp32"
    assert record.telemetry.text == "Hello there."
    assert history.get(record.id) is record
    assert record.notes == ["Generation was stopped at its limit of 14 codes, so speech may be cut off."]


def test_streaming_gives_the_same_samples(real: IndexTTS2) -> None:
    pieces: list[np.ndarray] = []
    arguments = {"spk_audio_prompt": VOICE, "text": "Hello there. One, two!", "max_text_tokens_per_segment": 8, **SHORT}
    streamed = render(real, on_piece=pieces.append, **arguments)
    whole = render(real, **arguments)
    assert len(pieces) > 1
    assert all(piece.dtype == np.float32 and piece.ndim == 1 for piece in pieces)
    assert sum(map(len, pieces)) == len(streamed.samples)
    # Without streaming the segments are rendered as one batch: the same sound, to the rounding of one 16-bit step.
    assert np.abs(streamed.samples.astype(int) - whole.samples).max() <= 1


def test_the_result_can_also_be_written(tts: Any, tmp_path: Path) -> None:
    record = speak(tts, output_path=tmp_path / "new" / "out.wav")
    saved, rate = soundfile.read(tmp_path / "new" / "out.wav", dtype="int16")
    assert rate == 22050
    assert np.array_equal(saved, record.samples)
    assert np.array_equal(soundfile.read(record.save(tmp_path / "again.wav"), dtype="int16")[0], record.samples)


def test_an_exception_in_a_callback_cancels(tts: Any) -> None:
    history = RunHistory()

    def stop(fraction: float, _: str) -> None:
        if fraction > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speak(tts, history, progress=stop)
    assert len(history) == 0
    assert len(speak(tts, history).samples), "the engine must go on after a cancelled run"


def test_streaming_is_asked_for_by_its_callback(tts: Any) -> None:
    with pytest.raises(TypeError, match="on_piece"):
        speak(tts, stream_return=True)


def test_numbers_labels_and_limit(tts: Any) -> None:
    history = RunHistory(most=3)
    records = [speak(tts, history, label=label) for label in ("a", None, "c", "d")]
    assert [record.id for record in history] == [2, 3, 4]
    assert [record.label for record in history] == ["run 2", "c", "d"]
    with pytest.raises(KeyError, match=r"no run 1; there are \[2, 3, 4\]"):
        history.get(1)
    history.remove(3, 99)
    assert [record.id for record in history] == [2, 4]
    history.clear()
    assert speak(tts, history).id == 5, "numbers must not be used twice"
    history.add(records[3])
    assert len(history) == 2
    with pytest.raises(ValueError, match="most=0"):
        RunHistory(most=0)


def test_subscribers_hear_of_every_change(tts: Any) -> None:
    history, heard = RunHistory(), []
    unsubscribe = history.subscribe(lambda: heard.append(len(history)))
    record = speak(tts, history)
    history.remove(record.id)
    history.remove(record.id)  # nothing changes
    unsubscribe()
    unsubscribe()
    speak(tts, history)
    assert heard == [1, 0]


def test_several_threads(tts: Any) -> None:
    history = RunHistory(most=1000)
    threads = [threading.Thread(target=lambda: [speak(tts, history) for _ in range(5)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record.id for record in history) == list(range(1, 31))


def test_requests_are_json_safe(tmp_path: Path) -> None:
    described = describe_request(
        {
            "spk_audio_prompt": (22050, np.zeros(11025, np.float32)),
            "emo_audio_prompt": tmp_path / "a.wav",
            "emo_vector": np.float32([0.5, 0]).tolist(),
            "seed": np.int64(3),
            "progress": print,
            "emo_text": None,
            "sample_rate": 16000,
        }
    )
    assert json.loads(json.dumps(described)) == {
        "spk_audio_prompt": "array of 0.50 s at 22050 Hz",
        "emo_audio_prompt": str(tmp_path / "a.wav"),
        "emo_vector": [0.5, 0],
        "seed": 3,
        "sample_rate": 16000,
    }


def test_export(tts: Any, tmp_path: Path) -> None:
    history = RunHistory()
    for text in ("One, two.", "Größe 3"):
        speak(tts, history, text)
    exported = json.loads(history.to_json(tmp_path / "runs.json").read_text(encoding="utf-8"))
    assert [run["telemetry"]["text"] for run in exported] == ["One, two.", "Größe 3"]
    assert "samples" not in exported[0]
    with history.to_csv(tmp_path / "runs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ["One, two.", "Größe 3"]
    assert float(rows[0]["rtf"]) == 2.0
    assert rows[0]["setting.precision"] == "fp32"
    assert (RunHistory().to_csv(tmp_path / "none.csv")).read_text().strip() == "id"
