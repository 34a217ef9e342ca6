"""If this fails, ``indextts evaluate`` breaks off in the middle of an hour's work, or measures something else than it says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from indextts import IndexTTS2, cli
from indextts.bench import made_up_clip
from indextts.evaluate import likeness, render, run, sections, sources, texts
from indextts.evaluate.copies import copies, vocoded
from indextts.evaluate.render import Clones
from indextts.evaluate.run import SECTIONS, Amounts, evaluate
from indextts.evaluate.sources import Voice, find_voices, trained_on
from indextts.evaluate.words import spoken_words

FEW = Amounts(voices=2, sentences=1, sources=1, digits=2, endings=2, copies=1, settings=1, emotions=1)


@pytest.fixture(scope="module")
def tts() -> Any:
    with IndexTTS2.from_random("small", device="cpu") as engine:
        yield engine


class Judge:
    """Understands everything, whatever it hears."""

    said = ""

    def transcribe(self, samples: Any, rate: int) -> str:
        return self.said

    digits = transcribe

    def choose(self, samples: Any, rate: int, sentences: Any) -> str:
        return " ".join(spoken_words(sentences[0]))

    def ending(self, samples: Any, rate: int, text: str) -> int:
        return -2 if rate == 22050 else 0


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the packages, which have tests of their own."""
    monkeypatch.setattr(sections, "recogniser", Judge)
    monkeypatch.setattr(run, "needed", lambda module: None)
    monkeypatch.setattr(render, "_RANDOM_CODES", 8)
    monkeypatch.setattr(likeness, "dnsmos", lambda samples, rate: 2.0)
    monkeypatch.setattr(likeness, "embed", lambda samples, rate: likeness._unit(np.array([1.0, float(rate == 22050)], np.float32)))
    monkeypatch.setattr(sources, "synthesisers", lambda bundles=(): {"flite-slt": _speak, "flite-rms": _speak})


def _speak(text: str) -> tuple[np.ndarray, int]:
    return made_up_clip(1.0)[1].astype(np.float32), 16000


def test_every_section_runs_on_random_weights(tts: IndexTTS2, judges: None, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = {"import_s": 1.0, "load_s": 2.0, "first": {"rtf": 0.5, "audio_s": 3.0}, "again": {"rtf": 0.4}, "peak_mb": 900.0}
    monkeypatch.setattr(run, "resources", lambda engine, size, voice: dict(measured))
    infer = tts.infer  # one step is enough to see that all is called
    monkeypatch.setattr(tts, "infer", lambda *given, **named: infer(*given, **{**named, "diffusion_steps": 1, "num_beams": 1}))
    precision, heard = tts.precision, []
    report = evaluate(tts, amounts=FEW, tick=heard.append)
    assert list(report.sections) == list(SECTIONS)
    assert all(report.sections.values())
    assert set(SECTIONS) <= set(heard)
    assert tts.precision == precision
    assert report.setup["weights"] == "random"
    clone, source = report.sections["voices"][:2]
    assert (clone["voice"], clone["kind"], clone["wer"], clone["choice"]) == ("flite-slt", "clone", 1.0, 1.0)
    assert (source["kind"], clone["heard"]) == ("source", False), "random weights have heard nobody"
    ending = report.sections["endings"][0]
    assert (ending["texts"], ending["cut_off"], ending["run_on"]) == (2, 2, 0)
    assert report.sections["endings"][1]["cut_off"] == 0
    assert [row["what"] for row in report.sections["copies"]] == ["source", "mel + Griffin-Lim", "mel + vocoder", "codes copy", "clone"]
    tried = {row["setting"] for row in report.sections["settings"]}
    assert {"defaults", "1 beam", "3 beams", "25 steps", "6 steps", "no guidance", "bf16"} <= tried
    assert [row["emotion"] for row in report.sections["emotions"][1:]] == list(sections.EMOTIONS)
    assert report.sections["joins"][0]["joins"] > 4
    json.dumps(report.to_dict(), allow_nan=False)
    assert "| aim" in str(report)


def test_given_clips_are_cloned_and_others_only_stand_beside(judges: None, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "anna.wav", *reversed(made_up_clip(1.0)))
    soundfile.write(tmp_path / "flite-slt.wav", *reversed(made_up_clip(1.0)))
    voices = find_voices([tmp_path / "anna.wav", tmp_path / "flite-slt.wav"], count=3, heard=trained_on, clone=False)
    assert [(v.name, v.judged, v.heard, v.speak is not None) for v in voices] == [
        ("anna", True, False, False),
        ("flite-slt", True, True, True),
        ("flite-rms", False, True, True),
    ]


def test_no_voice_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "synthesisers", lambda bundles=(): {})
    with pytest.raises(ValueError, match="no voice to clone"):
        find_voices([])


