"""If this fails, prompts are read wrongly, bad prompts are blamed on something else, or a failed write destroys a file."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from indextts.audio import content_key, emotion_waveform, load_audio, pcm16, speaker_waveforms, write_wav


def tone(rate: int = 22050, seconds: float = 1.0, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A noisy tone (n, channels) in [-1, 1], float32; each channel differs."""
    time = np.arange(int(rate * seconds)) / rate
    noise = np.random.RandomState(seed).standard_normal((time.size, channels))
    return (0.3 * np.sin(2 * np.pi * 220 * time)[:, None] * np.arange(1, channels + 1) / channels + 0.02 * noise).astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"), [("wav", "PCM_16", 4e-5), ("wav", "FLOAT", 0), ("flac", "PCM_24", 1e-6), ("aiff", "PCM_16", 4e-5)]
)
def test_lossless_files_give_their_samples_mixed_to_mono(tmp_path: Path, suffix: str, subtype: str, tolerance: float) -> None:
    stereo = tone(24000, channels=2)
    path = tmp_path / f"voice.{suffix}"
    soundfile.write(path, stereo, 24000, subtype=subtype)
    mono, rate = load_audio(path)
    assert rate == 24000
    assert mono.dtype == np.float32
    np.testing.assert_allclose(mono, stereo.mean(axis=1), atol=tolerance, rtol=0)
    again, _ = load_audio(str(path))
    np.testing.assert_array_equal(again, mono)


@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_compressed_files_are_decoded(tmp_path: Path, suffix: str) -> None:
    wave = tone(44100)
    path = tmp_path / f"voice.{suffix}"
    soundfile.write(path, wave, 44100)
    mono, rate = load_audio(path)
    assert rate == 44100
    assert np.sqrt(np.mean(mono**2)) == pytest.approx(float(np.sqrt(np.mean(wave**2))), rel=0.05)


def test_every_way_of_giving_samples_is_the_same_prompt(tmp_path: Path) -> None:
    integers = np.round(tone(16000, channels=2) * 32767).astype(np.int16)
    path = tmp_path / "voice.wav"
    soundfile.write(path, integers, 16000, subtype="PCM_16")
    from_file, _ = load_audio(path)
    floats = integers.astype(np.float32) / 32768
    sources = [
        (16000, integers),
        (16000, integers.T),
        (np.int64(16000), integers.astype(np.int32) * 65536),
        (16000.0, floats.astype(np.float64)),
        (16000, torch.from_numpy(floats).T),
        (16000, torch.from_numpy(integers)),
    ]
    for source in sources:
        mono, rate = load_audio(source)
        assert rate == 16000
        np.testing.assert_array_equal(mono, from_file)
    with torch.inference_mode():
        mono, _ = load_audio(torch.from_numpy(floats), sample_rate=16000)
    np.testing.assert_array_equal(mono, from_file)
    mono, _ = load_audio(torch.from_numpy(floats[:, 0]).requires_grad_(), sample_rate=16000)
    np.testing.assert_array_equal(mono, floats[:, 0])


def test_what_infer_returns_can_be_the_next_prompt() -> None:
    spoken = np.round(tone()[:, :1] * 32767).astype(np.int16)  # (samples, 1), as infer returns it
    mono, rate = load_audio((22050, spoken))
    np.testing.assert_array_equal(mono, spoken[:, 0].astype(np.float32) / 32768)
    assert rate == 22050


def test_unsigned_bytes_are_centred() -> None:
    wave = tone(8000)[:, 0]
    mono, _ = load_audio((8000, np.round(wave * 127 + 128).astype(np.uint8)))
    np.testing.assert_allclose(mono, wave, atol=0.01)


def test_the_callers_array_is_left_alone() -> None:
    wave = tone()[:, 0]
    kept = wave.copy()
    wave.setflags(write=False)
    mono, rate = load_audio((22050, wave))
    speaker_waveforms(mono, rate)
    emotion_waveform(mono, rate)
    np.testing.assert_array_equal(wave, kept)


# -------------------------------------------------------------------------------------------------------- bad prompts


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"emotion voice '.*nobody\.wav': no such file"):
        load_audio(tmp_path / "nobody.wav", role="emotion voice")


@pytest.mark.parametrize("text", ["It was a dark and stormy night. " * 20, "a\0b"])
def test_text_in_the_place_of_the_voice_is_no_file(text: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_audio(text)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("text.wav", b"this is not audio at all, only text " * 40, "cannot be decoded.*ffmpeg -i text.wav"),
        ("clip.m4a", b"\x00\x00\x00\x20ftypM4A " + bytes(2000), "cannot be decoded.*WAV, FLAC, OGG and MP3"),
        ("headerless.raw", bytes(2000), "cannot be decoded"),
        ("cut.wav", b"RIFF\x24\x00", "cannot be decoded"),
        ("nothing.wav", b"", "is empty"),
    ],
)
def test_undecodable_files_say_which_and_what_to_do(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"reference voice '.*{name}' {why}"):
        load_audio(tmp_path / name)


