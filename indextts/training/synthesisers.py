"""Free speech synthesisers as Python objects, called through ctypes: espeak-ng, flite and RHVoice; and recordings beside them.

Each ``speak`` returns the samples and, where the program tells, when every phone ends. The libraries are loaded by path from an unpacked
bundle (:mod:`indextts.training.bundle`); none of them is safe to use from several threads, so use one process each.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, Union, byref, c_char, c_char_p, c_double, c_float, c_int, c_short, c_size_t, c_uint, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16]


@dataclass
class Speech:
    """Mono samples (n,), their rate in Hz, and (phone, end in seconds) in the program's own notation (empty: unknown)."""

    samples: Samples
    rate: int
    phones: list[tuple[str, float]] = field(default_factory=list)


def load_libraries(folder: Path, names: tuple[str, ...]) -> list[ctypes.CDLL]:
    """Load ``names`` in order, so that each finds the ones it needs already there, whatever the system's search path."""
    return [ctypes.CDLL(str(folder / "lib" / name), mode=ctypes.RTLD_GLOBAL) for name in names]


# -------------------------------------------------------------------------------------------------------------- espeak-ng


class _EventId(Union):
    _fields_ = (("number", c_int), ("name", c_char_p), ("string", c_char * 8))


class _Event(Structure):
    _fields_ = (
        ("type", c_int), ("unique_identifier", c_uint), ("text_position", c_int), ("length", c_int), ("audio_position", c_int),
        ("sample", c_int), ("user_data", c_void_p), ("id", _EventId),
    )  # fmt: skip


_EspeakCallback = ctypes.CFUNCTYPE(c_int, POINTER(c_short), c_int, POINTER(_Event))