def test_no_timbre_held_out_of_training_counts_as_heard() -> None:
    assert trained_on("flite-slt")
    assert trained_on("espeak-en-us+f2")
    assert not trained_on("espeak-en-us+f4")
    assert not trained_on("somebody")


def test_equal_requests_are_rendered_once_and_failures_are_silence(tts: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
    rate, samples = made_up_clip(1.0)
    voice = Voice("anna", (samples.astype(np.float32), rate), None, False)
    clones = Clones(tts)
    first = clones.clone(voice, "Hello there.")
    assert first is clones.clone(voice, "Hello there.")
    assert first.record is not None
    assert clones.source(voice, "Hello there.") is None
    clones.forget()
    assert np.array_equal(clones.clone(voice, "Hello there.").samples, first.samples), "the same seed, the same sound"
    monkeypatch.setattr(tts, "infer", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no sound")))
    silent = clones.clone(voice, "Another.")
    assert silent.record is None
    assert not silent.samples.any()


def test_every_pair_of_voice_and_text_has_draws_of_its_own() -> None:
    seeds: list[int] = []

    class Engine:
        release, sample_rate, last_telemetry = None, 100, None

        def infer(self, *_: object, seed: int, **__: object) -> tuple[int, np.ndarray]:
            seeds.append(seed)
            return 100, np.zeros(50, np.int16)

    sound = (np.zeros(100, np.float32), 100)
    anna, ben = Voice("anna", sound, None, False), Voice("ben", sound, None, False)
    for base in (0, 0, 7):
        clones = Clones(Engine(), base)  # type: ignore[arg-type]
        for voice, text in ((anna, "One."), (anna, "Two."), (ben, "One.")):
            clones.clone(voice, text)
            clones.clone(voice, text, num_beams=3)  # settings are compared with the same draws
    assert len(set(seeds[:6])) == 3
    assert seeds[::2] == seeds[1::2]
    assert seeds[:6] == seeds[6:12]
    assert not set(seeds[:6]) & set(seeds[12:])


def test_copies_last_as_long_as_their_source(tts: IndexTTS2) -> None:
    rate, samples = made_up_clip(1.5)
    made = copies(tts, (samples.astype(np.float32), rate), "One two three.", (samples.astype(np.float32), rate))
    for name, clip in made.items():
        assert len(clip.samples) / clip.rate == pytest.approx(1.5, abs=0.06), name
        assert np.abs(clip.samples).max() <= 1
    again = vocoded(tts, (samples.astype(np.float32), rate))
    assert np.array_equal(again.samples, made["mel + vocoder"].samples)


def test_texts_are_fixed_plain_and_distinct() -> None:
    assert len(set(texts.SENTENCES)) == 100
    assert len(set(texts.CHOICES)) == 40
    assert all(text.isascii() and text[-1] in ".?!" and not any(c.isdigit() for c in text) for text in texts.SENTENCES)
    assert texts.digit_strings(2) == ["six seven seven nine seven nine", "zero four nine six nine one"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "voices", "songs"), "no section songs"),
        (("--sentences", "0"), "--sentences must be between 1 and 40"),
        (("--voice", "none.wav"), "none.wav"),
        (("--synth", "nowhere"), "no unpacked bundle"),
        (("--json", "."), "is a folder"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_engine", lambda _: pytest.fail("the engine was opened"))
    assert cli.main(["evaluate", "--random-weights", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_writes_json_and_a_table(judges: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "result.json"
    code = cli.main(["evaluate", "--random-weights", "--device", "cpu", "--quick", "--only", "digits", "--json", str(out)])
    assert code == 0
    assert json.loads(out.read_text())["targets"][0]["name"] == "digits WER"
    assert "digits WER" in capsys.readouterr().out


def test_a_missing_judge_stops_it_at_once(tts: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> SimpleNamespace:
        raise ImportError(f"indextts evaluate needs {module}: pip install 'indextts2-lab[train]'")

    monkeypatch.setattr(run, "needed", missing)
    monkeypatch.setattr(run, "find_voices", lambda *_, **__: pytest.fail("work was begun"))
    with pytest.raises(ImportError, match="pip install"):
        evaluate(tts, only=("voices",), amounts=FEW)
    with pytest.raises(ValueError, match="no section"):
        evaluate(tts, only=("songs",))
