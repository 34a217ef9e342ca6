"""What a run has made: player, caption, mel spectrogram."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as W
import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from indextts.runs import RunRecord
from widgets.base import PALETTE
from widgets.player import Player

MOST_COLUMNS = 400
FLOOR_DB = -80.0


def mel_picture(samples: npt.NDArray[np.int16], sample_rate: int, config: Any) -> tuple[Any, Any, Any]:
    """Seconds (columns,), kilohertz of the bands (n_mels,), and levels in dB below the loudest (n_mels, columns), at most 400 columns.

    It is the spectrogram the vocoder works with (``indextts.models.mel``), averaged in time to the width of a picture. None are
    returned for sounds too short for one frame.
    """
    import torch

    from indextts.models.mel import mel_spectrogram, slaney_filters

    wave = torch.from_numpy(samples.astype(np.float32) / 32768)[None]
    try:
        mel = mel_spectrogram(wave, config, sample_rate)[0]
    except ValueError:
        return np.zeros(0), np.zeros(0), np.zeros((0, 0))
    share = -(-mel.shape[1] // MOST_COLUMNS)
    columns = mel.exp()[:, : mel.shape[1] // share * share].reshape(mel.shape[0], -1, share).mean(-1)
    decibels = 20 * torch.log10(columns / columns.max())
    filters = slaney_filters(sample_rate, config.n_fft, config.n_mels, config.fmin, torch.device("cpu"))
    hertz = filters @ torch.arange(filters.shape[1], dtype=torch.float32) * (sample_rate / config.n_fft) / filters.sum(1)
    seconds = (np.arange(columns.shape[1]) + 0.5) * share * config.hop_length / sample_rate
    return seconds, (hertz / 1000).numpy(), decibels.clamp(min=FLOOR_DB).numpy()


def caption(record: RunRecord) -> str:
    """One line on a run: speed, lengths, the settings that shape sound and speed."""
    t, s = record.telemetry, record.settings
    parts = [f"RTF {record.rtf:.2f}", f"{record.audio_s:.2f} s of sound in {record.total_s:.2f} s"]
    if t.first_audio_s is not None:
        parts.append(f"first sound after {t.first_audio_s:.2f} s")
    parts.append(f"{s.get('precision', '?')} on {s.get('device', '?')}")
    names = (("num_beams", "beams"), ("diffusion_steps", "steps"), ("inference_cfg_rate", "guidance"))
    parts += [f"{s[name]:g} {unit}" if unit != "guidance" else f"guidance {s[name]:g}" for name, unit in names if name in s]
    parts.append(f"{t.tokens} codes, {t.mel_frames} mel frames")
    parts.append(f"seed {record.request.get('seed')}")
    return " · ".join(parts)


class ResultView(W.VBox):
    """The last run, or the one given to :meth:`show`."""

    def __init__(self, tts: Any) -> None:
        self._config = tts.cfg.s2mel.preprocess_params.spect_params
        self.record: RunRecord | None = None
        self.player = Player(autoplay=False)
        self.caption = W.HTML('<div class="itl-hint">Nothing made yet.</div>')
        self.notes = W.HTML("")
        self.mel = _mel_figure()
        self._mel_box = W.VBox([self.mel], layout={"display": "none"})
        super().__init__((self.player, self.caption, self.notes, self._mel_box))

    def show(self, record: RunRecord, autoplay: bool = False, notices: tuple[str, ...] = ()) -> None:
        """Show a run; ``notices`` are said below its caption, along with what went short."""
        self.record = record
        self.player.autoplay = autoplay
        self.player.show(record)
        self.caption.value = f'<div class="itl-caption">{html.escape(caption(record))}</div>'
        said = [*record.notes, *(notice for notice in notices if not _same(notice, record.notes))]
        self.notes.value = "".join(f'<div class="itl-note"><b>Note.</b> {html.escape(note)}</div>' for note in said)
        seconds, kilohertz, decibels = mel_picture(record.samples, record.sample_rate, self._config)
        with self.mel.batch_update():
            self.mel.data[0].update(x=seconds, y=kilohertz, z=decibels)
        self._mel_box.layout.display = "" if len(seconds) else "none"


def _same(notice: str, notes: list[str]) -> bool:
    """Whether a warning of the engine says what a note of the record says already."""
    return any(("max_mel_tokens" in notice and "cut off" in note) or ("no sound" in notice and "No sound" in note) for note in notes)


def _mel_figure() -> Any:
    figure = go.FigureWidget(
        go.Heatmap(x=[], y=[], z=[], zmin=FLOOR_DB, zmax=0, colorscale="Cividis", colorbar={"title": "dB", "thickness": 10})
    )
    line = {"color": PALETTE["muted"], "gridcolor": "rgba(122,127,135,0.25)", "zeroline": False, "linecolor": PALETTE["muted"]}
    figure.update_layout(
        height=200, margin={"l": 50, "r": 8, "t": 26, "b": 36}, paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"color": PALETTE["muted"], "size": 11}, title={"text": "Mel spectrogram", "font": {"size": 12}, "x": 0.0, "y": 0.98},
        xaxis={"title": {"text": "seconds", "standoff": 4}, **line}, yaxis={"title": {"text": "kHz", "standoff": 4}, **line},
    )  # fmt: skip
    figure.layout.autosize = True
    figure._config = {**(figure._config or {}), "displayModeBar": False, "responsive": True}
    return figure
