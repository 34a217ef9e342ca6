"""The players' modules in a real browser, driven by keys: what is heard, where it is, what a screen reader is told."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from widgets.player import STYLE, module
from widgets.sound import wav_bytes, wav_samples

pytestmark = pytest.mark.browser

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
RATE = 22050
# A model as anywidget hands it to a module, small enough to read: get, set, save_changes, on, off.
PAGE = """<!doctype html><html><head><style>%s</style></head><body><div id="root"></div><script type="module">
const bytes = (s) => new DataView(Uint8Array.from(atob(s), (c) => c.charCodeAt(0)).buffer);
const revive = (_, v) => (v && v.$bytes !== undefined ? bytes(v.$bytes) : v);
const state = JSON.parse(atob("%s"), revive), handlers = {};
window.state = state;
window.model = {
  get: (name) => state[name],
  set: (name, value) => { const old = state[name]; state[name] = value; if (old !== value) model.emit(`change:${name}`); },
  save_changes: () => {},
  on: (event, f) => (handlers[event] ??= []).push(f),
  off: (event, f) => { handlers[event] = (handlers[event] ?? []).filter((g) => g !== f); },
  emit: (event, ...args) => (handlers[event] ?? []).forEach((f) => f(...args)),
};
window.handlers = handlers;
const source = new TextDecoder().decode(bytes("%s"));
let widget = (await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })))).default;
if (typeof widget === "function") widget = await widget();
widget.initialize?.({ model });
window.close_view = await widget.render({ model, el: document.getElementById("root") });
window.ready = true;
</script></body></html>"""


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--use-fake-ui-for-media-stream"]
        launched = started.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--use-fake-device-for-media-stream"])
        yield launched
        launched.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """show(module, **traits) opens the widget on a page of its own; bytes become buffers. No error may reach the console."""
    page = browser.new_page(viewport={"width": 900, "height": 300})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))

    def open_page(name: str, **traits: Any) -> Any:
        text = json.dumps(traits, default=lambda value: {"$bytes": encoded(value)})
        file = tmp_path / "page.html"
        file.write_text(PAGE % (STYLE, encoded(text.encode()), encoded(module(name).encode())), encoding="utf-8")
        page.goto(file.as_uri())
        page.wait_for_function("window.ready")
        return page

    yield open_page
    page.close()
    assert errors == []


def tone(level: int, seconds: float = 2.0) -> bytes:
    return wav_bytes((np.sin(np.arange(int(RATE * seconds)) / 8) * level).astype(np.int16), RATE)


def test_player_by_keyboard(show: Any) -> None:
    page = show("player.js", wav=tone(9000), label="run 1", filename="run_1.wav", autoplay=False)
    slider = page.get_by_role("slider")
    assert slider.get_attribute("aria-valuetext") == "0.0 seconds of 2.0 seconds"
    slider.focus()
    for key, expected in (("ArrowRight", 0.5), ("End", 2.0), ("ArrowLeft", 1.5), ("Home", 0.0)):
        page.keyboard.press(key)
        page.wait_for_function("(s) => Math.abs(document.querySelector('audio').currentTime - s) < 0.05", arg=expected)
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('audio').currentTime > 0.1")
    assert page.get_by_role("button", name="Pause run 1").is_visible()
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('audio').paused")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "run_1.wav"
    assert Path(download.value.path()).read_bytes() == tone(9000)


def test_a_notebooks_shortcuts_stay_out(show: Any) -> None:
    page = show("player.js", wav=tone(9000), label="", filename="a.wav", autoplay=False)
    page.get_by_role("slider").focus()
    off = "document.activeElement.hasAttribute('data-lm-suppress-shortcuts')"
    for key, expected in (("x", True), ("Control+s", False), ("1", True), ("Shift+Enter", False)):
        page.keyboard.press(key)
        assert page.evaluate(off) is expected, f"{key}: JupyterLab looks for this attribute on the focused element"


def test_player_seeks_by_mouse_and_follows_its_sound(show: Any) -> None:
    page = show("player.js", wav=b"", label="", filename="a.wav", autoplay=False)
    assert page.get_by_text("no sound yet").is_visible()
    assert page.get_by_role("button", name="Play").is_disabled()
    page.evaluate("(s) => model.set('wav', Uint8Array.from(atob(s), (c) => c.charCodeAt(0)).buffer)", encoded(tone(9000, 4.0)))
    page.wait_for_function("document.querySelector('audio').duration > 3.9")
    box = page.get_by_role("slider").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + 10)
    page.wait_for_function("Math.abs(document.querySelector('audio').currentTime - 3) < 0.1")
    page.evaluate("close_view()")
    assert page.evaluate("Object.values(handlers).flat().length") == 0, "a closed view must leave nothing behind"


def test_the_waveform_shows_levels_as_they_are(show: Any) -> None:
    heights = []
    for level in (3000, 30000):
        page = show("player.js", wav=tone(level), label="", filename="a.wav", autoplay=False)
        heights.append(
            page.evaluate("""() => { const c = document.querySelector('canvas'), x = Math.floor(c.width / 2);
            const d = c.getContext('2d').getImageData(x, 0, 1, c.height).data; let n = 0;
            for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n / c.height; }""")
        )
    assert heights[0] < 0.2, "a sound 20 dB below full scale must look it"
    assert heights[1] > 0.8


def test_switching_keeps_the_position(show: Any) -> None:
    tracks = [{"label": "fp32", "wav": tone(9000, 5)}, {"label": "bf16", "wav": tone(5000, 5)}, {"label": "x", "wav": tone(100, 5)}]
    page = show("switch_player.js", tracks=tracks, current=0, blind=False, labels=["A", "B", "X"], playing=False, position_s=0.0)
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.wait_for_function("state.playing && Number(document.querySelector('[role=slider]').getAttribute('aria-valuenow')) > 0.7")
    page.keyboard.press("2")
    assert page.evaluate("state.current") == 1
    assert page.get_by_role("button", name="Hear bf16").get_attribute("aria-pressed") == "true"
    now = float(page.get_by_role("slider").get_attribute("aria-valuenow"))
    assert 0.6 < now < 4, "switching must not start over"
    page.keyboard.press("9")
    assert page.evaluate("state.current") == 1
    page.evaluate("model.set('playing', false)")
    page.wait_for_function("document.querySelector('.a-main').textContent === 'Play'")
    assert page.evaluate("state.position_s") > 0.6


def test_blind_shows_neither_names_nor_waves(show: Any) -> None:
    tracks = [{"label": "fp32", "wav": tone(30000)}, {"label": "bf16", "wav": tone(300)}]
    page = show("switch_player.js", tracks=tracks, current=0, blind=True, labels=["A", "B", "X"], playing=False, position_s=0.0)
    text = page.inner_text("#root") + page.evaluate("[...document.querySelectorAll('[aria-label]')].map((n) => n.ariaLabel).join()")
    assert "fp32" not in text
    assert "Hear A" in text
    shot = "document.querySelector('canvas').toDataURL()"
    first = page.evaluate(shot)
    page.keyboard.press("Tab")
    page.evaluate("model.set('current', 1)")
    assert page.evaluate(shot) == first, "the picture must not tell which one is heard"
    page.evaluate("model.set('blind', false)")
    assert page.get_by_role("button", name="Hear fp32").is_visible()


def test_a_stream_has_no_gaps(show: Any) -> None:
    page = show("stream_player.js", received_s=0.0, gaps=0, playing=False)
    assert page.get_by_role("status").inner_text() == "Sound is played here while it is made."
    page.evaluate("""() => {
      window.starts = [];
      const start = AudioBufferSourceNode.prototype.start;
      AudioBufferSourceNode.prototype.start = function (at) { starts.push([at, this.buffer.length]); start.call(this, at); };
      model.emit("msg:custom", { type: "begin", rate: 22050 }, []);
      for (let i = 0; i < 5; i++) model.emit("msg:custom", { type: "piece" }, [new DataView(new Float32Array(4410 + i).fill(0.1).buffer)]);
      model.emit("msg:custom", { type: "end" }, []);
    }""")
    starts = page.evaluate("starts")
    for (at, length), (following, _) in itertools.pairwise(starts):
        assert following == pytest.approx(at + length / RATE, abs=1e-9)
    assert page.evaluate("state.received_s") == pytest.approx((5 * 4410 + 10) / RATE)
    page.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('Played to the end')")
    assert page.evaluate("[state.gaps, state.playing]") == [0, False]
    page.evaluate("model.emit('msg:custom', { type: 'stop' }, [])")


def test_the_recorder_delivers_what_it_hears(show: Any) -> None:
    page = show("recorder.js", wav=b"", most_s=1.2)
    page.get_by_role("button", name="Record").click()
    page.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('Recorded 1.2')", timeout=10_000)
    data = page.evaluate("btoa(String.fromCharCode(...new Uint8Array(state.wav.buffer)))")
    rate, samples = wav_samples(base64.b64decode(data))
    assert len(samples) / rate == pytest.approx(1.2, abs=0.05)
    assert np.abs(samples).max() > 100, "the test tone of the browser, a beep every half second"


def test_the_recorder_says_why_it_cannot(show: Any) -> None:
    page = show("recorder.js", wav=b"", most_s=15.0)
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotAllowedError'); }; }")
    page.get_by_role("button", name="Record").click()
    page.get_by_text("was not allowed to use the microphone").wait_for()
    assert page.get_by_role("button", name="Record").is_enabled(), "one may change one's mind"


def test_a_file_is_checked_before_it_is_sent(show: Any, tmp_path: Path) -> None:
    page = show("file_drop.js", label="Choose a file", hint="or drop one", suffixes=[".wav"], most_mb=2.5, message="", failed=False)
    page.evaluate("() => { window.sent = []; model.send = (message, _, buffers) => sent.push([message.type, buffers?.[0].byteLength]); }")

    def choose(name: str, size: int) -> str:
        page.evaluate("() => { sent.length = 0; }")
        page.locator("input[type=file]").set_input_files(files=[{"name": name, "mimeType": "audio/wav", "buffer": b"x" * size}])
        page.wait_for_timeout(100)
        return str(page.get_by_role("status").inner_text())

    assert choose("notes.txt", 10) == "notes.txt is not one of .wav."
    assert page.evaluate("sent") == []
    assert choose("huge.wav", 3_000_000) == "huge.wav has 3.0 MB; at most 2.5 MB are taken."
    assert page.evaluate("sent") == [], "nothing of a file that is too large may travel"
    assert choose("empty.wav", 0) == "empty.wav is empty (0 bytes)."
    choose("good.wav", 2_400_000)
    page.wait_for_function("sent.length === 4")
    assert page.evaluate("sent") == [["begin", None], ["piece", 1 << 20], ["piece", 1 << 20], ["piece", 2_400_000 - (2 << 20)]]
    page.evaluate("() => { model.set('failed', true); model.set('message', 'good.wav is silent.'); }")
    assert page.get_by_role("status").inner_text() == "good.wav is silent."


def test_downloads_and_code(show: Any) -> None:
    page = show("download.js", label="Save", tooltip="", disabled=False)
    page.evaluate("""() => { model.send = () => model.emit("msg:custom", { type: "file", name: "a.json", mime: "application/json" },
        [new DataView(new TextEncoder().encode("{}").buffer)]); }""")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    assert download.value.suggested_filename == "a.json"
    assert Path(download.value.path()).read_text() == "{}"
    page = show("code_box.js", code="tts.infer('<b>')")
    assert page.locator("code").inner_text() == "tts.infer('<b>')"
    page.evaluate("() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }")
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("copied") == "tts.infer('<b>')"
