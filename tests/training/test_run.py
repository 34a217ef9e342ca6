"""A whole training run in miniature, on sound made here: every stage learns, resumes, and the release it exports speaks.

If this fails, nobody can remake the bundled voice.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from indextts import IndexTTS2
from indextts.training.acoustic import train_s2mel
from indextts.training.codec import train_codec
from indextts.training.coding import CodedCorpus, code_shards
from indextts.training.corpus import Corpus
from indextts.training.encoder import train_encoder
from indextts.training.export import export_release
from indextts.training.language_model import _companions, train_gpt
from indextts.training.loop import StageSettings, Trainer
from indextts.training.make_data import STOP_FILE
from indextts.training.parts import load_part, save_part, state_of
from indextts.training.samples import render_samples
from indextts.training.speaker import train_speaker
from indextts.training.vocoder import train_vocoder
from tests.training.made_up import write_shards

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards, in which every stage has run once."""
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("training")
    shards = write_shards(home / "shards")
    (shards / STOP_FILE).touch()
    speech = Corpus(shards, CPU)
    speech.refresh()
    train_encoder(speech, settings(home, 30))
    train_speaker(speech, settings(home, 15))
    train_codec(speech, settings(home, 30))
    code_shards(shards, home / "coded", settings(home, 1))
    coded = CodedCorpus(shards, home / "coded", CPU)
    coded.refresh()
    train_gpt(coded, settings(home, 30))
    train_s2mel(coded, settings(home, 80))  # most rows are in a voice that nobody has, each in another one
    train_s2mel(coded, settings(home, 5), latents_from=home / "parts" / "gpt.part.safetensors")
    train_vocoder(speech, settings(home, 20))
    return home


def settings(home: Path, steps: int) -> StageSettings:
    return StageSettings(home / "parts", home / "logs", CPU, 300, 300, steps, size="miniature", batch=0.04, warmup_steps=5)


def column(home: Path, stage: str, name: str) -> list[float]:
    with (home / "logs" / f"{stage}.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("stage", "name", "factor"),
    [
        ("encoder", "phone", 0.9),
        ("codec", "phone", 0.95),
        ("speaker", "loss", 0.98),
        ("gpt", "codes", 0.95),
        ("s2mel", "loss", 0.95),
        ("vocoder", "mel", 0.9),
    ],
)
def test_every_stage_learns(folder: Path, stage: str, name: str, factor: float) -> None:
    curve = column(folder, stage, name)
    assert min(curve[-2:]) < factor * curve[0], curve


def test_discriminators_come_in_and_are_kept(folder: Path) -> None:
    assert column(folder, "vocoder", "fooling")[-1] > 0
    assert load_part(folder / "parts", "discriminator")[1]["steps"] > 0


def test_a_stage_goes_on_where_it_stopped(folder: Path) -> None:
    coded = CodedCorpus(folder / "shards", folder / "coded", CPU)
    coded.refresh()
    before = load_part(folder / "parts", "gpt")[1]["steps"]
    curve = column(folder, "gpt", "codes")
    train_gpt(coded, settings(folder, 10))
    assert load_part(folder / "parts", "gpt")[1]["steps"] > before
    assert column(folder, "gpt", "codes")[len(curve)] < 0.97 * curve[0]


def test_planned_time_goes_on_or_is_counted_afresh(tmp_path: Path) -> None:
    plain = dataclasses.replace(settings(tmp_path, 0), plan_s=1000.0)
    save_part(plain.parts, "extra", state_of({"extra": torch.nn.Linear(2, 2)}), steps=7, seconds=500.0)
    for afresh, passed in ((False, 0.5), (True, 0.0)):
        trainer = Trainer("extra", {"extra": torch.nn.Linear(2, 2)}, dataclasses.replace(plain, afresh=afresh), peak=1.0)
        assert trainer.resumed
        assert trainer.progress == pytest.approx(passed, abs=0.01)
        trainer.save()
        assert load_part(plain.parts, "extra")[1]["seconds"] >= 500, "what a part took in all is told either way"