def test_folder_is_not_audio(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        load_audio(tmp_path)


def test_file_without_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros((0, 1), np.float32), 22050)
    with pytest.raises(ValueError, match=r"empty\.wav' is empty: it holds no samples"):
        load_audio(tmp_path / "empty.wav")


def test_file_with_nan(tmp_path: Path) -> None:
    wave = tone()
    wave[100] = np.nan
    soundfile.write(tmp_path / "nan.wav", wave, 22050, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"nan\.wav' holds NaN"):
        load_audio(tmp_path / "nan.wav")


def with_value(value: float) -> np.ndarray:
    wave = tone(channels=2).astype(np.float64)
    wave[5, 1] = value
    return wave


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ((22050, tone(seconds=0.29)), r"too short: 0\.290 s"),
        ((22050, np.zeros(0, np.float32)), "no samples"),
        ((22050, with_value(math.inf)), "NaN or infinite"),
        ((22050, with_value(math.nan)), "NaN or infinite"),
        ((22050, with_value(1e300)), "NaN or infinite"),
        ((22050, np.full((9000, 2), [math.inf, -math.inf])), "NaN or infinite"),
        ((22050, np.zeros((0, 2), np.float32)), "no samples"),
        ((22050, np.zeros(22050, np.float32)), "silent: all samples are zero"),
        ((22050, tone() * 1e-5), r"silent: its peak is -1\d\d dBFS"),
        ((22050, np.concatenate([tone(), -tone()], axis=1)), "silent"),
        ((22050, np.concatenate([np.zeros((22050 * 16, 1)), tone()])), "silent.*first 15 s"),
        ((22050, tone() * 32767), "divide 16-bit values by 32768"),
        ((50, tone()), "sample rate of 50 Hz"),
        ((-22050, tone()), "sample rate of -22050 Hz"),
        ((10_000_000, tone()), "sample rate of 10000000 Hz"),
        ((22050.5, tone()), "whole number"),
        ((math.nan, tone()), "whole number"),
        (("22050", tone()), "whole number"),
        ((True, tone()), "whole number"),
        ((tone(), 22050), r"\(sample_rate, array\)"),
        ((22050, tone(), 3), r"\(sample_rate, array\)"),
        ((22050, tone().reshape(1, 1, -1)), "one or two dimensions"),
        ((22050, np.zeros((300, 9000), np.float32)), "300 channels"),
        ((22050, (tone() * 100).astype(np.int64)), "type int64"),
        ((22050, np.array(["a"] * 9000)), "no known full scale"),
        ((22050, None), "one or two dimensions|no known full scale"),
        (tone()[:, 0], "does not state its sample rate"),
        (b"RIFF", "got bytes"),
        (None, "got NoneType"),
    ],
)
def test_bad_arrays_are_refused_with_the_reason(source: object, why: str) -> None:
    with pytest.raises(ValueError, match=f"^happy voice .*{why}"):
        load_audio(source, role="happy voice")  # type: ignore[arg-type]


def test_contradicting_rates_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "voice.wav", tone(), 22050)
    with pytest.raises(ValueError, match="22050 Hz, not the 16000"):
        load_audio(tmp_path / "voice.wav", sample_rate=16000)
    with pytest.raises(ValueError, match="tuple says 22050"):
        load_audio((22050, tone()), sample_rate=16000)


# ---------------------------------------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_a_long_prompt_gives_what_cutting_the_whole_file_gives(tmp_path: Path, rate: int) -> None:
    stereo = tone(rate, seconds=19.7, channels=2)
    soundfile.write(tmp_path / "long.wav", stereo, rate, subtype="FLOAT")
    mono, _ = load_audio(tmp_path / "long.wav")
    wav22k, wav16k = speaker_waveforms(mono, rate)
    emotion16k = emotion_waveform(mono, rate)
    whole = stereo.mean(axis=1)
    assert wav22k.shape == (15 * 22050,)
    assert wav16k.shape == emotion16k.shape == (15 * 16000,)
    assert wav22k.dtype == wav16k.dtype == emotion16k.dtype == torch.float32
    np.testing.assert_array_equal(
        wav22k, whole[: 15 * 22050] if rate == 22050 else soxr.resample(whole, rate, 22050, quality="HQ")[: 15 * 22050]
    )
    np.testing.assert_array_equal(
        emotion16k, whole[: 15 * 16000] if rate == 16000 else soxr.resample(whole, rate, 16000, quality="HQ")[: 15 * 16000]
    )


