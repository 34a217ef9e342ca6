// Sound that is still being made: every piece is scheduled to begin exactly where the one before it ends.

const LEAD_S = 0.15; // of the first piece, and after every gap: time for the next piece to arrive

export default () => {
  let context = null, next = 0, firstAt = 0, received = 0, rate = 22050, gaps = 0, over = true, queued = 0;
  const views = new Set();
  const show = () => views.forEach((view) => view());

  function begin(model, message) {
    context?.close();
    rate = message.rate;
    context = new AudioContext({ sampleRate: rate }); // at the sound's own rate, so that nothing is resampled piece by piece
    next = received = gaps = queued = 0;
    over = false;
    share(model);
    show();
  }

  function piece(model, buffers) {
    if (!context || !buffers?.length) return;
    const view = viewOf(buffers[0]);
    const samples = new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
    if (!samples.length) return;
    const buffer = context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    if (!next || next < context.currentTime) {
      if (next) gaps += 1; else firstAt = context.currentTime + LEAD_S;
      next = context.currentTime + LEAD_S;
    }
    source.start(next);
    queued += 1;
    source.onended = () => { queued -= 1; share(model); show(); };
    next += samples.length / rate;
    received += samples.length / rate;
    share(model);
    show();
  }

  function share(model) {
    model.set("received_s", received);
    model.set("gaps", gaps);
    model.set("playing", queued > 0 && context?.state === "running");
    model.save_changes();
  }

  function words() {
    if (!context) return "Sound is played here while it is made.";
    if (context.state === "suspended" && received) return "Paused. Press Resume to hear it.";
    const gap = gaps ? ` ${gaps} ${gaps === 1 ? "gap" : "gaps"}: it is made more slowly than it plays.` : "";
    if (queued) return `Playing; ${received.toFixed(1)} s received.${gap}`;
    if (over) return received ? `Played to the end, ${received.toFixed(1)} s.${gap}` : "Stopped before any sound was made.";
    return received ? `Waiting for more; ${received.toFixed(1)} s received.${gap}` : "Waiting for the first sound.";
  }

  return {
    initialize({ model }) {
      const hear = (message, buffers) => {
        if (message.type === "begin") begin(model, message);
        else if (message.type === "piece") piece(model, buffers);
        else if (message.type === "end") { over = true; show(); }
        else if (message.type === "stop") { context?.close(); context = null; over = true; queued = 0; share(model); show(); }
      };
      model.on("msg:custom", hear);
      return () => { model.off("msg:custom", hear); context?.close(); };
    },
    render({ model, el }) {
      const root = frame(el, "Live sound");
      const toggle = element("button", { type: "button" }), text = element("span", { class: "a-grow", role: "status" });
      const view = () => {
        text.textContent = words();
        toggle.textContent = context?.state === "suspended" ? "Resume" : "Pause";
        toggle.disabled = !context || (!queued && over);
      };
      toggle.addEventListener("click", async () => {
        await (context.state === "suspended" ? context.resume() : context.suspend());
        share(model);
        show();
      });
      root.append(element("div", { class: "a-row" }, toggle, text));
      views.add(view);
      view();
      return () => views.delete(view);
    },
  };
};
