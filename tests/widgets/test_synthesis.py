"""The synthesis panel without a browser: what is set is what is spoken, what is shown can be run, what is wrong is said in words."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import traitlets

from indextts import IndexTTS2
from indextts.audio import write_wav
from indextts.runs import render
from indextts.text.grammar import make_grammar
from tests.widgets.fake import FakeTTS
from tests.widgets.synthesis_runs import TONE, generate, send, until
from widgets import Session, SynthesisPanel
from widgets.python_call import python_call
from widgets.sound import wav_bytes, wav_samples
from widgets.stage_progress import StageBars, read_progress
from widgets.synthesis_emotion import NO_CLASSIFIER, PRESETS


@pytest.fixture
def panel(session: Session) -> Iterator[SynthesisPanel]:
    made = SynthesisPanel(session)
    yield made
    made.close()


def test_a_run_from_text_to_picture(panel: SynthesisPanel, tts: FakeTTS) -> None:
    panel.text.text.value = "Hello there."
    generate(panel)
    assert panel.state == "done"
    assert tts.calls[-1]["text"] == "Hello there."
    record = panel.session.history.get(1)
    assert np.array_equal(wav_samples(panel.result.player.wav)[1], record.samples)
    for fact in ("RTF 2.00", "0.20 s of sound", "fp32 on cpu", "3 beams", f"seed {record.request['seed']}"):
        assert fact in panel.result.caption.value
    heat, layout = panel.result.mel.figure["data"][0], panel.result.mel.figure["layout"]
    assert np.shape(heat["z"])[0] == 80
    assert layout["xaxis"]["range"] == pytest.approx([0, 0.2], abs=0.02)
    assert "kHz" in layout["yaxis"]["title"]["text"]
    assert (panel.generate_button.disabled, panel.cancel_button.disabled) == (False, True)


def test_only_what_differs_from_the_engine_is_passed_on(panel: SynthesisPanel, tts: FakeTTS) -> None:
    assert set(panel.arguments()) == {"spk_audio_prompt", "text"}
    assert panel.settings.fields["diffusion_steps"].value == tts.cfg.inference.diffusion_steps == 4
    panel.settings.fields["num_beams"].value = 1
    panel.settings.fields["inference_cfg_rate"].value = 0.0
    panel.settings.random_seed.value = False
    panel.settings.seed.value = 7
    panel.emotion.mode.value = "sliders"
    panel.emotion.preset.value = "Sad"
    panel.emotion.balance.value = False
    generate(panel)
    call = tts.calls[-1]
    assert (call["num_beams"], call["inference_cfg_rate"], call["seed"]) == (1, 0.0, 7)
    assert call["emo_vector"] == [PRESETS["Sad"].get(name, 0.0) for name in panel.emotion.sliders]
    assert "diffusion_steps" not in call
    panel.emotion.balance.value = True
    panel.emotion.sliders["angry"].value = 1.0
    assert sum(panel.emotion.vector()) <= 0.8001


@pytest.fixture(scope="module")
def real() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small") as made:
        made.normalizer.grammar = make_grammar("identity")  # loading the real one takes seconds
        yield made


@pytest.mark.filterwarnings("ignore:generation was stopped")
@pytest.mark.parametrize("stream", [False, True])
def test_every_stage_is_recognised_in_what_the_engine_reports(real: IndexTTS2, stream: bool) -> None:
    messages: list[str] = []
    arguments = {"max_mel_tokens": 24, "diffusion_steps": 2, "max_text_tokens_per_segment": 8, "seed": 1}
    pieces: list[Any] = []
    render(
        real,
        progress=lambda _, message: messages.append(message),
        on_piece=pieces.append if stream else None,
        spk_audio_prompt=real.default_voice(),
        text="Hello there. One, two, three.",
        **arguments,
    )
    seen = [read_progress(message) for message in messages]
    expected = {"prompt", "gpt", "s2mel", "done"} | ({"bigvgan"} if stream else set())  # a batch does not report its vocoder
    assert expected <= {progress.stage for progress in seen}
    assert [message for message, progress in zip(messages, seen, strict=True) if progress.stage == "prompt"] == [messages[0]]
    assert any(progress.stage == "gpt" and progress.detail == "20 codes" for progress in seen)
    assert any(progress.stage == "s2mel" and progress.detail == "step 1 of 2" and progress.fraction == 0.5 for progress in seen)
    assert all(progress.part for progress in seen if progress.stage in ("gpt", "s2mel"))
    bars = StageBars()
    bars.show(0.5, messages[-2])
    assert bars.value.count('role="progressbar"') == 5
    bars.clear()
    assert bars.value == ""


@pytest.mark.filterwarnings("default:generation was stopped")
def test_the_shown_call_makes_the_same_sound(real: IndexTTS2, tmp_path: Path) -> None:
    tts = real
    session = Session(tts)
    panel = SynthesisPanel(session)
    write_wav(tmp_path / "second.wav", TONE)
    panel.text.text.value = 'Hello there, it\'s "quoted". ' + "One two three four five six seven.\nA new line."
    panel.settings.set({"max_mel_tokens": 12, "diffusion_steps": 2, "max_text_tokens_per_segment": 20, "seed": 3})
    panel.emotion.clip.choice.value = "path"
    panel.emotion.clip.path.value = str(tmp_path / "second.wav")
    panel.emotion.mode.value = "clip"
    panel.emotion.strength.value = 0.5
    generate(panel)
    assert panel.error_text == ""
    names: dict[str, Any] = {"tts": tts}
    with pytest.warns(RuntimeWarning, match="max_mel_tokens"):
        exec(panel.code.code, names)
    assert np.array_equal(names["samples"][:, 0], session.history.get(1).samples)
    assert "Generation was stopped at its limit of 12 codes" in panel.result.notes.value
    assert panel.result.notes.value.count("12 codes") == 1
    assert "emo_alpha=0.5" in panel.code.code
    panel.close()
    session.close()


def test_code_survives_every_text() -> None:
    for text in ("short", "it's", "a \"b\" 'c'", "line\nbreak\t" * 30, "字" * 300, "back\\slash " * 20, " " * 200 + "x"):
        names: dict[str, Any] = {"tts": type("Echo", (), {"infer": staticmethod(lambda **given: (1, given))})}
        exec(python_call({"text": text, "seed": 1, "emo_vector": [0.0] * 8}), names)
        assert names["samples"] == {"text": text, "seed": 1, "emo_vector": [0.0] * 8}


def test_cancel_during_a_run(panel: SynthesisPanel, tts: FakeTTS) -> None:
    tts.hold.clear()
    task = panel.generate()
    assert task is not None
    assert tts.entered.wait(5)
    assert (panel.generate_button.disabled, panel.cancel_button.disabled) == (True, False)
    assert panel.generate() is None, "one run at a time"
    panel.cancel_button.click()
    until(lambda: panel.state == "idle")
    assert task.state == "cancelled"
    assert "Cancelled" in panel.status.value
    assert len(panel.session.history) == 0
    tts.hold.set()
    generate(panel)
    assert panel.state == "done"


def test_errors_are_said_in_the_panel(panel: SynthesisPanel, tts: FakeTTS) -> None:
    panel.text.text.value = "  "
    assert panel.generate() is None
    assert panel.error_text == "There is nothing to say: type a text."
    panel.text.text.value = "Hello."
    tts.fail = RuntimeError("the model ended every segment at once")
    generate(panel)
    assert panel.state == "error"
    assert panel.error_text == "The model ended every segment at once."
    assert "Traceback" not in panel._error.value
    tts.fail = None
    generate(panel)
    assert panel.error_text == ""


def test_streaming_plays_while_it_is_made(panel: SynthesisPanel, tts: FakeTTS, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(panel.stream, "send", lambda content, buffers=None: sent.append(content["type"]))
    panel.streaming.value = True
    assert panel.stream.layout.display == ""
    generate(panel)
    assert sent == ["begin", "piece", "piece", "end"]
    tts.fail = ValueError("no")
    generate(panel)
    assert sent[-1] == "stop"


def test_closing_cancels_and_ends_threads(session: Session, tts: FakeTTS) -> None:
    panel = SynthesisPanel(session)
    tts.hold.clear()
    task = panel.generate()
    assert task is not None
    assert tts.entered.wait(5)
    panel.close()
    assert task.wait(5)
    assert task.state == "cancelled"
    assert not session.closed
    panel.close()


# ------------------------------------------------------------------------------------------------------------------- preview


def preview_of(panel: SynthesisPanel, text: str) -> str:
    panel.text.summary.value = ""
    panel.text.text.value = text
    until(lambda: panel.text.summary.value)
    return panel.text.summary.value + panel.text.segments.value


def test_segments_follow_the_typing(panel: SynthesisPanel, tts: FakeTTS) -> None:
    text = "The river ran past the old mill. We counted one, two, three! Nobody knew why?"
    panel.settings.fields["max_text_tokens_per_segment"].value = 20
    shown = preview_of(panel, text)
    segments = tts.frontend.segments(text, 20)
    assert len(segments) > 1
    assert f"{sum(map(len, segments))} tokens in {len(segments)} segments" in shown
    assert shown.count("<li>") == len(segments)
    assert f"{len(segments[0])} tokens" in shown
    assert "Type something" in preview_of(panel, " ")
    assert "Nothing in this text can be pronounced" in preview_of(panel, "!!!")
    assert "Not in the vocabulary" in preview_of(panel, "Hello Ψ")
    assert "&lt;" in preview_of(panel, "a < b, said he")


def test_the_preview_is_throttled(panel: SynthesisPanel, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(0.6)
    shown: list[Any] = []
    monkeypatch.setattr(panel.text._latest, "_deliver", shown.append)
    for count in range(60):
        panel.text.text.value = "word " * (count + 1)
        time.sleep(0.01)
    time.sleep(1.1)
    assert 1 <= len(shown) <= 4
    assert shown[-1].segments[0][1].lower().count("word") == 60, "the last word must not be lost"


def test_the_glossary_is_live(panel: SynthesisPanel, tts: FakeTTS) -> None:
    panel.glossary.term.value, panel.glossary.english.value = "SQL", "sequel"
    panel.glossary.add_button.click()
    assert dict(tts.normalizer.glossary) == {"SQL": {"en": "sequel"}}
    assert panel.glossary.term.value == ""
    until(lambda: panel.text.summary.value)
    assert "seque" in preview_of(panel, "SQL is old.").lower().replace(" ", "")
    panel.glossary.set_term("x")
    assert "give its spoken form" in panel.glossary.message.value
    name, data = panel.glossary._saved()
    panel.glossary.remove_term("SQL")
    assert dict(tts.normalizer.glossary) == {}
    assert panel.glossary.load.take(name, data)
    assert dict(tts.normalizer.glossary) == {"SQL": {"en": "sequel"}}
    assert not panel.glossary.load.take("bad.yaml", b"[1, 2")
    assert "not valid YAML" in panel.glossary.load.message
    assert dict(tts.normalizer.glossary) == {"SQL": {"en": "sequel"}}, "a bad file must not cost what was there"


def test_what_is_not_there_is_disabled_with_the_reason(panel: SynthesisPanel) -> None:
    words = next(button for button in panel.emotion.mode.children if button.description == "Words")
    assert (words.disabled, words.tooltip) == (True, NO_CLASSIFIER)
    assert any(NO_CLASSIFIER in getattr(child, "value", "") for child in panel.emotion.children), "the reason must be readable too"
    with pytest.raises(traitlets.TraitError, match="indextts download"):
        panel.emotion.mode.value = "words"


def test_emotion_in_words_where_it_is_there(session: Session, tts: FakeTTS) -> None:
    tts.emotion_classifier = object()
    panel = SynthesisPanel(session)
    panel.emotion.mode.value = "words"
    generate(panel)
    assert tts.calls[-1]["use_emo_text"] is True
    assert "emo_text" not in tts.calls[-1]
    panel.emotion.words.value = "tired"
    generate(panel)
    assert tts.calls[-1]["emo_text"] == "tired"
    panel.close()


# ------------------------------------------------------------------------------------------------------------------- presets


def test_presets_round_trip(panel: SynthesisPanel, session: Session, tmp_path: Path) -> None:
    panel.voice.choice.value = "upload"
    send(panel.voice.upload, "mine.wav", wav_bytes(TONE, 22050))
    panel.settings.set({"num_beams": 2, "temperature": 0.5, "do_sample": False, "seed": 11})
    panel.emotion.mode.value = "sliders"
    panel.emotion.preset.value = "Wistful"
    panel.save_preset(tmp_path / "p.json")
    other = SynthesisPanel(session)
    name, data = panel.presets._saved()
    assert other.presets.load.take(name, data), other.presets.load.message
    assert other.presets.load.message == "Preset 'my voice' is in force."
    mine, theirs = panel.arguments(), other.arguments()
    for key in ("num_beams", "temperature", "do_sample", "seed", "emo_vector"):
        assert theirs[key] == mine[key], key
    from indextts.audio import load_audio

    assert np.abs(load_audio(theirs["spk_audio_prompt"].source)[0] - TONE / 32768).max() < 1e-4, "the voice must travel along"
    again = SynthesisPanel(session)
    again.load_preset(tmp_path / "p.json")
    assert again.settings.arguments() == panel.settings.arguments()
    again.close()
    other.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "no preset"),
        ({"version": 9}, "version 9"),
        ({"voice": {"kind": "bundled", "name": "gone.wav"}}, "have no clip 'gone.wav'"),
        ({"voice": {"kind": "sound", "flac": "%%%"}}, "no sound that can be read"),
        ({"voice": 3}, "must be a mapping"),
        ({"voice": {"kind": "file", "path": "/nowhere/x.wav"}}, "no such file"),
        ({"settings": {"beams": 3}}, "no setting 'beams'"),
        ({"settings": {"num_beams": 99}}, "num_beams must be a whole number between 1 and 10"),
        ({"settings": {"do_sample": "yes"}}, "true or false"),
        ({"settings": {"seed": -1}}, "must be a whole number between 0 and 9007199254740991"),
        ({"emotion": {"mode": "dance"}}, "with a mode"),
        ({"emotion": {"mode": "words"}}, "indextts download"),
        ({"emotion": {"mode": "sliders", "values": {"joy": 1}}}, "must be named happy"),
        ({"emotion": {"mode": "sliders", "values": {"happy": 7}}}, "between 0 and 1"),
    ],
)
def test_bad_presets_change_nothing(panel: SynthesisPanel, change: dict[str, Any], message: str) -> None:
    panel.settings.set({"num_beams": 2, "seed": 5})
    before = panel.preset()
    stored = {**json.loads(panel.presets._saved()[1]), **change}
    stored["settings"] = {"temperature": 0.3, **stored["settings"]}
    assert not panel.presets.load.take("p.json", json.dumps(stored).encode())
    assert message in panel.presets.load.message
    assert panel.preset() == before
    assert not panel.presets.load.take("p.json", b"{")
    assert "no JSON" in panel.presets.load.message


def test_a_seed_can_be_kept(panel: SynthesisPanel) -> None:
    assert panel.keep_seed.disabled
    generate(panel)
    panel.keep_seed.click()
    seed = panel.session.history.get(1).request["seed"]
    assert panel.arguments()["seed"] == seed
    assert f"seed={seed}" in panel.code.code
