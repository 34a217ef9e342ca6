// The microphone, where the browser allows it: raw samples, without the browser's noise reduction and gain control.

const TAP = `registerProcessor("tap", class extends AudioWorkletProcessor {
  process(inputs) { if (inputs[0].length) this.port.postMessage(inputs[0][0].slice()); return true; }
});`;
const REASONS = {
  NotAllowedError: "The browser was not allowed to use the microphone. Allow it in the address bar, or upload a file instead.",
  NotFoundError: "No microphone was found. Connect one, or upload a file instead.",
  NotReadableError: "Another program is using the microphone. Close it, or upload a file instead.",
};

function render({ model, el }) {
  const root = frame(el, "Recorder");
  const button = element("button", { type: "button" }), text = element("span", { class: "a-grow", role: "status" });
  const level = element("span"), meter = element("div", { class: "a-meter", "aria-hidden": "true" }, level);
  let context = null, stream = null, parts = [], count = 0, message = "", bad = false;

  function unavailable() {
    if (!window.isSecureContext) {
      return "Recording needs a secure page: open it through https or on localhost, or upload a file instead.";
    }
    return navigator.mediaDevices?.getUserMedia && window.AudioWorkletNode ? "" : "This browser cannot record here; upload a file instead.";
  }

  function show() {
    const reason = unavailable(), seconds = context ? count / context.sampleRate : 0;
    button.disabled = Boolean(reason);
    button.textContent = context ? "Stop" : "Record";
    text.className = `a-grow${bad || reason ? " a-error" : ""}`;
    text.textContent = reason || (context ? `Recording, ${seconds.toFixed(1)} of ${model.get("most_s")} s` : message) ||
      "Speak for 3 to 15 seconds, close to the microphone, in a quiet room.";
    if (!context) level.style.width = "0";
  }

  async function start() {
    message = ""; bad = false; parts = []; count = 0;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } });
      context = new AudioContext();
      await context.audioWorklet.addModule(`data:text/javascript,${encodeURIComponent(TAP)}`); // a blob: fails on pages without an origin
      const tap = new AudioWorkletNode(context, "tap", { numberOfOutputs: 0 });
      tap.port.onmessage = ({ data }) => {
        if (!context) return;
        parts.push(data);
        count += data.length;
        const peak = data.reduce((most, s) => Math.max(most, Math.abs(s)), 0);
        level.style.width = `${Math.max(0, 100 + (20 * Math.log10(peak + 1e-6)) * (100 / 60))}%`;
        if (count >= model.get("most_s") * context.sampleRate) stop(); else show();
      };
      context.createMediaStreamSource(stream).connect(tap);
    } catch (error) {
      release();
      message = REASONS[error.name] ?? `Recording failed: ${error.message}. Upload a file instead.`;
      bad = true;
    }
    show();
  }

  function release() {
    stream?.getTracks().forEach((track) => track.stop());
    context?.close();
    stream = context = null;
  }

  function stop() {
    const rate = context.sampleRate, samples = new Float32Array(count);
    let at = 0;
    for (const part of parts) { samples.set(part, at); at += part.length; }
    release();
    message = `Recorded ${(count / rate).toFixed(1)} s.`;
    model.set("wav", encodeWav(samples, rate));
    model.save_changes();
    show();
  }

  button.addEventListener("click", () => (context ? stop() : start()));
  root.append(element("div", { class: "a-stack" }, element("div", { class: "a-row" }, button, text), meter));
  show();
  return release;
}

export default { render };
