// A file from the reader's computer: checked for size and type before anything is sent, then sent in pieces that any server accepts.

const PIECE = 1 << 20;

function render({ model, el }) {
  const root = frame(el, model.get("label"));
  const input = element("input", { type: "file", accept: model.get("suffixes").join(","), "aria-label": model.get("label"), hidden: true });
  const button = element("button", { type: "button" }, model.get("label"));
  const text = element("span", { class: "a-grow", role: "status" });
  let local = "";

  function show() {
    const message = local || model.get("message");
    text.textContent = message || `${model.get("hint")}`;
    text.className = `a-grow ${local || model.get("failed") ? "a-error" : message ? "" : "a-hint"}`;
  }

  async function take(file) {
    local = "";
    const suffixes = model.get("suffixes"), most = model.get("most_mb");
    const suffix = file.name.includes(".") ? `.${file.name.split(".").pop().toLowerCase()}` : "";
    if (!suffixes.includes(suffix)) local = `${file.name} is not one of ${suffixes.join(", ")}.`;
    else if (file.size > most * 1e6) local = `${file.name} has ${(file.size / 1e6).toFixed(1)} MB; at most ${most} MB are taken.`;
    else if (!file.size) local = `${file.name} is empty (0 bytes).`;
    show();
    if (local) return;
    const id = `${Date.now()}-${Math.random()}`;
    model.send({ type: "begin", id, name: file.name, size: file.size });
    for (let at = 0; at < file.size; at += PIECE) {
      const piece = await file.slice(at, at + PIECE).arrayBuffer();
      model.send({ type: "piece", id }, undefined, [piece]);
    }
  }

  const accept = (files) => { if (files.length) take(files[0]); };
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => { accept(input.files); input.value = ""; });
  root.addEventListener("dragover", (event) => { event.preventDefault(); root.classList.add("a-over"); });
  root.addEventListener("dragleave", () => root.classList.remove("a-over"));
  root.addEventListener("drop", (event) => { event.preventDefault(); root.classList.remove("a-over"); accept(event.dataTransfer.files); });
  const told = () => { local = ""; show(); };
  root.append(element("div", { class: "a-row" }, button, text, input));
  model.on("change:message", told);
  model.on("change:failed", show);
  show();
  return () => { model.off("change:message", told); model.off("change:failed", show); };
}

export default { render };