class Espeak:
    """Formant synthesis, 22 050 Hz, with exact phone times; voices are named ``en-us+f2`` (accent + timbre)."""

    _SYNCHRONOUS, _PHONEME_EVENTS, _UTF8 = 2, 1, 1
    _RATE, _PITCH, _RANGE = 1, 3, 4
    _END, _PHONEME = 0, 7

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._library = load_libraries(folder, ("libpcaudio.so.0", "libsonic.so.0", "libespeak-ng.so.1"))[-1]
        self.rate = self._library.espeak_Initialize(self._SYNCHRONOUS, 0, str(folder).encode(), self._PHONEME_EVENTS)
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng found no data in {folder / 'espeak-ng-data'}")
        self._chunks: list[Samples] = []
        self._starts: list[tuple[str, int]] = []
        self._callback = _EspeakCallback(self._receive)  # must outlive the library's pointer to it
        self._library.espeak_SetSynthCallback(self._callback)

    def voices(self) -> list[str]:
        """Timbres that the bundle holds (what follows the ``+`` of a voice)."""
        return sorted(path.name for path in (self._folder / "espeak-ng-data/voices/!v").iterdir())

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        i = 0
        while events[i].type != self._END:
            if events[i].type == self._PHONEME:
                self._starts.append((events[i].id.string.decode("utf-8", "replace"), events[i].sample))
            i += 1
        return 0

    def speak(self, text: str, voice: str, words_per_minute: int = 170, pitch: int = 50, pitch_range: int = 50) -> Speech:
        """``pitch`` and ``pitch_range`` from 0 to 100; ``RuntimeError`` for a voice that does not exist."""
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((self._RATE, words_per_minute), (self._PITCH, pitch), (self._RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks, self._starts = [], []
        encoded = text.encode()
        self._library.espeak_Synth(encoded, c_size_t(len(encoded) + 1), 0, 1, 0, self._UTF8, None, None)
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        ends = [start for _, start in self._starts[1:]] + [samples.size]
        phones = [(name, end / self.rate) for (name, _), end in zip(self._starts, ends, strict=True)]
        if self._starts and self._starts[0][1] > 0:
            phones.insert(0, ("_", self._starts[0][1] / self.rate))
        return Speech(samples, self.rate, phones)


# ------------------------------------------------------------------------------------------------------------------ flite


class _Wave(Structure):
    _fields_ = (("type", c_char_p), ("sample_rate", c_int), ("num_samples", c_int), ("num_channels", c_int), ("samples", POINTER(c_short)))


class _Voice(Structure):
    _fields_ = (("name", c_char_p), ("features", c_void_p), ("ffunctions", c_void_p), ("utt_init", c_void_p))


class Flite:
    """Statistical and diphone voices of recorded people, 16 000 Hz, with phone times; voices ``slt``, ``rms``, ``awb``, ``kal16``."""

    def __init__(self, folder: Path) -> None:
        names = ("libasound.so.2", "libflite.so.1", "libflite_usenglish.so.1", "libflite_cmulex.so.1")
        lib = load_libraries(folder, names)[1]
        lib.flite_synth_text.argtypes, lib.flite_synth_text.restype = [c_char_p, POINTER(_Voice)], c_void_p
        lib.utt_wave.argtypes, lib.utt_wave.restype = [c_void_p], POINTER(_Wave)
        lib.utt_relation.argtypes, lib.utt_relation.restype = [c_void_p, c_char_p], c_void_p
        lib.relation_head.argtypes, lib.relation_head.restype = [c_void_p], c_void_p
        lib.item_next.argtypes, lib.item_next.restype = [c_void_p], c_void_p
        lib.item_feat_string.argtypes, lib.item_feat_string.restype = [c_void_p, c_char_p], c_char_p
        lib.item_feat_float.argtypes, lib.item_feat_float.restype = [c_void_p, c_char_p], c_float
        lib.feat_set_float.argtypes, lib.feat_set_float.restype = [c_void_p, c_char_p, c_float], None
        lib.delete_utterance.argtypes, lib.delete_utterance.restype = [c_void_p], None
        lib.flite_init()
        self._library, self._folder = lib, folder
        self._voices: dict[str, Any] = {}

    def voices(self) -> list[str]:
        """Voices that the bundle holds."""
        return sorted(p.name.split("_us_")[1].split(".")[0] for p in (self._folder / "lib").glob("libflite_cmu_us_*.so.1"))

    def speak(self, text: str, voice: str, stretch: float = 1.0, pitch: tuple[float, float] | None = None) -> Speech:
        """``stretch`` multiplies durations; ``pitch`` is its mean and spread in Hz. ``OSError`` for a voice that the bundle lacks."""
        lib, loaded = self._library, self._load(voice)
        lib.feat_set_float(loaded.contents.features, b"duration_stretch", stretch)
        if pitch is not None:
            lib.feat_set_float(loaded.contents.features, b"int_f0_target_mean", pitch[0])
            lib.feat_set_float(loaded.contents.features, b"int_f0_target_stddev", pitch[1])
        utterance = lib.flite_synth_text(text.encode("ascii", "ignore"), loaded)
        if not utterance:
            return Speech(np.zeros(0, np.int16), 16000)
        try:
            wave = lib.utt_wave(utterance).contents
            samples = np.ctypeslib.as_array(wave.samples, shape=(wave.num_samples,)).copy()
            phones = []
            segment = lib.relation_head(lib.utt_relation(utterance, b"Segment"))
            while segment:
                phones.append((lib.item_feat_string(segment, b"name").decode(), float(lib.item_feat_float(segment, b"end"))))
                segment = lib.item_next(segment)
            return Speech(samples, wave.sample_rate, phones)
        finally:
            lib.delete_utterance(utterance)

    def _load(self, voice: str) -> Any:
        if voice not in self._voices:
            (library,) = load_libraries(self._folder, (f"libflite_cmu_us_{voice}.so.1",))
            register = getattr(library, f"register_cmu_us_{voice}")
            register.argtypes, register.restype = [c_char_p], POINTER(_Voice)
            self._voices[voice] = register(None)
        return self._voices[voice]


# ------------------------------------------------------------------------------------------------------------- recordings


class Recordings:
    """Pieces of recorded speech without text or phone times: FLAC files ``recordings/NAME.flac``, mono.

    ``RuntimeError`` if there are none, ``ImportError`` without soundfile.
    """

    def __init__(self, folder: Path) -> None:
        import soundfile

        self._speech: dict[str, Speech] = {}
        for path in sorted((folder / "recordings").glob("*.flac")):
            samples, rate = soundfile.read(path, dtype="int16")
            self._speech[path.stem] = Speech(samples, rate)
        if not self._speech:
            raise RuntimeError(f"no recordings in {folder / 'recordings'}")

    def voices(self) -> list[str]:
        """Voices that the bundle holds."""
        return list(self._speech)

    def speak(self, voice: str, start: float, seconds: float) -> Speech:
        """A piece of ``seconds`` or less; ``start`` in [0, 1] is its place among all possible ones."""
        whole = self._speech[voice]
        length = min(round(seconds * whole.rate), whole.samples.size)
        first = int(start * (whole.samples.size - length))
        return Speech(whole.samples[first : first + length], whole.rate)


# ---------------------------------------------------------------------------------------------------------------- RHVoice

_SetRate = ctypes.CFUNCTYPE(c_int, c_int, c_void_p)
_Play = ctypes.CFUNCTYPE(c_int, POINTER(c_short), c_uint, c_void_p)


class _RHCallbacks(Structure):
    _fields_ = (
        ("set_sample_rate", _SetRate), ("play_speech", _Play), ("process_mark", c_void_p), ("word_starts", c_void_p),
        ("word_ends", c_void_p), ("sentence_starts", c_void_p), ("sentence_ends", c_void_p), ("play_audio", c_void_p), ("done", c_void_p),
    )  # fmt: skip


class _RHInit(Structure):
    _fields_ = (
        ("data_path", c_char_p), ("config_path", c_char_p), ("resource_paths", c_void_p), ("callbacks", _RHCallbacks), ("options", c_uint),
    )  # fmt: skip


class _RHParameters(Structure):
    _fields_ = (
        ("voice_profile", c_char_p), ("absolute_rate", c_double), ("absolute_pitch", c_double), ("absolute_volume", c_double),
        ("relative_rate", c_double), ("relative_pitch", c_double), ("relative_volume", c_double), ("punctuation_mode", c_int),
        ("punctuation_list", c_char_p), ("capitals_mode", c_int), ("flags", c_int),
    )  # fmt: skip


class RHVoice:
    """Statistical voices of recorded people, 24 000 Hz, no phone times; voices ``bdl``, ``slt``, ``alan`` and others."""

    def __init__(self, folder: Path) -> None:
        names = ("libsonic.so.0", "libRHVoice_core.so.7", "libRHVoice.so.5")
        lib = self._library = load_libraries(folder, names)[-1]
        lib.RHVoice_new_tts_engine.argtypes, lib.RHVoice_new_tts_engine.restype = [POINTER(_RHInit)], c_void_p
        lib.RHVoice_new_message.argtypes = [c_void_p, c_char_p, c_uint, c_int, POINTER(_RHParameters), c_void_p]
        lib.RHVoice_new_message.restype = c_void_p
        lib.RHVoice_speak.argtypes, lib.RHVoice_delete_message.argtypes = [c_void_p], [c_void_p]
        lib.RHVoice_delete_message.restype = None
        self._folder = folder
        self._chunks: list[Samples] = []
        self._rate = 24000
        self._set_rate, self._play = _SetRate(self._receive_rate), _Play(self._receive)  # must outlive the engine's pointers
        data = str(folder / "RHVoice").encode()
        self._setup = _RHInit(data, data, None, _RHCallbacks(self._set_rate, self._play), 0)
        self._engine = lib.RHVoice_new_tts_engine(byref(self._setup))
        if not self._engine:
            raise RuntimeError(f"RHVoice found no voices in {folder / 'RHVoice'}")

    def _receive_rate(self, rate: int, _: Any) -> int:
        self._rate = rate
        return 1

    def _receive(self, samples: Any, count: int, _: Any) -> int:
        self._chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 1

    def voices(self) -> list[str]:
        """Voices that the bundle holds."""
        return sorted(p.name for p in (self._folder / "RHVoice/voices").iterdir())

    def speak(self, text: str, voice: str, relative_rate: float = 1.0, relative_pitch: float = 1.0) -> Speech:
        """``relative_rate`` above 1 is faster, ``relative_pitch`` above 1 higher."""
        parameters = _RHParameters(voice.capitalize().encode(), 0.0, 0.0, 0.0, relative_rate, relative_pitch, 1.0, 0, None, 1, 0)
        self._chunks = []
        encoded = text.encode()
        message = self._library.RHVoice_new_message(self._engine, encoded, len(encoded), 0, byref(parameters), None)
        if not message:
            raise RuntimeError(f"RHVoice has no voice {voice!r}")
        self._library.RHVoice_speak(message)
        self._library.RHVoice_delete_message(message)
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        return Speech(samples, self._rate)
