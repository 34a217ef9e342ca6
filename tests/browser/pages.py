"""The panels as a person meets them: tabs, buttons, charts and sound in a page."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

SLOW_MS = int(
    1000 * float(os.environ.get("INDEXTTS_BROWSER_PATIENCE_S", "120"))
)  # an idle machine needs a few seconds for the slowest step
TABS = ("Synthesis", "Switches", "Timing", "Memory", "Listening", "Model card", "Workers")
# Decodes what the visible audio element would play; the sound's facts, or null while there is none.
DECODE = """async () => {
  for (const audio of document.querySelectorAll('.itl-panel audio')) {
    if (!audio.src || !audio.closest('.itl-audio')?.offsetParent || audio.closest('.itl-panel .itl-column, .itl-columns')) continue;
    const bytes = await (await fetch(audio.src)).arrayBuffer();
    if (bytes.byteLength < 100) continue;
    const sound = await new OfflineAudioContext(1, 1, 22050).decodeAudioData(bytes);
    const samples = sound.getChannelData(0);
    return { seconds: sound.duration, rate: sound.sampleRate, peak: Math.max(...samples.map(Math.abs)) };
  }
  return null;
}"""
# The figures that are drawn and in view, as Plotly holds them.
FIGURES = """() => [...document.querySelectorAll('.itl-chart .js-plotly-plot')].filter((plot) => plot.offsetParent)
  .map((plot) => ({ names: plot.data.map((trace) => trace.name), lengths: plot.data.map((trace) => (trace.x ?? trace.z ?? []).length),
    types: plot.data.map((trace) => trace.type),
    drawn: plot.querySelectorAll('.bars path, .scatterlayer path, .heatmaplayer image').length }))"""


class LabPage:
    """Drives one page that shows the lab."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.problems: list[str] = []
        self.strangers: list[str] = []
        page.set_default_timeout(SLOW_MS)
        page.set_default_navigation_timeout(SLOW_MS)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", self._note)

    def _note(self, request: Any) -> None:
        if not re.match(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|blob:|data:", request.url):
            self.strangers.append(request.url)

    def tab(self, name: str) -> None:
        """Open a tab and scroll to it: charts out of sight are not drawn."""
        self.page.locator(".itl-tabs .lm-TabBar-tab", has_text=re.compile(f"^{name}$")).first.click()
        self.page.evaluate("() => document.querySelector('.itl-tabs').scrollIntoView({ block: 'start' })")

    def button(self, name: str) -> Any:
        """A button in view; the glyph of its icon counts as part of its name."""
        whole = re.compile(rf"^\W*{re.escape(name)}\W*$")
        return self.page.get_by_role("button", name=whole).locator("visible=true").first

    def figures(self) -> list[dict[str, Any]]:
        return self.page.evaluate(FIGURES)

    def wait_for_figure(self, condition: str) -> None:
        """``condition``: JavaScript over ``figures``, the figures in view."""
        self.page.wait_for_function(f"() => {{ const figures = ({FIGURES})(); return {condition}; }}")

    def generate(self, text: str) -> None:
        """Speak a text, and wait for the result."""
        self.tab("Synthesis")
        self.page.locator(".itl-panel textarea").locator("visible=true").first.fill(text)
        self.page.keyboard.press("Tab")
        before = self.page.evaluate("() => [...document.querySelectorAll('.itl-panel audio')].map((audio) => audio.src).join()")
        self.button("Generate").click()
        self.page.wait_for_function(
            "(before) => [...document.querySelectorAll('.itl-panel audio')].map((audio) => audio.src).join() !== before", arg=before
        )
        self.page.locator(".itl-done").locator("visible=true").first.wait_for()

    def heard(self) -> dict[str, float]:
        """What the result's player holds, decoded by the browser."""
        return self.page.evaluate(DECODE)

    def watch_memory(self) -> None:
        """See the memory plot grow on its own, then pause it and go on."""
        self.tab("Memory")
        self.wait_for_figure("figures.length === 1 && figures[0].lengths[0] >= 2 && figures[0].names.includes('run began')")
        before = self.figures()[0]["lengths"][0]
        self.wait_for_figure(f"figures[0].lengths[0] >= {before + 2}")
        self.button("Pause").click()
        self.button("Resume").wait_for()

    def listen_to_the_reveal(self) -> None:
        """Compare the latest two runs blindly: hear both, answer three times by key, reveal."""
        self.tab("Listening")
        self.button("Compare these runs").click()
        votes = self.page.locator(".itl-listening .itl-votes").first
        votes.locator("button:enabled").first.wait_for()
        listening = self.page.locator(".itl-listening").first
        names = re.compile(r"A was \d+ · run \d+")
        assert not names.search(listening.inner_text())
        listening.locator(".a-main").locator("visible=true").first.click()
        listening.get_by_role("button", name="Hear B").click()
        listening.locator("button[aria-label='Hear B'][aria-pressed=true]").wait_for()
        for number, key in enumerate("abs", 2):
            self.page.keyboard.press("2" if key == "b" else "1")  # hear one, then answer, all by key
            self.page.keyboard.press(key)
            listening.get_by_text(f"Trial {number};").wait_for()
        self.button("Reveal").click()
        self.wait_for_figure("figures.filter((figure) => figure.types[0] === 'heatmap' && figure.drawn).length === 3")
        text = listening.inner_text()
        assert names.search(text)
        assert "p = " in text
        assert votes.locator("button:enabled").count() == 0

    def cancel_a_long_run(self) -> None:
        """Start what would take minutes, and give it up: no run is added to the history."""
        self.tab("Synthesis")
        runs = "() => document.querySelectorAll('.itl-data tbody tr').length"
        before = self.page.evaluate(runs)
        place = self.button("Generate").bounding_box()
        self.page.locator(".itl-panel textarea").locator("visible=true").first.fill("The ferry came in at seven. " * 200)
        self.page.keyboard.press("Tab")
        self.page.get_by_text("more segments").first.wait_for()
        assert self.button("Generate").bounding_box() == place, "a preview moves the buttons, maybe away from under a pointer"
        self.button("Generate").click()
        self.header("working")
        self.button("Cancel").click()
        self.header("idle")
        assert "Cancelled" in self.page.locator(".itl-status").locator("visible=true").first.inner_text()
        assert self.page.evaluate(runs) == before

    def header(self, text: str) -> None:
        """Wait until the line above the tabs has a text."""
        self.page.locator(".itl-header", has_text=text).first.wait_for()

    def photograph(self, folder: Path, name: str) -> None:
        self.page.locator(".itl-tabs").first.screenshot(path=folder / f"{name}.png")
