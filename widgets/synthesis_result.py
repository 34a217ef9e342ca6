"""What a run has made: player, caption, mel spectrogram."""

from __future__ import annotations

import html

import ipywidgets as W

from indextts.listening import log_mel_db
from indextts.runs import RunRecord
from widgets.chart import Chart
from widgets.player import Player
from widgets.plots_sound import mel_image

EARLY = 0.9  # of the whole time: first sound later than this is no news


def caption(record: RunRecord) -> str:
    """One line on a run: speed, lengths, the settings that shape sound and speed."""
    t, s = record.telemetry, record.settings
    parts = [f"RTF {record.rtf:.2f}", f"{record.audio_s:.2f} s of sound in {record.total_s:.2f} s"]
    if t.first_audio_s is not None and t.first_audio_s < EARLY * record.total_s:
        parts.append(f"first sound after {t.first_audio_s:.2f} s")
    parts.append(f"{s.get('precision', '?')} on {s.get('device', '?')}")
    names = (("num_beams", "beams"), ("diffusion_steps", "steps"), ("inference_cfg_rate", "guidance"))
    parts += [f"{s[name]:g} {unit}" if unit != "guidance" else f"guidance {s[name]:g}" for name, unit in names if name in s]
    parts.append(f"{t.tokens} codes, {t.mel_frames} mel frames")
    parts.append(f"seed {record.request.get('seed')}")
    return " · ".join(parts)


class ResultView(W.VBox):
    """The last run, or the one given to :meth:`show`."""

    def __init__(self) -> None:
        self.record: RunRecord | None = None
        self.player = Player(autoplay=False)
        self.caption = W.HTML('<div class="itl-hint">Nothing made yet.</div>')
        self.notes = W.HTML("")
        self.mel = Chart(layout={"display": "none"})
        super().__init__((self.player, self.caption, self.notes, self.mel))

    def show(self, record: RunRecord, autoplay: bool = False, notices: tuple[str, ...] = ()) -> None:
        """Show a run; ``notices`` are said below its caption, along with what went short."""
        self.record = record
        self.player.autoplay = autoplay
        self.player.show(record)
        self.caption.value = f'<div class="itl-caption">{html.escape(caption(record))}</div>'
        said = [*record.notes, *(notice for notice in notices if not _same(notice, record.notes))]
        self.notes.value = "".join(f'<div class="itl-note"><b>Note.</b> {html.escape(note)}</div>' for note in said)
        self.mel.layout.display = ""
        self.mel.show(mel_image(log_mel_db(record.samples, record.sample_rate), record.sample_rate, "Mel spectrogram"))


def _same(notice: str, notes: list[str]) -> bool:
    """Whether a warning of the engine says what a note of the record says already."""
    return any(("max_mel_tokens" in notice and "cut off" in note) or ("no sound" in notice and "No sound" in note) for note in notes)
