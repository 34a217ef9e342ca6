// What the audio widgets share. Plain ES module text; Python puts it in front of each widget's own file, so there is nothing to import.

/** Bytes of a trait as a DataView, or null if there are none. */
function viewOf(bytes) {
  if (!bytes || !bytes.byteLength) return null;
  return bytes instanceof DataView ? bytes : new DataView(bytes.buffer ?? bytes, bytes.byteOffset ?? 0, bytes.byteLength);
}

/** A 16-bit PCM WAV as {rate, samples: Float32Array in [-1, 1), first channel}; null if it is none. Levels stay as they are. */
function decodeWav(bytes) {
  const view = viewOf(bytes);
  if (!view || view.byteLength < 44 || view.getUint32(0) !== 0x52494646) return null;
  let at = 12, rate = 0, channels = 1;
  while (at + 8 <= view.byteLength) {
    const name = view.getUint32(at), size = view.getUint32(at + 4, true);
    if (name === 0x666d7420) { channels = view.getUint16(at + 10, true); rate = view.getUint32(at + 12, true); }
    if (name === 0x64617461) {
      const count = Math.floor(Math.min(size, view.byteLength - at - 8) / (2 * channels));
      const samples = new Float32Array(count);
      for (let i = 0; i < count; i++) samples[i] = view.getInt16(at + 8 + 2 * channels * i, true) / 32768;
      return { rate, samples };
    }
    at += 8 + size + (size & 1);
  }
  return null;
}

/** Float32 samples as a 16-bit mono WAV. */
function encodeWav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, s) => [...s].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((s, i) => view.setInt16(44 + 2 * i, Math.max(-32768, Math.min(32767, Math.round(s * 32768))), true));
  return view;
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** The frame of a widget. */
function frame(el, label) {
  const root = element("div", { class: "itl-audio", role: "group", "aria-label": label });
  el.replaceChildren(root);
  return root;
}

const clock = (s) => `${Math.floor(s / 60)}:${(s % 60).toFixed(1).padStart(4, "0")}`;
const spoken = (s) => `${s.toFixed(1)} seconds`;

/** Lowest and highest sample of each of `columns` equal parts. */
function peaks(samples, columns) {
  const low = new Float32Array(columns), high = new Float32Array(columns);
  for (let x = 0; x < columns; x++) {
    const end = Math.max(Math.floor(((x + 1) * samples.length) / columns), Math.floor((x * samples.length) / columns) + 1);
    let least = 1, most = -1;
    for (let i = Math.floor((x * samples.length) / columns); i < end && i < samples.length; i++) {
      if (samples[i] < least) least = samples[i];
      if (samples[i] > most) most = samples[i];
    }
    low[x] = Math.min(least, most); high[x] = Math.max(least, most);
  }
  return { low, high };
}

/**
 * A waveform that is also the position slider: mouse, touch and keys seek. `source` gives {samples, duration(), position(), hidden()};
 * `seek(s)` moves. Returns {node, draw, close}.
 */
function waveform(label, source, seek, tall = false) {
  const canvas = element("canvas", { "aria-hidden": "true" });
  const node = element("div", { class: `a-wave${tall ? " a-tall" : ""}`, role: "slider", tabindex: "0", "aria-label": label,
    "aria-valuemin": "0" }, canvas);
  let cache = null;

  function draw() {
    const scale = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(canvas.clientWidth * scale)), height = Math.max(1, Math.round(canvas.clientHeight * scale));
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const samples = source.samples(), duration = source.duration(), at = duration ? source.position() / duration : 0;
    const style = getComputedStyle(node), colour = (name) => style.getPropertyValue(name).trim();
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = colour("--a-line");
    pen.fillRect(0, Math.floor(height / 2), width, Math.max(1, scale));
    if (samples && samples.length && !source.hidden()) {
      if (!cache || cache.samples !== samples || cache.width !== width) cache = { samples, width, ...peaks(samples, width) };
      const half = height / 2;
      for (const [from, to, ink] of [[0, Math.round(at * width), "--a-accent"], [Math.round(at * width), width, "--a-wave"]]) {
        pen.fillStyle = colour(ink);
        for (let x = from; x < to; x++) {
          const top = half - cache.high[x] * half, bottom = half - cache.low[x] * half;
          pen.fillRect(x, top, 1, Math.max(scale, bottom - top));
        }
      }
    } else if (duration) {
      pen.fillStyle = colour("--a-accent");
      pen.fillRect(0, Math.floor(height / 2) - scale, at * width, 3 * scale);
    }
    if (duration) {
      pen.fillStyle = colour("--a-text");
      pen.fillRect(Math.min(width - scale, at * width), 0, Math.max(1, 1.5 * scale), height);
    }
    node.setAttribute("aria-valuemax", duration.toFixed(2));
    node.setAttribute("aria-valuenow", source.position().toFixed(2));
    node.setAttribute("aria-valuetext", `${spoken(source.position())} of ${spoken(duration)}`);
  }

  const seekTo = (event) => {
    const box = node.getBoundingClientRect();
    seek(source.duration() * Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)));
  };
  node.addEventListener("pointerdown", (event) => { node.setPointerCapture(event.pointerId); seekTo(event); });
  node.addEventListener("pointermove", (event) => { if (node.hasPointerCapture(event.pointerId)) seekTo(event); });
  node.addEventListener("keydown", (event) => {
    const now = source.position(), step = event.shiftKey ? 5 : 0.5;
    const to = { ArrowLeft: now - step, ArrowDown: now - step, ArrowRight: now + step, ArrowUp: now + step, PageDown: now - 5,
      PageUp: now + 5, Home: 0, End: source.duration() }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    seek(Math.max(0, Math.min(source.duration(), to)));
  });

  const redraw = () => draw();
  const size = new ResizeObserver(redraw), theme = new MutationObserver(redraw);
  size.observe(node);
  for (const watched of [document.documentElement, document.body]) theme.observe(watched, { attributes: true });
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", redraw);
  return { node, draw, close: () => { size.disconnect(); theme.disconnect(); scheme.removeEventListener("change", redraw); } };
}

/** Calls `step()` before every repaint while `active()`; returns the function that (re)starts it. */
function animation(step, active) {
  let pending = 0;
  const turn = () => { pending = 0; step(); if (active()) pending = requestAnimationFrame(turn); };
  return () => { if (!pending) pending = requestAnimationFrame(turn); };
}

/** Space plays or pauses anywhere in the widget but on its buttons, which a space presses anyway. */
const isSpace = (event) => event.key === " " && event.target.tagName !== "BUTTON";
