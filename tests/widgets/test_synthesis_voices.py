"""The synthesis panel's voices: bundled, uploaded, recorded, by path; what is wrong with them is said in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from indextts.audio import write_wav
from tests.widgets.fake import FakeTTS
from tests.widgets.synthesis_runs import TONE, generate, send
from widgets import Session, SynthesisPanel
from widgets.sound import wav_bytes, wav_samples


@pytest.fixture
def panel(session: Session) -> Iterator[SynthesisPanel]:
    made = SynthesisPanel(session)
    yield made
    made.close()


def test_an_upload_becomes_the_voice(panel: SynthesisPanel, tts: FakeTTS) -> None:
    panel.voice.choice.value = "upload"
    assert panel.generate() is None
    assert panel.error_text == "There is no reference voice yet: upload a file."
    assert panel.code.code.startswith("# There is no reference voice yet")
    send(panel.voice.upload, "../../My voice.wav", wav_bytes(TONE, 22050))
    assert panel.voice.upload.message == "My voice.wav: 2.0 s, 22050 Hz. Short; 3 to 15 s sound better."
    generate(panel)
    path = Path(tts.calls[-1]["spk_audio_prompt"])
    assert path.name == "My_voice.wav"
    assert repr(str(path)) in panel.code.code
    assert len(wav_samples(panel.voice.player.wav)[1]) == len(TONE)


@pytest.mark.parametrize(
    ("name", "data", "size", "message"),
    [
        ("notes.txt", b"hello", None, "notes.txt is not one of .wav, .flac, .ogg, .mp3."),
        ("noname", b"hello", None, "is not one of"),
        ("huge.wav", b"", 200_000_000, "huge.wav has 200.0 MB; at most 20 MB are taken."),
        ("empty.wav", b"", None, "empty.wav is empty (0 bytes)."),
        ("lies.wav", b"%PDF-1.4 not audio at all", None, "lies.wav cannot be decoded"),
        ("silent.wav", wav_bytes(np.zeros(22050, np.int16), 22050), None, "silent.wav is silent"),
        ("click.wav", wav_bytes(TONE[:200], 22050), None, "click.wav is too short"),
    ],
)
def test_bad_uploads_are_refused(panel: SynthesisPanel, name: str, data: bytes, size: int | None, message: str) -> None:
    send(panel.voice.upload, name, data, size)
    assert message in panel.voice.upload.message
    assert panel.voice.upload.failed
    panel.voice.choice.value = "upload"
    with pytest.raises(ValueError, match="upload a file"):
        _ = panel.voice.voice
    send(panel.voice.upload, "good.wav", wav_bytes(TONE, 22050))
    assert not panel.voice.upload.failed


def test_a_recording_and_a_path_become_the_voice(panel: SynthesisPanel, tmp_path: Path) -> None:
    panel.voice.choice.value = "record"
    panel.voice.recorder.wav = wav_bytes(np.zeros(48000, np.int16), 48000)
    assert "recording.wav is silent" in panel.voice.note.value
    panel.voice.recorder.wav = wav_bytes(np.tile(TONE, 2), 48000)
    assert panel.voice.voice.label == "recording.wav"
    panel.voice.choice.value = "path"
    panel.voice.path.value = str(tmp_path / "none.wav")
    assert "no such file" in panel.voice.note.value
    write_wav(tmp_path / "there.wav", TONE)
    panel.voice.path.value = str(tmp_path / "there.wav")
    assert panel.arguments()["spk_audio_prompt"].source == str(tmp_path / "there.wav")


def test_bundled_clips_are_offered(tmp_path: Path) -> None:
    tts = FakeTTS()
    for name in ("anna", "bert"):
        write_wav(tmp_path / f"{name}.wav", TONE)
    tts.release = type("Release", (), {"voices": sorted(tmp_path.glob("*.wav"))})()  # type: ignore[assignment]
    session = Session(tts)  # type: ignore[arg-type]
    panel = SynthesisPanel(session)
    assert panel.voice.bundled.options == ("anna", "bert")
    panel.voice.bundled.value = "bert"
    assert panel.arguments()["spk_audio_prompt"].source == str(tmp_path / "bert.wav")
    preset = json.loads(json.dumps(panel.preset()))
    panel.voice.bundled.value = "anna"
    panel.use_preset(preset)
    assert panel.voice.bundled.value == "bert"
    panel.close()
    session.close()
