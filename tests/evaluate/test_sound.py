"""If this fails, an evaluation calls clean joins clicks, misses real ones, or measures the wrong length or pitch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from indextts.evaluate.prosody import pitch_track, prosody
from indextts.evaluate.sound import buzz, clicks, floats, speech_s, speech_span, spoken_s

RATE = 22050


def voiced(hertz: float, seconds: float, level: float = 0.1, falling: float = 1.0) -> np.ndarray:
    """A buzz with harmonics that fall by 6 dB an octave times ``falling``."""
    time = np.arange(int(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * hertz * k * time) / k**falling for k in range(1, int(5000 / hertz)))
    return (level * wave).astype(np.float32)


@pytest.mark.parametrize("hertz", [75, 110, 171, 240, 390])
def test_pitch_is_measured_to_one_percent(hertz: float) -> None:
    track = pitch_track(voiced(hertz, 0.5), RATE)
    assert np.median(track[track > 0]) == pytest.approx(hertz, rel=0.01)
    assert (track > 0).mean() > 0.9


def test_noise_has_no_pitch() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.1
    assert (pitch_track(noise, RATE) > 0).mean() < 0.1
    assert math.isnan(prosody(np.zeros(RATE, np.float32), RATE, "one").pitch_hz)
    assert pitch_track(np.zeros(10, np.float32), RATE).size == 0


def test_the_manner_is_measured_in_its_units() -> None:
    flat, bright = voiced(150, 1.0), voiced(150, 1.0, falling=0.4)
    rising = np.concatenate([voiced(100 * 2 ** (i / 12), 0.1) for i in range(13)])
    base = prosody(flat, RATE, "one two three four")
    assert base.words_per_s == pytest.approx(4, rel=0.03)
    assert base.melody_semitones < 0.5
    assert prosody(rising, RATE, "one").melody_semitones == pytest.approx(0.8 * 12, abs=1.5)
    assert prosody(flat / 2, RATE, "one").loudness_db == pytest.approx(base.loudness_db - 6.02, abs=0.1)
    assert prosody(bright, RATE, "one").tilt_db_per_octave > base.tilt_db_per_octave + 1.5


def test_speech_is_found_between_silences() -> None:
    quiet = np.random.default_rng(0).standard_normal(RATE // 2).astype(np.float32) * 1e-4
    sound = np.concatenate([quiet, voiced(120, 1.0), quiet])
    begin, end = speech_span(sound, RATE)
    assert begin == pytest.approx(0.5, abs=0.02)
    assert end == pytest.approx(1.5, abs=0.02)
    assert speech_s((sound * 32767).astype(np.int16)[:, None], RATE) == pytest.approx(1.0, abs=0.03)
    assert speech_s(np.zeros(RATE, np.int16), RATE) == 0
    assert speech_s(np.zeros(0, np.int16), RATE) == 0


def test_pauses_are_no_speech_but_closures_are() -> None:
    tone = 0.3 * np.sin(np.arange(RATE) * 0.1)
    gap = [np.zeros(round(seconds * RATE)) for seconds in (0.1, 0.3, 0.5)]
    sound = np.concatenate([gap[2], tone, gap[0], tone, gap[1], tone, gap[2]])
    assert speech_s(sound, RATE) == pytest.approx(3.4, abs=0.04)
    assert spoken_s(sound, RATE) == pytest.approx(3.1, abs=0.04)
    assert spoken_s(np.zeros(RATE), RATE) == spoken_s(np.zeros(0), RATE) == 0


def test_a_click_is_a_step_steeper_than_the_speech_around() -> None:
    one, two = voiced(120, 0.2), voiced(120, 0.2)
    join = len(one)
    assert clicks(np.concatenate([one, two]), RATE, [join]) == 0
    assert clicks(np.concatenate([one, two + 0.7]), RATE, [join]) == 1
    assert clicks(np.concatenate([one, two + 0.7]), RATE, [100, join + 300]) == 0
    assert clicks(np.concatenate([one, np.zeros(4410, np.float32)]), RATE, [join, 0, 10**9]) == 0
    assert clicks(np.concatenate([np.full(4410, 0.1, np.float32), np.zeros(4410, np.float32)]), RATE, [4410]) == 1


def test_samples_of_any_form_are_floats() -> None:
    assert floats(np.array([[16384], [-32768]], np.int16)).tolist() == [0.5, -1.0]
    assert floats(np.array([0.25], np.float64)).dtype == np.float32


def test_buzz_is_what_repeats_with_every_frame() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.1
    frame = np.tile(noise[:256], RATE // 256)
    assert buzz(frame, RATE) > 0.98
    assert abs(buzz(noise, RATE)) < 0.1
    assert abs(buzz(voiced(133, 1.0), RATE)) < 0.4  # a pitch agrees with the frames now and then
    assert 0.3 < buzz(frame + noise[: frame.size], RATE) < 0.7
    assert buzz((0.5 * frame * 32767 / np.abs(frame).max()).astype(np.int16)[:, None], RATE) > 0.98
    assert math.isnan(buzz(np.zeros(RATE, np.float32), RATE))
    assert math.isnan(buzz(np.zeros(0, np.float32), RATE))
    assert math.isnan(buzz(noise[:100], RATE))