def test_the_two_roles_hear_slightly_different_signals_as_in_the_release() -> None:
    mono, rate = load_audio((44100, tone(44100)))
    speaker, emotion = speaker_waveforms(mono, rate)[1], emotion_waveform(mono, rate)
    assert speaker.shape == emotion.shape
    inner = slice(100, -100)
    difference = (speaker[inner] - emotion[inner]).abs().max().item()
    assert 1e-6 < difference < 0.05


@pytest.mark.parametrize(("rate", "samples", "expected"), [(24000, 8009, 7359), (8000, 2522, 6952), (44100, 13231, 6616)])
def test_resampled_lengths_round_up(rate: int, samples: int, expected: int) -> None:
    wav22k, wav16k = speaker_waveforms(tone(rate, 2)[:samples, 0], rate)
    assert wav22k.shape == (expected,)
    assert wav16k.shape == (math.ceil(expected * 320 / 441),)


def test_caches_recognise_the_same_sound_under_another_name(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(), 22050)
    (tmp_path / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    soundfile.write(tmp_path / "c.wav", tone(seed=1), 22050)
    key_a, key_b, key_c = (content_key(*load_audio(tmp_path / f"{name}.wav")) for name in "abc")
    assert key_a == key_b != key_c
    mono, _ = load_audio(tmp_path / "a.wav")
    assert content_key(mono, 22050) != content_key(mono, 24000)


# ------------------------------------------------------------------------------------------------------------- writing


def test_pcm_is_truncated_toward_zero() -> None:
    values = torch.tensor([[0.9, -0.9, 1.999, -32767.0, 40000.0]])
    np.testing.assert_array_equal(pcm16(values), np.array([[0, 0, 1, -32767, 32767]], np.int16))


@pytest.mark.parametrize("shape", [(-1,), (1, -1), (-1, 1)])
def test_written_files_hold_the_samples(tmp_path: Path, shape: tuple[int, ...]) -> None:
    samples = pcm16(torch.from_numpy(tone()[:, 0]) * 32767)
    path = tmp_path / "new" / "folder" / "speech.wav"
    write_wav(path, samples.reshape(shape))
    written, rate = soundfile.read(path, dtype="int16")
    np.testing.assert_array_equal(written, samples)
    assert rate == 22050
    assert soundfile.info(path).subtype == "PCM_16"
    assert [entry.name for entry in path.parent.iterdir()] == ["speech.wav"]


def test_float_tensors_are_written_as_their_truncated_values(tmp_path: Path) -> None:
    wave = torch.from_numpy(tone()[:, 0]) * 32767
    write_wav(tmp_path / "speech.wav", wave.unsqueeze(0), 16000)
    written, rate = soundfile.read(tmp_path / "speech.wav", dtype="int16")
    np.testing.assert_array_equal(written, pcm16(wave))
    assert rate == 16000


class Failure:
    """Stands in for ``Path.write_bytes``: writes a part, then fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self, path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:100])
        raise self.error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "interrupted"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    path = tmp_path / "speech.wav"
    write_wav(path, np.full(2205, 7, np.int16))
    old = path.read_bytes()
    failure = Failure(error)
    monkeypatch.setattr(Path, "write_bytes", lambda self, content: failure(self, content))
    with pytest.raises(type(error)) as caught:
        write_wav(path, np.zeros(4410, np.int16))
    if isinstance(error, OSError):
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == errno.ENOSPC
        assert "speech.wav" in str(caught.value)
        assert "No space left" in str(caught.value)
    assert path.read_bytes() == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["speech.wav"]


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"cannot write audio.*file.*speech\.wav"):
        write_wav(tmp_path / "file" / "speech.wav", np.zeros(100, np.int16))


def test_devices_and_folders_are_not_replaced(tmp_path: Path) -> None:
    for path in (tmp_path, Path(os.devnull)):
        with pytest.raises(OSError, match="not a file"):
            write_wav(path, np.zeros(100, np.int16))
    assert not Path(os.devnull).is_file()
    assert tmp_path.is_dir()


def test_a_symbolic_link_keeps_pointing_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "real.wav").write_bytes(b"old")
    (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
    write_wav(tmp_path / "link.wav", np.zeros(100, np.int16))
    assert (tmp_path / "link.wav").is_symlink()
    assert soundfile.info(tmp_path / "real.wav").frames == 100


@pytest.mark.parametrize("wave", [np.zeros(0, np.int16), np.zeros((2, 100), np.int16)])
def test_only_mono_sound_is_written(tmp_path: Path, wave: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected mono samples"):
        write_wav(tmp_path / "speech.wav", wave)
