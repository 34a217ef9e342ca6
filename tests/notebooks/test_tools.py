"""The lessons' tools: predictions, records, plots, sound, timing, and which engine is opened."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

pytest.importorskip("plotly")

from indextts import IndexTTS2
from indextts.engine.telemetry import Telemetry
from indextts.runs import RunRecord
from widgets.lessons import engine, records, sound
from widgets.lessons.measure import Timing, interleaved, timed
from widgets.lessons.pages import Prediction, note, number, table
from widgets.lessons.plots import MIME, bars, heat, lines, panels, spread
from widgets.lessons.stages import amdahl, recorded_shares, stage_shares


@pytest.fixture(scope="module")
def tts():
    with IndexTTS2.from_random("small") as made:
        yield made


def run(samples, label="x"):
    return RunRecord(1, label, 0.0, {}, Telemetry(total_s=1.0, rtf=0.5), 22050, np.asarray(samples, dtype=np.int16))


class TestPrediction:
    def test_nearest_answer_is_by_ratio(self):
        guess = Prediction("how much?", [0.1, 1, 10], "s")
        assert guess.nearest(4.0) == 10  # by difference it would be 1
        assert guess.nearest(2.9) == 1

    def test_verdict_names_both_prediction_and_measurement(self):
        guess = Prediction("how much?", [1, 10], "ms")
        assert "no prediction was made" in str(guess.measured(9.0))
        guess.commit(1)
        verdict = str(guess.measured(9.0))
        assert "9 ms" in verdict
        assert "your prediction was 1 ms" in verdict
        assert "that was your prediction" in str(guess.measured(1.2))

    def test_the_first_commitment_counts(self):
        guess = Prediction("which?", ["GPT", "S2Mel"])
        guess.commit("GPT")
        guess.commit("S2Mel")
        assert guess.choice == "GPT"

    def test_answers_that_are_not_offered_are_refused(self):
        with pytest.raises(ValueError, match="choose one of 1 s, 2 s"):
            Prediction("?", [1, 2], "s").commit(3)
        with pytest.raises(ValueError, match="none of the answers"):
            Prediction("?", ["a", "b"]).measured("c")
        with pytest.raises(ValueError, match="at least two"):
            Prediction("?", [1])

    def test_live_buttons_commit_once(self):
        import ipywidgets

        guess = Prediction("which <one>?", ["GPT", "S2Mel"])
        bundle = guess._repr_mimebundle_()
        assert "application/vnd.jupyter.widget-view+json" in bundle
        box = guess._live()
        buttons = next(child for child in box.children if isinstance(child, ipywidgets.ToggleButtons))
        commit = box.children[-1].children[0]
        assert buttons.value is None, "a default answer would be an anchor"
        assert commit.disabled
        buttons.value = "S2Mel"
        assert not commit.disabled
        commit.click()
        assert guess.choice == "S2Mel"
        assert buttons.disabled

    def test_page_without_kernel_has_all_answers_and_no_script(self):
        html = Prediction("a < b?", ["yes & no", "no"])._repr_mimebundle_()["text/html"]
        assert html.count("type='radio'") == 2
        assert "yes &amp; no" in html
        assert "a &lt; b?" in html
        assert "<script" not in html


class TestRecords:
    def test_two_columns_are_a_curve(self):
        steps, mel = records.recorded("vocoder_centring").curve("step", "mel", made="centred")
        assert len(steps) == len(mel) > 10
        assert steps == sorted(steps)

    def test_rows_are_found_by_their_values(self):
        figures = records.recorded("how_fast")
        assert figures.row(path="accelerated", precision="bf16", beams=1)["total_s"] == 0.152
        with pytest.raises(LookupError, match=r"rows of how_fast\.json match"):
            figures.row(precision="fp32")

    def test_table_carries_machine_settings_and_command(self):
        text = str(records.recorded("how_fast").table("path", "rtf"))
        assert "NVIDIA H200" in text
        assert "indextts bench" in text

    def test_unknown_record_lists_what_there_is(self):
        with pytest.raises(FileNotFoundError, match="how_fast"):
            records.recorded("nothing")

    def test_figures_without_their_origin_are_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr(records, "data_folder", lambda: tmp_path)
        (tmp_path / "bare.json").write_text(json.dumps({"rows": [{"ms": 1}], "machine": "some GPU"}))
        with pytest.raises(ValueError, match="software, settings, command, measured"):
            records.recorded("bare")


class TestPlots:
    @pytest.mark.parametrize(
        "figure",
        [
            bars({"a": {"x": 1.0, "y": 2.0}, "b": {"x": 3.0}}, title="t", unit="s"),
            bars({"a": {"x": 1.0}}, title="t", unit="s", stacked=True, log=True),
            panels({"here": {"x": 1.0, "none": None}, "there": {"x": 9.0}}, title="t", unit="ms"),
            lines({"a": ([1, 2], [3.0, 4.0])}, title="t", x="s", y="ms", log_y=True, marks={"limit": 5.0}),
            heat(np.arange(6.0).reshape(2, 3), title="t", x="s", y="band", x_step=0.1),
            spread({"a": [1.0, 2.0, 3.0]}, title="t", unit="ms"),
        ],
    )
    def test_plotly_accepts_the_figure(self, figure):
        import plotly.graph_objects as go

        bundle = figure._repr_mimebundle_()
        drawn = go.Figure({"data": bundle[MIME]["data"], "layout": bundle[MIME]["layout"]})
        assert drawn.data
        assert json.dumps(bundle)
        assert bundle["text/plain"].startswith("t")

    def test_matrix_is_packed_row_by_row(self):
        packed = heat(np.arange(6).reshape(2, 3), title="t", x="s", y="band").data[0]["z"]
        values = np.frombuffer(base64.b64decode(packed["bdata"]), dtype=packed["dtype"])
        assert packed["shape"] == "2, 3"
        assert values.tolist() == [0, 1, 2, 3, 4, 5]

    def test_missing_values_leave_a_gap_and_digits_are_few(self):
        figure = lines({"a": ([0, 1], [float("nan"), 1.23456789])}, title="t", x="s", y="ms")
        assert figure.data[0]["y"] == [None, 1.2346]

    def test_bars_with_long_labels_lie(self):
        long = bars({"a": {f"a label of some length {i}": 1.0 for i in range(5)}}, title="t", unit="s")
        assert {trace["orientation"] for trace in long.data} == {"h"}
        assert long.layout["xaxis"]["title"]["text"] == "s"
        short = bars({"a": {"x": 1.0, "y": 2.0}}, title="t", unit="s")
        assert {trace["orientation"] for trace in short.data} == {"v"}
        assert short.layout["yaxis"]["title"]["text"] == "s"

    def test_each_panel_has_a_scale_of_its_own(self):
        figure = panels({"here": {"x": 1.0}, "there": {"x": 900.0}}, title="t", unit="ms")
        assert [trace["yaxis"] for trace in figure.data] == ["y", "y2"]


class TestSound:
    def test_pair_is_brought_to_the_quieter_loudness(self):
        loud, quiet = np.tile([8000, -8000], 5000).astype(np.int16), np.tile([1000, -1000], 5000).astype(np.int16)
        first, second = sound.matched(loud, quiet)
        assert abs(int(abs(first).max()) - 1000) <= 1
        assert (second == quiet).all()

    def test_silence_does_not_divide_by_zero(self):
        first, second = sound.matched(np.zeros(10, np.int16), np.ones(10, np.int16))
        assert not first.any()
        assert second.all()

    def test_players_hold_the_samples(self):
        tone = (3000 * np.sin(np.arange(22050) / 20)).astype(np.int16)
        clips = sound.decoded(sound.listen(run(tone), run(tone), ("a<b", "c")).markup)
        assert len(clips) == 2
        assert (clips[0][0] == tone).all()
        assert "a&lt;b" in sound.listen(run(tone), run(tone), ("a<b", "c")).markup

    def test_long_clips_are_cut(self):
        clips = sound.decoded(sound.play(run(np.ones(22050 * 9))).markup)
        assert len(clips[0][0]) == sound.MOST_SECONDS * 22050


class TestMeasure:
    def test_warm_up_is_not_timed(self):
        calls = []
        assert len(timed(lambda: calls.append(1), runs=3, warmup=2).seconds) == 3
        assert len(calls) == 5

    def test_turns_alternate(self):
        order = []
        interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, runs=2, warmup=0)
        assert order == ["a", "b", "a", "b"]

    def test_middle_and_quartiles(self):
        timing = Timing([0.3, 0.1, 0.2])
        assert timing.median == 0.2
        assert timing.ms == 200
        assert timing.best == 0.1
        assert timing.quartiles == pytest.approx((0.15, 0.25))


class TestEngine:
    def test_purpose_must_be_known(self):
        with pytest.raises(ValueError, match="listening"):
            engine.open_engine("fun")

    def test_without_voice_the_page_says_that_it_will_be_noise(self, monkeypatch, capsys):
        monkeypatch.setattr("indextts.release.find.bundled_voice", lambda: None)
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        said = []
        monkeypatch.setattr("widgets.lessons.pages.publish", said.append)
        with engine.open_engine(precision="bf16") as made:
            assert made.precision == "bf16"
            assert not engine.can_speak(made)
        assert len(said) == 1
        assert "the sound is noise" in said[0]["text/plain"]
        assert capsys.readouterr().err == ""

    def test_speaking_repeats_and_does_not_warn(self, tts):
        first, second = engine.speak(tts, "One two."), engine.speak(tts, "One two.")
        assert (first.samples == second.samples).all()
        assert second.telemetry.speaker_cache_hit

    def test_parameters_are_counted_once(self, tts):
        assert engine.parameters(tts) == sum(p.numel() for n in (tts._stages.gpt, tts._stages.s2mel, tts._stages.vocoder,
            tts._stages.semantic_encoder, tts._stages.semantic_codec, tts._stages.campplus) for p in n.parameters())  # fmt: skip


class TestStages:
    def test_amdahl(self):
        assert amdahl(50, 2) == pytest.approx(4 / 3)
        assert amdahl(100, 3) == pytest.approx(3)
        assert amdahl(0, 30) == 1
        with pytest.raises(ValueError, match="share"):
            amdahl(120, 2)

    def test_shares_add_up(self):
        assert sum(stage_shares({"GPT": 1.0, "S2Mel": 3.0}).values()) == pytest.approx(100)
        row = {"gpt_s": 3.85, "s2mel_s": 0.54, "bigvgan_s": None, "total_s": 4.46}
        shares = recorded_shares(row)
        assert "BigVGAN" not in shares
        assert sum(shares.values()) == pytest.approx(100)


def test_numbers_and_tables_read_well():
    assert [number(x) for x in (0.001234, 12.345, 1234.5, 1e-7, 0.0, 0.39, 100.0)] == [
        "0.00123",
        "12.3",
        "1234",
        "1.00e-07",
        "0",
        "0.39",
        "100",
    ]
    shown = table([{"a": True, "b": None, "c": 0.5}], "of `x`")
    assert str(shown).splitlines()[1].split() == ["yes", "-", "0.5"]
    assert "<code>x</code>" in shown.markup
    assert "<b>bold</b>" in note("a **bold** word, <tag>").markup
    assert "&lt;tag&gt;" in note("a **bold** word, <tag>").markup
