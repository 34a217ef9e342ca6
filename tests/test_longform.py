"""If this fails, a book is read in the wrong order, with lost or repeated sentences, or starts again after every stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from indextts import IndexTTS2
from indextts.bench import made_up_clip
from indextts.longform import Pauses, infer_long
from indextts.longform_parts import PartStore, join
from indextts.longform_text import read_script, split_sentences

VOICE = made_up_clip(0.5)
OTHER = (22050, made_up_clip(1.0)[1][11025:])
QUICK: dict[str, Any] = {"max_mel_tokens": 6, "diffusion_steps": 1, "num_beams": 1}
BOOK = "The ferry came in. Nobody was waiting!\n\nWas it late? [pause 40ms] It was.\n\n***\n\nThe end."


@pytest.fixture(autouse=True)
def _cut_off() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "generation was stopped at max_mel_tokens", RuntimeWarning)
        warnings.filterwarnings("ignore", ".* not in the vocabulary", UserWarning)
        yield


@pytest.fixture(scope="module")
def engine() -> Iterator[IndexTTS2]:
    with IndexTTS2.from_random("small", device="cpu") as tts:
        yield tts


class TestText:
    @pytest.mark.parametrize(
        ("text", "sentences"),
        [
            ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
            ("Dr. Wu met J. R. Ewing at 7.45 p.m. Then she left.", ["Dr. Wu met J. R. Ewing at 7.45 p.m. Then she left."]),
            ("She met Dr. J. R. Ewing at 7.45. Then she left.", ["She met Dr. J. R. Ewing at 7.45.", "Then she left."]),
            ('"Really?" she said. "Yes!" He left...', ['"Really?" she said.', '"Yes!"', "He left..."]),
            ("你好。世界！好吗？ok", ["你好。", "世界！", "好吗？", "ok"]),
            ("It is I. You know.", ["It is I.", "You know."]),
            ("a line\nbreak  means   nothing.", ["a line break means nothing."]),
            ("", []),
        ],
    )  # fmt: skip
    def test_sentences(self, text: str, sentences: list[str]) -> None:
        assert split_sentences(text) == sentences

    def test_pauses_follow_the_punctuation(self) -> None:
        pauses = Pauses(full_stop=1, question=2, exclamation=3, ellipsis=4, other=5, line=6, paragraph=7)
        script = read_script("A b. C d? E f! G h... I j\n\nNext.", pauses=pauses)
        assert [sentence.pause_ms for sentence in script] == [1, 2, 3, 4, 7, 7]
        assert [sentence.line for sentence in script] == [1, 1, 1, 1, 1, 3]

    def test_inline_pauses(self) -> None:
        script = read_script("[pause 1s] One. [pause 20ms] Two [pause: 0.5 s][PAUSE 1 s] three.")
        assert [(sentence.text, sentence.pause_ms) for sentence in script] == [("", 1000), ("One.", 20), ("Two", 1500), ("three.", 700)]
        assert read_script("Keep [this] text.")[0].text == "Keep [this] text."

    @pytest.mark.parametrize("mark", ["[pause]", "[pause soon]", "[pause 5 m]", "[pause -1s]", "[pause 61 s]"])
    def test_a_pause_without_a_sensible_length_names_its_line(self, mark: str) -> None:
        with pytest.raises(ValueError, match="line 3: "):
            read_script(f"One.\n\nTwo. {mark} Three.")

    def test_a_script_with_voices(self) -> None:
        script = read_script("Anna: Hello. Bye.\nBOB：No.\nNote: well.\n\nThe end.", ["Anna", "Bob"])
        assert [(sentence.speaker, sentence.text) for sentence in script] == [
            ("Anna", "Hello."), ("Anna", "Bye."), ("Bob", "No."), (None, "Note: well."), (None, "The end."),
        ]  # fmt: skip

    def test_a_misspelt_name_is_not_read_out(self) -> None:
        with pytest.raises(ValueError, match=r"line 2: there is no voice 'Ana'; did you mean 'Anna'\? Known: Anna, Bob"):
            read_script("Bob: Hi.\nAna: Hello.", ["Anna", "Bob"])

    @pytest.mark.parametrize("text", ["", " \n\n", "[pause 1s]"])
    def test_nothing_to_say(self, text: str) -> None:
        with pytest.raises(ValueError, match="text is empty"):
            read_script(text)

    def test_a_long_text_takes_time_in_proportion(self) -> None:
        begin = time.perf_counter()
        assert len(read_script("It was late. " * 20_000)) == 20_000
        assert time.perf_counter() - begin < 10


class TestParts:
    def test_joined_in_order_with_silences(self, tmp_path: Path) -> None:
        with PartStore(tmp_path / "parts") as store:
            parts = [store.put(key, np.full(10, value, np.int16)) for key, value in (("a", 1), ("b", 2))]
            join(store, [100_000, parts[1], 3, parts[0]], tmp_path / "out.wav", 22050)
        samples = soundfile.read(tmp_path / "out.wav", dtype="int16")[0]
        assert np.array_equal(samples[100_000:], [2] * 10 + [0] * 3 + [1] * 10)
        assert not samples[:100_000].any()

    def test_a_torn_journal_and_a_damaged_part_cost_only_what_they_held(self, tmp_path: Path) -> None:
        with PartStore(tmp_path) as store:
            for key in "abc":
                store.put(key, np.arange(5, dtype=np.int16))
        (tmp_path / "a.pcm").write_bytes(b"0123456789")
        journal = (tmp_path / "journal.jsonl").read_bytes()
        (tmp_path / "journal.jsonl").write_bytes(journal[:-20] + b"\n\xff{}[]\n1\n")
        with PartStore(tmp_path) as store:
            assert [key for key in "abc" if store.get(key)] == ["b"]

    def test_a_line_torn_at_the_end_does_not_swallow_the_next(self, tmp_path: Path) -> None:
        (tmp_path / "journal.jsonl").write_bytes(b'{"key": "a", "sam')
        with PartStore(tmp_path) as store:
            store.put("b", np.arange(5, dtype=np.int16))
        with PartStore(tmp_path) as store:
            assert store.get("b") is not None

    def test_names_in_a_journal_lead_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "journal.jsonl").write_text(json.dumps({"key": "../../x", "samples": 1, "sha256": "0"}) + "\n")
        with PartStore(tmp_path) as store:
            assert store.get("../../x") is None

    def test_two_runs_at_once(self, tmp_path: Path) -> None:
        pytest.importorskip("fcntl")
        with PartStore(tmp_path), pytest.raises(RuntimeError, match="another run is working on"):
            PartStore(tmp_path)
        PartStore(tmp_path).close()

    def test_a_full_disk_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = tmp_path / "out.wav"
        out.write_bytes(b"old")

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(soundfile.SoundFile, "write", full)
        with PartStore(tmp_path / "parts") as store:
            part = store.put("a", np.arange(5, dtype=np.int16))
            with pytest.raises(OSError, match="No space left"):
                join(store, [part], out, 22050)
        assert out.read_bytes() == b"old"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out.wav", "parts"]


def long(engine: IndexTTS2, path: Path, text: str = BOOK, **options: Any) -> Any:
    return infer_long(engine, VOICE, text, path, **{**QUICK, **options})


class TestRendering:
    def test_every_sentence_once_in_order_and_the_folder_is_gone(self, engine: IndexTTS2, tmp_path: Path) -> None:
        seen: list[tuple[float, str]] = []
        result = long(engine, tmp_path / "book.wav", progress=lambda *report: seen.append(report))
        assert (result.sentences, result.made, result.found, result.skipped) == (5, 5, 0, 1)
        assert list(tmp_path.iterdir()) == [tmp_path / "book.wav"]
        assert soundfile.info(tmp_path / "book.wav").duration == pytest.approx(result.audio_s)
        fractions = [fraction for fraction, _ in seen]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
        assert any(" left" in message for _, message in seen)

    def test_one_changed_sentence_is_the_only_one_made_again(self, engine: IndexTTS2, tmp_path: Path) -> None:
        path = tmp_path / "book.wav"
        long(engine, path, keep_parts=True)
        assert long(engine, path, keep_parts=True).made == 0
        assert long(engine, path, BOOK.replace("It was.", "It was not."), keep_parts=True).made == 1
        assert long(engine, path, keep_parts=True, seed=1).made == 5
        assert long(engine, path, keep_parts=True, diffusion_steps=2).made == 5

    def test_stopped_anywhere_it_goes_on_to_the_same_bits(self, engine: IndexTTS2, tmp_path: Path) -> None:
        whole, path = tmp_path / "whole.wav", tmp_path / "book.flac"
        long(engine, whole)

        def stop(_: float, message: str) -> None:
            if message.startswith(("sentence 2 of", "sentence 4 of")) and "left" in message:
                raise KeyboardInterrupt

        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                long(engine, path, progress=stop)
            assert not path.exists()
        result = long(engine, path)
        assert result.found == 4
        assert np.array_equal(soundfile.read(path, dtype="int16")[0], soundfile.read(whole, dtype="int16")[0])

    def test_batches_survive_a_stop_bit_by_bit(self, engine: IndexTTS2, tmp_path: Path) -> None:
        long(engine, tmp_path / "whole.wav", batch_size=2)

        def stop(_: float, message: str) -> None:
            if message.startswith("sentence 3 of") and "left" in message:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            long(engine, tmp_path / "book.wav", batch_size=2, progress=stop)
        assert long(engine, tmp_path / "book.wav", batch_size=2).found in (2, 3)
        assert (tmp_path / "book.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()

    def test_voices_of_a_script(self, engine: IndexTTS2, tmp_path: Path) -> None:
        script = "Anna: Hello there.\nBob: Hello there."
        options = {"voices": {"Anna": VOICE, "Bob": OTHER}, "keep_parts": True, **QUICK}
        infer_long(engine, None, script, tmp_path / "a.wav", **options)
        keys = [json.loads(line)["key"] for line in (tmp_path / "a.wav.parts" / "journal.jsonl").read_text().splitlines()]
        first, second = (np.fromfile(tmp_path / "a.wav.parts" / f"{key}.pcm", "<i2") for key in keys)
        assert not np.array_equal(first, second)
        with pytest.raises(ValueError, match="line 3 names no voice"):
            infer_long(engine, None, script + "\nThe end.", tmp_path / "a.wav", **options)

    def test_a_sentence_that_ends_at_once_is_tried_with_other_seeds(
        self, engine: IndexTTS2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seeds = []

        def silent_once(_: Any, requests: list[dict[str, Any]]) -> Any:
            seeds.append(requests[0]["seed"])
            if len(seeds) < 2:
                raise RuntimeError("the model ended every segment at once, so there is no sound")
            return [(22050, np.ones((9, 1), np.int16))]

        monkeypatch.setattr(IndexTTS2, "infer_batch", silent_once)
        result = infer_long(engine, VOICE, "Hello there.", tmp_path / "a.wav")
        assert result.audio_s == pytest.approx(9 / 22050)
        assert seeds[1] == seeds[0] + 1

    @pytest.mark.parametrize(
        ("changes", "kind", "why"),
        [
            ({"text": "?! ..."}, ValueError, "nothing in this text can be pronounced"),
            ({"text": 3}, TypeError, "text must be str"),
            ({"output_path": "x.mp3"}, ValueError, "must end in .wav or .flac"),
            ({"num_beams": 0}, ValueError, "num_beams"),
            ({"nonsense": 0}, TypeError, "nonsense"),
            ({"stream_return": True}, TypeError, "no argument stream_return"),
            ({"batch_size": 0}, ValueError, "batch_size"),
            ({"voice": "nowhere.wav"}, FileNotFoundError, "no such file"),
        ],
    )
    def test_bad_input_leaves_nothing_behind(
        self, engine: IndexTTS2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], kind: Any, why: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(kind, match=why):
            infer_long(engine, **{"voice": VOICE, "text": BOOK, "output_path": "book.wav", **QUICK, **changes})
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_keeps_what_is_finished(self, engine: IndexTTS2, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import indextts.longform_parts as parts

        replace_file, count = parts.replace_file, []

        def full(path: Path, content: bytes) -> None:
            count.append(1)
            if len(count) == 3:
                raise OSError(28, "No space left on device", str(path))
            replace_file(path, content)

        monkeypatch.setattr(parts, "replace_file", full)
        with pytest.raises(OSError, match="No space left"):
            long(engine, tmp_path / "book.wav")
        assert long(engine, tmp_path / "book.wav").found == 2


CHILD = """
import sys, warnings
warnings.simplefilter("ignore")
from tests.test_longform import *
with IndexTTS2.from_random("small", device="cpu") as tts:
    print("ready", flush=True)
    long(tts, Path(sys.argv[1]), progress=lambda *report: print(report[1], flush=True))
"""


def test_a_killed_process_goes_on_to_the_same_bits(engine: IndexTTS2, tmp_path: Path) -> None:
    import torch

    path = tmp_path / "book.wav"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", CHILD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1], env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("sentence 2 of") and "left" in line:
                break
        child.send_signal(signal.SIGKILL)
    assert not path.exists()
    result = long(engine, path)
    assert result.found >= 2
    long(engine, tmp_path / "whole.wav")
    assert path.read_bytes() == (tmp_path / "whole.wav").read_bytes()
