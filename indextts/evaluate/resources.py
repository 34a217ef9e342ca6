"""What ``indextts say`` costs: a process of its own is started, as a user would, so that load time and peak memory are its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import soundfile

from indextts.evaluate.sources import Voice

SENTENCE = "After lunch, the visitors walked through the old part of the town and sat down near the river."

# The command's own steps: load, speak once, speak again with the voice known.
_SCRIPT = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
request = json.loads(sys.argv[1])
began = time.perf_counter()
from indextts.pipeline import IndexTTS2
imported = time.perf_counter()
tts = IndexTTS2(**request["engine"]) if request["random"] is None else IndexTTS2.from_random(request["random"], **request["engine"])
loaded = time.perf_counter()
runs = []
for _ in range(2):
    tts.infer(request["voice"], request["text"], seed=0, **request["arguments"])
    record = tts.last_telemetry
    runs.append({"rtf": record.rtf, "total_s": record.total_s, "audio_s": record.audio_s})
tts.close()
peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
times = {"import_s": imported - began, "load_s": loaded - imported}
sys.stdout.write(json.dumps({**times, "first": runs[0], "again": runs[1], "peak_mb": peak_kb / 1024}))
"""


def resources(engine: dict[str, Any], random_size: str | None, voice: Voice, **arguments: Any) -> dict[str, Any]:
    """Seconds of importing and loading, real-time factor of a first and a second call, peak memory in MB (resident) of a fresh process.

    ``engine``: arguments of ``IndexTTS2``; ``random_size``: random weights of that size instead. Error: ``RuntimeError`` if the process
    fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder, "voice.wav")
        soundfile.write(clip, *voice.prompt)
        request = {"engine": engine, "random": random_size, "voice": str(clip), "text": SENTENCE, "arguments": arguments}
        done = subprocess.run([sys.executable, "-c", _SCRIPT, json.dumps(request)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process that measures resources failed: {done.stderr.strip()[-500:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result
