// One sound: play and pause, a waveform with a cursor, download. Levels are the file's own; nothing is normalised.

function render({ model, el }) {
  const root = frame(el, "Audio player");
  const audio = element("audio", { preload: "auto" });
  const play = element("button", { class: "a-main", type: "button" });
  const save = element("button", { type: "button" }, "Download");
  const time = element("span", { class: "a-time" });
  const label = element("span", { class: "a-label a-grow" });
  let sound = null, url = null;

  const duration = () => (sound ? sound.samples.length / sound.rate : 0);
  const position = () => Math.min(audio.currentTime || 0, duration());
  const seek = (s) => { if (sound) { audio.currentTime = s; show(); } };
  const wave = waveform("Position", { samples: () => sound?.samples, duration, position, hidden: () => false }, seek);
  const animate = animation(show, () => !audio.paused);

  function show() {
    const playing = sound && !audio.paused;
    play.textContent = playing ? "Pause" : "Play";
    play.setAttribute("aria-label", `${playing ? "Pause" : "Play"} ${model.get("label")}`.trim());
    play.disabled = save.disabled = !sound;
    time.textContent = sound ? `${clock(position())} / ${clock(duration())}` : "no sound yet";
    wave.draw();
  }

  function load() {
    audio.pause();
    if (url) URL.revokeObjectURL(url);
    const view = viewOf(model.get("wav"));
    sound = decodeWav(view);
    url = sound ? URL.createObjectURL(new Blob([view], { type: "audio/wav" })) : null;
    if (url) audio.src = url; else audio.removeAttribute("src");
    if (sound && model.get("autoplay")) audio.play().catch(() => {}); // the browser may want a click first; the button is there
    show();
  }

  function name() {
    label.textContent = label.title = model.get("label");
    root.setAttribute("aria-label", `Audio player: ${model.get("label") || "sound"}`);
    show();
  }

  const toggle = () => { if (sound) { if (audio.paused) audio.play(); else audio.pause(); } };
  play.addEventListener("click", toggle);
  save.addEventListener("click", () => element("a", { href: url, download: model.get("filename") }).click());
  root.addEventListener("keydown", (event) => { if (isSpace(event)) { event.preventDefault(); toggle(); } });
  for (const event of ["play", "pause", "ended", "seeked", "loadedmetadata"]) audio.addEventListener(event, () => { show(); animate(); });

  root.append(element("div", { class: "a-stack" }, wave.node, element("div", { class: "a-row" }, play, time, label, save)), audio);
  model.on("change:wav", load);
  model.on("change:label", name);
  load();
  name();
  return () => {
    model.off("change:wav", load);
    model.off("change:label", name);
    wave.close();
    audio.pause();
    if (url) URL.revokeObjectURL(url);
  };
}

export default { render };