def test_latents_enter_only_when_asked_for(folder: Path, tmp_path: Path) -> None:
    assert load_part(folder / "parts", "s2mel")[0]["s2mel.gpt_layer.2.weight"].abs().max() > 0
    for name in ("codec", "encoder"):
        (tmp_path / "parts").mkdir(exist_ok=True)
        source = folder / "parts" / f"{name}.part.safetensors"
        (tmp_path / "parts" / source.name).write_bytes(source.read_bytes())
    coded = CodedCorpus(folder / "shards", folder / "coded", CPU)
    coded.refresh()
    train_s2mel(coded, settings(tmp_path, 3))
    assert load_part(tmp_path / "parts", "s2mel")[0]["s2mel.gpt_layer.2.weight"].abs().max() == 0


def test_samples_are_rendered(folder: Path) -> None:
    coded = CodedCorpus(folder / "shards", folder / "coded", CPU)
    coded.refresh()
    paths = render_samples(coded, settings(folder, 30), folder / "samples")
    assert len(paths) == 16
    assert all(path.stat().st_size > 44 for path in paths)


@pytest.mark.filterwarnings("ignore:generation was stopped:RuntimeWarning")
def test_the_exported_release_speaks(folder: Path, tmp_path: Path, speech_clip: Callable[[], tuple[int, object]]) -> None:
    release = export_release(folder / "parts", tmp_path / "release", "miniature")
    assert not list(release.rglob("*.pth"))
    with IndexTTS2(model_dir=release, use_qwen_emo=False, device="cpu") as tts:
        assert tts.cfg.inference.num_beams == 1
        out = tts.infer(speech_clip(), "A small voice.", tmp_path / "out.wav", emo_vector=[0, 0, 0.5, 0, 0, 0, 0, 0], seed=1)
        assert Path(out).stat().st_size > 1000
        assert tts.frontend.segments("Hello, world!")[0].unknown == ()


@pytest.fixture
def speech_clip() -> Callable[[], tuple[int, object]]:
    import numpy as np

    from tests.training.made_up import utterance

    return lambda: (22050, utterance(np.random.default_rng(5), 1).samples)


def test_the_longest_of_several_companions_is_of_the_same_speaker(folder: Path) -> None:
    coded = CodedCorpus(folder / "shards", folder / "coded", CPU)
    coded.refresh()
    ids = np.arange(len(coded))
    usual, long = coded.companions(ids, same_style=False), coded.companions(ids, same_style=False, longest_of=5)
    assert (coded.speakers[long] == coded.speakers[ids]).all()
    assert coded.tokens[long].mean() > coded.tokens[usual].mean()


def test_of_several_companions_the_one_is_taken_that_comes_nearest_in_pace(folder: Path) -> None:
    coded = CodedCorpus(folder / "shards", folder / "coded", CPU)
    coded.refresh()
    coded.tempo[:5], coded.paused[:5] = [1.4, 1.9, 1.41, 1.4, np.nan], [0.0, 0.0, 0.0, 0.2, 0.0]
    ids = np.zeros(4, np.int64)
    drawn = np.array([[1, 4, 3, 4], [2, 3, 2, 4], [3, 1, 1, 4]])
    assert coded.in_pace(ids, drawn).tolist() == [2, 3, 2, 4]


def test_manner_comes_from_clips_of_the_same_tempo(folder: Path) -> None:
    coded = CodedCorpus(folder / "shards", folder / "coded", CPU)
    coded.refresh()
    rng = np.random.default_rng(0)
    coded.speakers[:], coded.styles[:] = 0, 0
    coded.tempo[:], coded.paused[:] = rng.normal(1.4, 0.2, len(coded)), 0.0
    ids = np.arange(len(coded)).repeat(20)
    usual = coded.companions(ids, same_style=True)
    _, manner = _companions(coded, ids, 1)
    apart, usually = (np.abs(coded.tempo[chosen] - coded.tempo[ids]).mean() for chosen in (manner, usual))
    assert apart < 0.4 * usually
