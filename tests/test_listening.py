"""Listening: a wrong p-value, a louder candidate or a name that leaks would make a blind comparison worthless."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from indextts.listening import (
    AbxTest,
    PreferenceTest,
    binomial_p,
    difference,
    log_mel_db,
    log_mel_distance_db,
    loudness_lufs,
    match_loudness,
    say_tally,
)

RATE = 22050


def tone(level: float, seconds: float = 1.0, hertz: float = 997.0) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize(
    ("successes", "trials", "two_sided", "expected"),
    [  # tables of the binomial distribution with p = 1/2
        (0, 0, True, 1.0),
        (5, 5, True, 2 / 32),
        (9, 10, True, 22 / 1024),
        (1, 10, True, 22 / 1024),
        (5, 10, True, 1.0),
        (8, 10, False, 56 / 1024),
        (12, 16, False, 2517 / 65536),
        (0, 3, False, 1.0),
        (3, 3, False, 1 / 8),
    ],
)
def test_binomial_probabilities_are_those_of_the_tables(successes: int, trials: int, two_sided: bool, expected: float) -> None:
    assert binomial_p(successes, trials, two_sided=two_sided) == pytest.approx(expected, rel=1e-12)


def test_a_tally_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 3"):
        binomial_p(4, 3)


def test_preferences_count_for_the_sound_and_not_for_the_letter() -> None:
    test = PreferenceTest(("plain", "fast"), seed=3)
    orders = []
    for _ in range(12):
        orders.append(test.order)
        test.vote("AB"[test.order.index(1)])  # always the fast one, wherever it is
    test.vote("same")
    assert set(orders) == {(0, 1), (1, 0)}, "the order must be shuffled"
    tally = test.tally()
    assert tally["preferred"] == [{"name": "plain", "votes": 0}, {"name": "fast", "votes": 12}]
    assert (tally["votes"], tally["same"]) == (13, 1)
    assert tally["p_value"] == pytest.approx(2 / 2**12)
    assert "12 for \u201cfast\u201d" in say_tally(test)
    json.dumps(test.to_dict())


def test_order_is_fair_and_repeatable() -> None:
    first = [PreferenceTest(("a", "b"), seed=seed).order for seed in range(200)]
    assert 70 < sum(order == (0, 1) for order in first) < 130
    assert first == [PreferenceTest(("a", "b"), seed=seed).order for seed in range(200)]


def test_no_vote_counts_after_the_reveal() -> None:
    test = PreferenceTest(("a", "b"), seed=0)
    assert sorted(test.reveal().values()) == ["a", "b"]
    with pytest.raises(RuntimeError, match="not be blind"):
        test.vote("A")
    with pytest.raises(ValueError, match="A, same, B"):
        PreferenceTest(("a", "b")).vote("C")


def test_abx_tells_who_can_hear_a_difference() -> None:
    knowing, guessing = AbxTest(("a", "b"), seed=5), AbxTest(("a", "b"), seed=5)
    for _ in range(20):
        *order, x = knowing.sounds
        assert knowing.vote("AB"[order.index(x)]) is True
        guessing.vote("A")
    assert knowing.tally() == {"votes": 20, "right": 20, "p_value": pytest.approx(2**-20)}
    assert 4 < guessing.tally()["right"] < 16
    assert "20 of 20 right" in say_tally(knowing)
    with pytest.raises(ValueError, match="A, B"):
        knowing.vote("same")


def test_loudness_follows_the_standard() -> None:
    pytest.importorskip("pyloudnorm", reason="the lab extra is not installed")
    # BS.1770: a 997 Hz sine at full scale in one channel reads -3.01 LKFS.
    assert loudness_lufs(tone(1.0, 3.0), RATE) == pytest.approx(-3.01, abs=0.1)
    assert loudness_lufs((tone(0.1, 3.0) * 32767).astype(np.int16), RATE) == pytest.approx(-23.01, abs=0.1)
    assert loudness_lufs(np.zeros(RATE, np.float32), RATE) == -math.inf


@pytest.mark.parametrize("seed", range(20))
def test_matched_sounds_are_equally_loud_and_never_clip(seed: int) -> None:
    pytest.importorskip("pyloudnorm", reason="the lab extra is not installed")
    draw = np.random.default_rng(seed)
    spiky = draw.standard_normal(RATE).astype(np.float32) * 0.02
    spiky[draw.integers(0, RATE, 5)] = 0.99
    sounds: list[Any] = [spiky, tone(draw.uniform(0.01, 1.0)), (draw.standard_normal(RATE // 2) * 3000).astype(np.int16), np.zeros(RATE)]
    matched = match_loudness(sounds, RATE)
    assert all(np.abs(sound).max() <= 10 ** (-1 / 20) + 1e-6 for sound in matched)
    levels = [loudness_lufs(sound, RATE) for sound in matched[:3]]
    assert max(levels) - min(levels) < 0.3
    assert not matched[3].any()
    assert np.corrcoef(matched[0], spiky)[0, 1] == pytest.approx(1.0), "gain alone, no limiter"


def test_very_short_sounds_are_matched_too() -> None:
    short, long = match_loudness([tone(0.5, 0.1), tone(0.05, 0.2)], RATE)
    assert np.sqrt(np.mean(short**2)) == pytest.approx(np.sqrt(np.mean(long**2)), rel=0.02)
    assert match_loudness([np.zeros(0, np.float32)], RATE)[0].size == 0


def test_difference_of_equal_sounds_is_nothing() -> None:
    sound = tone(0.5)
    rest, level = difference(sound, sound)
    assert (rest.any(), level) == (False, -math.inf)
    rest, level = difference(sound, sound[:-100] * 0.9)
    assert len(rest) == len(sound) - 100
    assert level == pytest.approx(-20, abs=0.01)
    assert log_mel_distance_db(sound, sound, RATE) == 0
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32) * 0.1
    assert log_mel_distance_db(noise, noise * 0.5, RATE) == pytest.approx(6.02, abs=0.05)


def test_spectrogram_in_db_has_the_tone_where_it_belongs() -> None:
    import torch

    from indextts.models.mel import slaney_filters

    mel = log_mel_db(tone(0.5, hertz=1000), RATE)
    assert mel.shape == (80, RATE // 256)
    filters = slaney_filters(RATE, 1024, 80, 0.0, torch.device("cpu"))
    assert abs(int(mel.mean(axis=1).argmax()) - int(filters[:, round(1000 * 1024 / RATE)].argmax())) <= 1
    assert log_mel_db(np.zeros(10, np.float32), RATE).shape[0] == 80, "too short for a frame: padded"
