"""Players, the Python side: levels must arrive as they are, and pieces must arrive at all."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import traitlets

from tests.widgets.fake import VOICE
from widgets import Player, Recorder, Session, StreamPlayer, SwitchPlayer
from widgets.player import module
from widgets.sound import wav_bytes, wav_samples

QUIET = (np.sin(np.arange(2205) / 5) * 100).astype(np.int16)


def test_a_quiet_sound_stays_quiet() -> None:
    player = Player()
    player.set_sound(QUIET, 22050, "quiet")
    rate, samples = wav_samples(player.wav)
    assert rate == 22050
    assert np.array_equal(samples, QUIET)
    player.set_sound(np.float32([0.5, -2.0, 2.0]), 16000)
    assert np.array_equal(wav_samples(player.wav)[1], [16383, -32767, 32767])
    player.clear()
    assert player.wav == b""
    player.close()


def test_a_record_can_be_played(session: Session) -> None:
    record = session.render(label="mine", spk_audio_prompt=VOICE, text="Hello.").result(5)
    player = Player.of(record, autoplay=True)
    assert (player.label, player.filename, player.autoplay) == ("mine", "run_1.wav", True)
    assert np.array_equal(wav_samples(player.wav)[1], record.samples)
    player.close()


def test_sound_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="mono"):
        wav_bytes(np.zeros((100, 2), np.int16), 22050)
    for data in (b"", b"RIFFnothing", wav_bytes(QUIET, 22050)[:20]):
        with pytest.raises(ValueError, match="not a WAV"):
            wav_samples(data)


def test_switching_stays_within_the_tracks() -> None:
    player = SwitchPlayer()
    player.set_sounds([("fp32", QUIET, 22050), ("bf16", QUIET // 2, 22050)])
    player.current = 1
    with pytest.raises(traitlets.TraitError, match="2 tracks"):
        player.current = 2
    assert [track["label"] for track in player.tracks] == ["fp32", "bf16"]
    assert np.array_equal(wav_samples(player.tracks[1]["wav"])[1], QUIET // 2)
    player.set_sounds([("one", QUIET, 22050)])
    assert player.current == 0
    player.close()


def test_pieces_travel_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Any, Any]] = []
    player = StreamPlayer()
    monkeypatch.setattr(player, "send", lambda content, buffers=None: sent.append((content, buffers)))
    player.begin(22050)
    player.feed(np.float32([[0.5, -0.25]]))
    player.feed(np.zeros((1, 0), np.float32))
    player.end()
    assert [content["type"] for content, _ in sent] == ["begin", "piece", "end"]
    assert np.array_equal(np.frombuffer(sent[1][1][0], "<f4"), [0.5, -0.25])
    player.close()


def test_a_recording_is_read_back() -> None:
    recorder = Recorder()
    assert recorder.recording is None
    recorder.wav = wav_bytes(QUIET, 48000)
    rate, samples = recorder.recording or (0, None)
    assert rate == 48000
    assert np.array_equal(samples, QUIET)
    recorder.close()


@pytest.mark.parametrize(
    "name", ["player.js", "switch_player.js", "stream_player.js", "recorder.js", "file_drop.js", "download.js", "code_box.js"]
)
def test_modules_fetch_nothing(name: str) -> None:
    text = module(name)
    assert not re.search(r"\bimport\b.*\bfrom\b|\bimport\(|https?://|\bfetch\(", text.replace("through https or", ""))
    assert len(re.findall(r"^export default", text, re.MULTILINE)) == 1
