// Several sounds of about the same content, one of them audible: switching keeps the position and is as quick as the ear.

const FADE_S = 0.006; // long enough not to click, too short to be heard as a fade

function render({ model, el }) {
  const root = frame(el, "Switching player");
  const play = element("button", { class: "a-main", type: "button" });
  const time = element("span", { class: "a-time" });
  const choices = element("div", { class: "a-row", role: "group", "aria-label": "Which sound is heard" });
  const hint = element("span", { class: "a-hint" });
  let sounds = [], buttons = [], context = null, sources = [], gains = [], startedAt = 0, offset = 0, playing = false;

  const duration = () => Math.max(0, ...sounds.map((s) => s.samples.length / s.rate));
  const position = () => (playing ? Math.min(duration(), Math.max(offset, context.currentTime - startedAt)) : offset);
  const current = () => Math.max(0, Math.min(sounds.length - 1, model.get("current")));
  const wave = waveform("Position", { samples: () => sounds[current()]?.samples, duration, position, hidden: () => model.get("blind") },
    seek, true);
  const animate = animation(() => { if (playing && position() >= duration()) { stop(); offset = 0; share(); } show(); }, () => playing);

  function labelOf(i) {
    const given = model.get("blind") ? model.get("labels")[i] : model.get("tracks")[i]?.label;
    return given || "ABXYZ"[i] || String(i + 1);
  }

  function start() {
    if (!sounds.length) return;
    context ??= new AudioContext();
    context.resume();
    if (offset >= duration()) offset = 0;
    const at = context.currentTime + 0.02;
    sources = sounds.map((sound, i) => {
      const buffer = context.createBuffer(1, Math.max(1, sound.samples.length), sound.rate);
      buffer.copyToChannel(sound.samples, 0);
      const source = context.createBufferSource(), gain = context.createGain();
      source.buffer = buffer;
      gain.gain.value = i === current() ? 1 : 0;
      source.connect(gain).connect(context.destination);
      if (offset < buffer.duration) source.start(at, offset);
      gains[i] = gain;
      return source;
    });
    startedAt = at - offset;
    playing = true;
    share();
    animate();
  }

  function stop() {
    if (!playing) return;
    offset = position();
    playing = false;
    for (const source of sources) { source.disconnect(); }
    for (const gain of gains) gain.disconnect();
    sources = []; gains = [];
  }

  function seek(s) {
    const was = playing;
    stop();
    offset = s;
    if (was) start();
    share();
    show();
  }

  function choose(i) {
    if (i < 0 || i >= sounds.length) return;
    model.set("current", i);
    model.save_changes();
    heard();
  }

  function heard() {
    gains.forEach((gain, i) => gain.gain.setTargetAtTime(i === current() ? 1 : 0, context.currentTime, FADE_S / 3));
    show();
  }

  function share() { // so that Python knows where we are; rarely, not at every frame
    model.set("playing", playing);
    model.set("position_s", Math.round(position() * 1000) / 1000);
    model.save_changes();
  }

  function toggle() {
    if (playing) { stop(); share(); } else start();
    show();
  }

  function show() {
    play.textContent = playing ? "Pause" : "Play";
    play.disabled = !sounds.length;
    time.textContent = sounds.length ? `${clock(position())} / ${clock(duration())}` : "no sounds yet";
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === current())));
    wave.draw();
  }

  function load() {
    stop();
    offset = 0;
    sounds = model.get("tracks").map((track) => decodeWav(track.wav) ?? { rate: 22050, samples: new Float32Array(0) });
    names();
  }

  function names() {
    buttons = sounds.map((_, i) => {
      const button = element("button", { type: "button", "aria-label": `Hear ${labelOf(i)}` }, labelOf(i), " ",
        element("kbd", { "aria-hidden": "true" }, String(i + 1)));
      button.addEventListener("click", () => choose(i));
      return button;
    });
    choices.replaceChildren(...buttons);
    hint.textContent = sounds.length ? `Keys: 1 to ${sounds.length} switch, space plays, arrows move.` : "";
    show();
  }

  play.addEventListener("click", toggle);
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (isSpace(event)) { event.preventDefault(); toggle(); }
    else if (/^[1-9]$/.test(event.key)) { event.preventDefault(); choose(Number(event.key) - 1); }
  });
  const follow = () => { if (model.get("playing") !== playing) toggle(); };
  root.append(element("div", { class: "a-stack" }, wave.node,
    element("div", { class: "a-row" }, play, choices, time, element("span", { class: "a-grow" }), hint)));
  const listeners = [["change:tracks", load], ["change:current", heard], ["change:blind", names], ["change:labels", names],
    ["change:playing", follow]];
  for (const [event, callback] of listeners) model.on(event, callback);
  load();
  return () => {
    for (const [event, callback] of listeners) model.off(event, callback);
    stop();
    wave.close();
    context?.close();
  };
}

export default { render };
