"""Phone labels: the ARPAbet set of flite, espeak-ng's mnemonics mapped to it, and labels per semantic token."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from indextts.training.synthesisers import Speech

_NAMES = "pau aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z zh"
PHONES = tuple(_NAMES.split())
UNKNOWN = 255  # no label: the frame counts in no loss
_INDEX = {phone: i for i, phone in enumerate(PHONES)}

# espeak-ng's mnemonics of its English voices; two phones share the time of one mnemonic, 60 to 40.
_ESPEAK = {
    "_": "pau", "_:": "pau", "_!": "pau", "_::": "pau", "a": "ae", "a#": "ax", "aa": "ae", "A:": "aa", "A@": "aa r", "E": "eh",
    "e@": "eh r", "I": "ih", "I#": "ih", "I2": "ih", "i": "iy", "i:": "iy", "i@": "ih r", "i@3": "ih r", "0": "aa", "O:": "ao",
    "O2": "ao", "O@": "ao r", "o@": "ao r", "u:": "uw", "U": "uh", "U@": "uh r", "V": "ah", "3:": "er", "3": "er", "@": "ax", "@2":
    "ax", "@5": "uh", "@-": "ax", "@L": "ax l", "aI": "ay", "aI@": "ay er", "aI3": "ay er", "eI": "ey", "OI": "oy", "aU": "aw",
    "oU": "ow", "p": "p", "b": "b", "t": "t", "t2": "t", "t#": "t", "d": "d", "d#": "d", "tS": "ch", "dZ": "jh", "k": "k", "g": "g",
    "f": "f", "v": "v", "T": "th", "D": "dh", "s": "s", "z": "z", "S": "sh", "Z": "zh", "h": "hh", "m": "m", "n": "n", "n-": "n",
    "N": "ng", "l": "l", "r": "r", "r-": "r", "j": "y", "w": "w",
}  # fmt: skip
_SHARE = 0.6

TOKEN_S = 0.02  # seconds from one semantic token to the next
TOKEN_CENTRE_S = 0.0175  # two windows of 25 ms, 10 ms apart


def semantic_tokens(samples_16k: int) -> int:
    """Semantic tokens of a clip with that many samples at 16 kHz: ``ceil(F / 2)`` for its F windows."""
    windows = 1 + (samples_16k - 400) // 160
    return (windows + 1) // 2


def token_labels(speech: Speech, tokens: int, warp: float = 1.0) -> npt.NDArray[np.uint8]:
    """Index into :data:`PHONES` for each of ``tokens`` tokens of a clip that is played ``warp`` times faster than it was spoken."""
    labels = np.full(tokens, UNKNOWN, np.uint8)
    if not speech.phones:
        return labels
    names: list[int] = []
    ends: list[float] = []
    start = 0.0
    for name, end in speech.phones:
        mapped = (_ESPEAK.get(name, "") if name not in _INDEX or name in _ESPEAK else name).split()
        if len(mapped) == 2:
            names.append(_INDEX[mapped[0]])
            ends.append(start + _SHARE * (end - start))
            mapped = mapped[1:]
        names.append(_INDEX[mapped[0]] if mapped else UNKNOWN)
        ends.append(end)
        start = end
    times = (np.arange(tokens) * TOKEN_S + TOKEN_CENTRE_S) * warp
    where = np.searchsorted(np.asarray(ends), times)
    inside = where < len(ends)
    labels[inside] = np.asarray(names, np.uint8)[where[inside]]
    labels[~inside] = _INDEX["pau"]
    return labels
